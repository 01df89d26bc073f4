using System.Buffers.Binary;
using System.Runtime.InteropServices;
using SimKvm.Kvm;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;

namespace SimKvm.Vendors.Amd.Guests;

/// <summary>How a message from a guest to firmware went.</summary>
public enum GuestMessageOutcome
{
    /// <summary>Answered; the payload is the step's data. The answer itself may deny what was asked.</summary>
    Answered,

    /// <summary>The secrets page has no key for that VMPCK: the driver wiped it, or the page is none.</summary>
    NoKey,

    /// <summary>The sequence numbers are used up.</summary>
    SequenceExhausted,

    /// <summary>The hypervisor was busy too often.</summary>
    Busy,

    /// <summary>Firmware or the hypervisor refused; see the GHCB's exit_info_2. The key is wiped, so that no nonce is ever used twice.</summary>
    Refused,

    /// <summary>What came back is not the answer to the message, or was changed on the way. The key is wiped.</summary>
    Undecryptable,
}

/// <summary>How a message went.</summary>
/// <param name="Outcome">In one word.</param>
/// <param name="Sequence">The request's sequence number; 0 where none was sent.</param>
/// <param name="CertificatePages">Pages that certificates need, where there was no room for them; else 0.</param>
public sealed record GuestMessageResult(GuestMessageOutcome Outcome, ulong Sequence, ulong CertificatePages);

/// <summary>
/// A message to firmware, as a guest's driver sends it (Linux sev-guest): takes key and count from the secrets page, seals the request into shared memory, a guest request by the
/// GHCB, opens the answer, counts on. The step's data is the payload of the answer.
/// </summary>
/// <remarks>
/// Where certificates are asked for and do not fit, the same message goes again without them, so that the count stays in step; while the hypervisor is busy it goes again up to 30
/// times, which are a minute of the driver's. An answer that is none wipes the key in the secrets page.
/// </remarks>
/// <param name="GhcbGpa">A GHCB that the guest has registered.</param>
/// <param name="SecretsGpa">The guest's secrets page.</param>
/// <param name="RequestGpa">A shared page.</param>
/// <param name="ResponseGpa">Another shared page.</param>
/// <param name="Vmpck">0 to 3.</param>
/// <param name="Type">A <see cref="GuestMessageType"/>.</param>
/// <param name="Payload">At most <see cref="GuestMessage.MaxPayload"/> bytes.</param>
public sealed record GuestSnpRequest(
    ulong GhcbGpa, ulong SecretsGpa, ulong RequestGpa, ulong ResponseGpa, byte Vmpck, GuestMessageType Type, ReadOnlyMemory<byte> Payload) : GuestRoutine
{
    private const int MaxTries = 30;
    private const int VmpckAt = 0x20;
    private const int SequenceAt = 0xA0;
    private const ulong VmmInvalidLength = 1;
    private const ulong VmmBusy = 2;

    /// <summary>An extended request.</summary>
    public bool Extended { get; init; }

    /// <summary>Where certificates go: shared pages.</summary>
    public ulong CertificatesGpa { get; init; }

    public ulong CertificatesPages { get; init; }

    internal override IEnumerable<GuestStep> Instructions(GuestRoutineState state)
    {
        ulong keyGpa = SecretsGpa + VmpckAt + ((ulong)Vmpck * SecretsPage.VmpckSize);
        ulong countGpa = SecretsGpa + SequenceAt + ((ulong)Vmpck * sizeof(uint));

        yield return new GuestRead(keyGpa, SecretsPage.VmpckSize, GuestAccess.Private);
        byte[] key = state.Last.Data.ToArray();
        if (key.AsSpan().IndexOfAnyExcept((byte)0) < 0)
        {
            state.Message = new GuestMessageResult(GuestMessageOutcome.NoKey, 0, 0);
            yield break;
        }
        yield return new GuestRead(countGpa, sizeof(uint), GuestAccess.Private);
        uint count = BinaryPrimitives.ReadUInt32LittleEndian(state.Last.Data.Span);
        if (count >= uint.MaxValue - 1)
        {
            state.Message = new GuestMessageResult(GuestMessageOutcome.SequenceExhausted, 0, 0);
            yield break;
        }
        ulong sequence = count + 1UL;
        byte[] request = new byte[GuestMessage.PageSize];
        GuestMessage.Seal(request, key, Vmpck, sequence, Type, Payload.Span);
        yield return new GuestWrite(RequestGpa, request, GuestAccess.Shared);

        ulong certificatePages = 0;
        bool extended = Extended;
        ulong vmmError, firmwareError;
        int tries = 0;
        do
        {
            foreach (GuestStep instruction in Call(extended).Instructions(state))
            {
                yield return instruction;
            }
            vmmError = state.Ghcb!.ExitInfo2 >> 32;
            firmwareError = (uint)state.Ghcb.ExitInfo2;
            if (extended && vmmError == VmmInvalidLength)
            {
                certificatePages = state.Ghcb.Rbx;
                extended = false;
                continue;
            }
            tries++;
            if (vmmError != VmmBusy)
            {
                break;
            }
        }
        while (tries < MaxTries);
        state.Data = default;

        GuestMessageOutcome outcome = GuestMessageOutcome.Answered;
        if (vmmError == VmmBusy)
        {
            outcome = GuestMessageOutcome.Busy;
        }
        else if (state.Ghcb.ExitInfo1 != Ghcb.NoAction || vmmError != 0 || firmwareError != 0)
        {
            outcome = GuestMessageOutcome.Refused;
        }
        else
        {
            yield return new GuestRead(ResponseGpa, GuestMessage.PageSize, GuestAccess.Shared);
            byte[]? payload = Open(state.Last.Data.Span, key, sequence);
            outcome = payload is null ? GuestMessageOutcome.Undecryptable : outcome;
            state.Data = payload;
        }
        state.Message = new GuestMessageResult(outcome, sequence, certificatePages);
        if (outcome == GuestMessageOutcome.Answered)
        {
            byte[] counted = new byte[sizeof(uint)];
            BinaryPrimitives.WriteUInt32LittleEndian(counted, count + 2);
            yield return new GuestWrite(countGpa, counted, GuestAccess.Private);
        }
        else
        {
            yield return new GuestWrite(keyGpa, new byte[SecretsPage.VmpckSize], GuestAccess.Private);
        }
    }

    private GuestGhcbCall Call(bool extended) => extended
        ? new GuestGhcbCall(GhcbGpa, (ulong)GhcbExitCode.EXT_GUEST_REQUEST, RequestGpa, ResponseGpa) { Rax = CertificatesGpa, Rbx = CertificatesPages }
        : new GuestGhcbCall(GhcbGpa, (ulong)GhcbExitCode.GUEST_REQUEST, RequestGpa, ResponseGpa);

    // verify_and_dec_payload: the next number, the type behind the request's, and a tag that matches.
    private byte[]? Open(ReadOnlySpan<byte> response, byte[] key, ulong sequence)
    {
        var header = MemoryMarshal.Read<snp_guest_msg_hdr>(response);
        return header.msg_seqno == sequence + 1 && header.msg_type == (byte)Type + 1 && header.msg_version == GuestMessage.MessageVersion
            ? GuestMessage.Open(response, key)
            : null;
    }
}
