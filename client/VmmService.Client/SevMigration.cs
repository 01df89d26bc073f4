using Google.Protobuf;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// The commands of KVM_MEMORY_ENCRYPT_OP by which a SEV guest goes to another host: SEND_* on the one, RECEIVE_* on the other. What travels is encrypted between the two firmwares.
/// </summary>
public sealed class SevMigration : SevGuestCommands
{
    // Firmware knows its authority; KVM wants something to copy.
    private static readonly ByteString s_amdCerts = ByteString.CopyFrom(0);

    internal SevMigration(Vm vm, SevDevice sev)
        : base(vm, sev)
    {
    }

    /// <summary>KVM_SEV_SEND_START. The result has the session for the other side and the guest's policy.</summary>
    /// <param name="target">The other platform (<see cref="SevDevice.ExportPdhAsync"/> there).</param>
    /// <param name="sessionLen">Bytes of the buffer; 0 asks for the size, which is an error with the size in the reply.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevSendStartResponse, SevSendStartResponse> SendStartAsync(SevPlatformChain target, uint sessionLen = 128, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(target);
        return Call(
            "KVM_SEV_SEND_START",
            Stub.SevSendStartAsync(
                new SevSendStartRequest
                {
                    Host = Host,
                    Pid = Pid,
                    Fd = Fd,
                    SevFd = SevFd,
                    PdhCert = ByteString.CopyFrom(target.Pdh.Bytes.Span),
                    PlatCerts = ByteString.CopyFrom(target.CertChain.Span),
                    AmdCerts = s_amdCerts,
                    SessionLen = sessionLen,
                },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply, reply => reply.Sev);
    }

    /// <summary>KVM_SEV_SEND_UPDATE_DATA. The memory stays as it is.</summary>
    /// <param name="guestUaddr">User address of guest memory, within a page.</param>
    /// <param name="guestLen">Bytes, a multiple of 16.</param>
    /// <param name="query">Asks for the lengths only, which is an error with the lengths in the reply.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevSendUpdateDataResponse, SevSendUpdateDataResponse> SendUpdateDataAsync(
        ulong guestUaddr, uint guestLen, bool query = false, CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_SEND_UPDATE_DATA",
            Stub.SevSendUpdateDataAsync(
                new SevSendUpdateDataRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd, GuestUaddr = guestUaddr, GuestLen = guestLen, Query = query },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply, reply => reply.Sev);

    /// <summary>KVM_SEV_SEND_FINISH: the guest is gone. Or KVM_SEV_SEND_CANCEL: it stays.</summary>
    public KvmCall<SevSendFinishResponse, long> SendFinishAsync(bool cancel = false, CancellationToken cancellation = default) =>
        Call(
            cancel ? "KVM_SEV_SEND_CANCEL" : "KVM_SEV_SEND_FINISH",
            Stub.SevSendFinishAsync(new SevSendFinishRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd, Cancel = cancel }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>KVM_SEV_RECEIVE_START. The result is firmware's handle.</summary>
    /// <param name="sender">The platform that the guest comes from.</param>
    /// <param name="policy">What SEND_START told.</param>
    /// <param name="session">What SEND_START gave.</param>
    /// <param name="handle">0 for a key of its own, or the guest whose key to share.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevReceiveStartResponse, uint> ReceiveStartAsync(
        SevCertificate sender, uint policy, ReadOnlyMemory<byte> session, uint handle = 0, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(sender);
        return Call(
            "KVM_SEV_RECEIVE_START",
            Stub.SevReceiveStartAsync(
                new SevReceiveStartRequest
                {
                    Host = Host,
                    Pid = Pid,
                    Fd = Fd,
                    SevFd = SevFd,
                    Handle = handle,
                    Policy = policy,
                    PdhCert = ByteString.CopyFrom(sender.Bytes.Span),
                    Session = ByteString.CopyFrom(session.Span),
                },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Handle, reply => reply.Sev);
    }

    /// <summary>KVM_SEV_RECEIVE_UPDATE_DATA: a packet becomes guest memory.</summary>
    /// <param name="header">52 bytes.</param>
    /// <param name="packet">As SEND_UPDATE_DATA gave it.</param>
    /// <param name="guestUaddr">User address of guest memory, within a page.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevReceiveUpdateDataResponse, long> ReceiveUpdateDataAsync(
        ReadOnlyMemory<byte> header, ReadOnlyMemory<byte> packet, ulong guestUaddr, CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_RECEIVE_UPDATE_DATA",
            Stub.SevReceiveUpdateDataAsync(
                new SevReceiveUpdateDataRequest
                {
                    Host = Host,
                    Pid = Pid,
                    Fd = Fd,
                    SevFd = SevFd,
                    Header = ByteString.CopyFrom(header.Span),
                    Packet = ByteString.CopyFrom(packet.Span),
                    GuestUaddr = guestUaddr,
                    GuestLen = (uint)packet.Length,
                },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>KVM_SEV_RECEIVE_FINISH: the guest can run here.</summary>
    public KvmCall<SevReceiveFinishResponse, long> ReceiveFinishAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_RECEIVE_FINISH",
            Stub.SevReceiveFinishAsync(new SevReceiveFinishRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);
}
