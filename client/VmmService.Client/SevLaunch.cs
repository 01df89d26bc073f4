using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// The commands of KVM_MEMORY_ENCRYPT_OP that launch a SEV or SEV-ES guest in place: memory is measured and encrypted where it is. Each method is one command. Errors carry
/// the firmware's status in <see cref="KvmException.FirmwareStatus"/>.
/// </summary>
public sealed class SevLaunch : SevGuestCommands
{
    internal SevLaunch(Vm vm, SevDevice sev)
        : base(vm, sev)
    {
    }

    /// <summary>KVM_SEV_INIT or KVM_SEV_ES_INIT, of a VM of the default type. Typed VMs use <see cref="SnpLaunch.Init2Async"/>.</summary>
    public KvmCall<SevInitResponse, long> InitAsync(bool es, CancellationToken cancellation = default) =>
        Call(
            es ? "KVM_SEV_ES_INIT" : "KVM_SEV_INIT",
            Stub.SevInitAsync(new SevInitRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd, Es = es }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>KVM_SEV_LAUNCH_START. The result is firmware's handle.</summary>
    /// <param name="policy">NODBG 1, NOKS 2, ES 4 and so on.</param>
    /// <param name="handle">0 for a key of its own, or the guest whose key to share.</param>
    /// <param name="dhCertificate">The guest owner's, 2084 bytes, with a session.</param>
    /// <param name="session">128 bytes.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevLaunchStartResponse, uint> StartAsync(
        uint policy, uint handle = 0, ReadOnlyMemory<byte> dhCertificate = default, ReadOnlyMemory<byte> session = default, CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_LAUNCH_START",
            Stub.SevLaunchStartAsync(
                new SevLaunchStartRequest
                {
                    Host = Host,
                    Pid = Pid,
                    Fd = Fd,
                    SevFd = SevFd,
                    Policy = policy,
                    Handle = handle,
                    DhCert = ByteString.CopyFrom(dhCertificate.Span),
                    Session = ByteString.CopyFrom(session.Span),
                },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Handle, reply => reply.Sev);

    /// <summary>KVM_SEV_LAUNCH_UPDATE_DATA. The memory becomes ciphertext.</summary>
    /// <param name="uaddr">User address, a multiple of 16.</param>
    /// <param name="len">Bytes, a multiple of 16.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevLaunchUpdateDataResponse, long> UpdateDataAsync(ulong uaddr, uint len, CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_LAUNCH_UPDATE_DATA",
            Stub.SevLaunchUpdateDataAsync(
                new SevLaunchUpdateDataRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd, Uaddr = uaddr, Len = len }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>KVM_SEV_LAUNCH_UPDATE_VMSA: the state of every vCPU.</summary>
    public KvmCall<SevLaunchUpdateVmsaResponse, long> UpdateVmsaAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_LAUNCH_UPDATE_VMSA",
            Stub.SevLaunchUpdateVmsaAsync(new SevLaunchUpdateVmsaRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>KVM_SEV_LAUNCH_MEASURE: the measurement (32 bytes) and its nonce (16 bytes).</summary>
    /// <param name="len">Bytes of the buffer; 0 asks for the size, which is an error with the size in the reply.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevLaunchMeasureResponse, SevLaunchMeasureResponse> MeasureAsync(uint len = 48, CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_LAUNCH_MEASURE",
            Stub.SevLaunchMeasureAsync(new SevLaunchMeasureRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd, Len = len }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply, reply => reply.Sev);

    /// <summary>KVM_SEV_GET_ATTESTATION_REPORT: nonce, launch digest and policy, signed by the platform endorsement key.</summary>
    /// <param name="nonce">16 bytes, or empty for zeros.</param>
    /// <param name="len">Bytes of the buffer; 0 asks for the size, which is an error with the size in the reply.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevGetAttestationReportResponse, ReadOnlyMemory<byte>> GetAttestationReportAsync(
        ReadOnlyMemory<byte> nonce = default, uint len = 208, CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_GET_ATTESTATION_REPORT",
            Stub.SevGetAttestationReportAsync(
                new SevGetAttestationReportRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd, Mnonce = ByteString.CopyFrom(nonce.Span), Len = len },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Report.Memory, reply => reply.Sev);

    /// <summary>KVM_SEV_LAUNCH_SECRET: firmware decrypts the packet into guest memory.</summary>
    /// <param name="header">52 bytes.</param>
    /// <param name="body">The encrypted secret, a multiple of 16 bytes.</param>
    /// <param name="guestUaddr">User address of the guest memory that it goes to.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SevLaunchSecretResponse, long> SecretAsync(
        ReadOnlyMemory<byte> header, ReadOnlyMemory<byte> body, ulong guestUaddr, CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_LAUNCH_SECRET",
            Stub.SevLaunchSecretAsync(
                new SevLaunchSecretRequest
                {
                    Host = Host,
                    Pid = Pid,
                    Fd = Fd,
                    SevFd = SevFd,
                    Header = ByteString.CopyFrom(header.Span),
                    Body = ByteString.CopyFrom(body.Span),
                    GuestUaddr = guestUaddr,
                    GuestLen = (uint)body.Length,
                },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>KVM_SEV_LAUNCH_FINISH.</summary>
    public KvmCall<SevLaunchFinishResponse, long> FinishAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_LAUNCH_FINISH",
            Stub.SevLaunchFinishAsync(new SevLaunchFinishRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>KVM_SEV_GUEST_STATUS, with the launch digest so far.</summary>
    public KvmCall<SevGuestStatusResponse, SevGuestStatusResponse> GuestStatusAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_SEV_GUEST_STATUS",
            Stub.SevGuestStatusAsync(new SevGuestStatusRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply, reply => reply.Sev);

    /// <summary>KVM_SEV_DBG_DECRYPT, or KVM_SEV_DBG_ENCRYPT.</summary>
    public KvmCall<SevDebugResponse, long> DebugAsync(bool encrypt, ulong srcUaddr, ulong dstUaddr, uint len, CancellationToken cancellation = default) =>
        Call(
            encrypt ? "KVM_SEV_DBG_ENCRYPT" : "KVM_SEV_DBG_DECRYPT",
            Stub.SevDebugAsync(
                new SevDebugRequest { Host = Host, Pid = Pid, Fd = Fd, SevFd = SevFd, Encrypt = encrypt, SrcUaddr = srcUaddr, DstUaddr = dstUaddr, Len = len },
                cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, reply => reply.Sev);

    /// <summary>KVM_MEMORY_ENCRYPT_REG_REGION, or UNREG_REGION.</summary>
    public KvmCall<EncryptRegionResponse, long> EncryptRegionAsync(bool unregister, ulong addr, ulong size, CancellationToken cancellation = default) =>
        Call(
            unregister ? "KVM_MEMORY_ENCRYPT_UNREG_REGION" : "KVM_MEMORY_ENCRYPT_REG_REGION",
            Stub.EncryptRegionAsync(
                new EncryptRegionRequest { Host = Host, Pid = Pid, Fd = Fd, Unregister = unregister, Addr = addr, Size = size }, cancellationToken: cancellation),
            reply => reply.Outcome, reply => reply.Outcome.Value, _ => null);
}
