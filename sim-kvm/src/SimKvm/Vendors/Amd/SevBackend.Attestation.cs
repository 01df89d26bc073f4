using System.Buffers.Binary;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

/// <summary>What firmware answered a guest's message.</summary>
/// <param name="Status">Of the command.</param>
/// <param name="MessageStatus">In the answer; SUCCESS where there is none.</param>
/// <param name="Payload">The answer, empty where the command was refused.</param>
public readonly record struct FirmwareAnswer(SevStatus Status, Psp.MessageStatus MessageStatus, ReadOnlyMemory<byte> Payload);

// Guest messages for tools: the round that the sev-guest driver of a guest makes, without a guest program.
internal sealed partial class SevBackend
{
    public static readonly Rule MessageDenied = new(
        "sev.guest-message.denied", "firmware answered the guest's message with a status that is not success", "snp_issue_guest_request (sev-guest)",
        "see the cause before this one", "status");

    /// <summary>Asks firmware as the guest's driver would. EIO where firmware refuses the message or its answer is a denial.</summary>
    public Errno AskAsGuest(KTask current, byte vmpck, GuestMessageType type, byte[] payload, out FirmwareAnswer answer)
    {
        byte[] received = [];
        uint error = 0;
        Errno errno = Amd.IssueCommand(
            current, PspCommand.SNP_GUEST_REQUEST, () => Psp.AskAsGuest(current, _snpContext, vmpck, type, payload, out received), ref error);
        Psp.MessageStatus status = received.Length == 0 ? default : (Psp.MessageStatus)BinaryPrimitives.ReadUInt32LittleEndian(received);
        answer = new FirmwareAnswer((SimMachine.Amd.SevStatus)error, status, received);
        return errno == Errno.OK && status != Psp.MessageStatus.SUCCESS ? current.Fail(Errno.EIO, MessageDenied, (ulong)status) : errno;
    }
}
