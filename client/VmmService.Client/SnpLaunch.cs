using System.Runtime.CompilerServices;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// The commands of KVM_MEMORY_ENCRYPT_OP that launch an SNP guest, and what was measured so far. Each method is one command, except
/// <see cref="UpdateAsync"/>, which repeats its command as VMMs do. Errors carry the firmware's status in <see cref="KvmException.FirmwareStatus"/>.
/// </summary>
public sealed class SnpLaunch
{
    // A kernel may answer EAGAIN for a while; a VMM tries again, and so do we, but not for ever.
    private const int MaxEagainInARow = 32;

    private readonly Vm _vm;
    private readonly SevDevice _sev;

    internal SnpLaunch(Vm vm, SevDevice sev)
    {
        _vm = vm;
        _sev = sev;
    }

    private SevService.SevServiceClient Stub => _vm.Process.Connection.Stubs.Sev;

    /// <summary>KVM_SEV_INIT2.</summary>
    /// <param name="vmsaFeatures">SEV_FEATURES without bit 0: the kernel sets SNPActive itself and refuses it here (EINVAL).</param>
    /// <param name="ghcbVersion">0 lets the kernel choose (2).</param>
    /// <param name="flags">Must be 0.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<Init2Response, long> Init2Async(
        ulong vmsaFeatures = 0, uint ghcbVersion = 2, uint flags = 0, CancellationToken cancellation = default) =>
        new(
            "KVM_SEV_INIT2",
            _vm.Process.Connection.Call(Stub.Init2Async(
                new Init2Request
                {
                    Host = _vm.Process.Host.Id,
                    Pid = _vm.Process.Pid,
                    Fd = _vm.Fd,
                    SevFd = _sev.Fd,
                    Init = new KvmSevInit { VmsaFeatures = vmsaFeatures, GhcbVersion = ghcbVersion, Flags = flags },
                },
                cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value,
            reply => reply.Sev);

    /// <summary>KVM_SEV_SNP_ENABLE_REQ_CERTS: extended guest requests exit to the VMM for certificates. Before the first vCPU.</summary>
    public KvmCall<SnpEnableReqCertsResponse, long> EnableReqCertsAsync(CancellationToken cancellation = default) =>
        new(
            "KVM_SEV_SNP_ENABLE_REQ_CERTS",
            _vm.Process.Connection.Call(Stub.SnpEnableReqCertsAsync(
                new SnpEnableReqCertsRequest { Host = _vm.Process.Host.Id, Pid = _vm.Process.Pid, Fd = _vm.Fd, SevFd = _sev.Fd }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value,
            reply => reply.Sev);

    /// <summary>KVM_SEV_SNP_LAUNCH_START.</summary>
    /// <param name="policy">Guest policy: bit 17 must be set, bit 16 allows SMT.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SnpLaunchStartResponse, long> StartAsync(ulong policy = 0x30000, CancellationToken cancellation = default) =>
        StartAsync(new KvmSevSnpLaunchStart { Policy = policy }, cancellation);

    /// <summary>KVM_SEV_SNP_LAUNCH_START with every field of its argument.</summary>
    public KvmCall<SnpLaunchStartResponse, long> StartAsync(KvmSevSnpLaunchStart start, CancellationToken cancellation = default) =>
        new(
            "KVM_SEV_SNP_LAUNCH_START",
            _vm.Process.Connection.Call(Stub.SnpLaunchStartAsync(
                new SnpLaunchStartRequest { Host = _vm.Process.Host.Id, Pid = _vm.Process.Pid, Fd = _vm.Fd, SevFd = _sev.Fd, Start = start },
                cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value,
            reply => reply.Sev);

    /// <summary>KVM_SEV_SNP_LAUNCH_UPDATE, once. The result is the structure as the kernel wrote it back: what is left to do.</summary>
    public KvmCall<SnpLaunchUpdateResponse, KvmSevSnpLaunchUpdate> UpdateOnceAsync(
        KvmSevSnpLaunchUpdate update, Content? content = null, CancellationToken cancellation = default) =>
        new(
            "KVM_SEV_SNP_LAUNCH_UPDATE",
            _vm.Process.Connection.Call(Stub.SnpLaunchUpdateAsync(
                new SnpLaunchUpdateRequest
                {
                    Host = _vm.Process.Host.Id,
                    Pid = _vm.Process.Pid,
                    Fd = _vm.Fd,
                    SevFd = _sev.Fd,
                    Update = update,
                    Content = content,
                },
                cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Update,
            reply => reply.Sev);

    /// <summary>KVM_SEV_SNP_LAUNCH_UPDATE, repeated until nothing is left, from memory of the process.</summary>
    /// <param name="update">What to add; it is not changed.</param>
    /// <param name="progress">Pages done so far.</param>
    /// <param name="cancellation">Stops between two calls.</param>
    /// <exception cref="KvmException">The kernel refused a page; pages before it are measured. EAGAIN is tried again some times.</exception>
    public async Task UpdateAsync(KvmSevSnpLaunchUpdate update, IProgress<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(update);
        KvmSevSnpLaunchUpdate rest = update;
        int eagainInARow = 0;
        do
        {
            KvmSevSnpLaunchUpdate left;
            try
            {
                left = await UpdateOnceAsync(rest, cancellation: cancellation);
            }
            catch (KvmException exception) when (exception.Errno == KernelNumbers.EAGAIN && ++eagainInARow <= MaxEagainInARow)
            {
                continue;
            }

            eagainInARow = 0;
            if (left.Len >= rest.Len && rest.Len != 0)
                throw new InvalidOperationException($"KVM_SEV_SNP_LAUNCH_UPDATE succeeded without doing a page; 0x{rest.Len:x} bytes from gfn 0x{rest.GfnStart:x} are left");

            rest = left;
            progress?.Report((update.Len - rest.Len) / KernelNumbers.PAGE_SIZE);
        }
        while (rest.Len != 0);
    }

    /// <summary>KVM_SEV_SNP_LAUNCH_FINISH: measures the vCPUs and seals the guest. The result is the launch digest, 96 hexadecimal digits.</summary>
    /// <param name="finish">ID block, host data; null for none.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SnpLaunchFinishResponse, string> FinishAsync(KvmSevSnpLaunchFinish? finish = null, CancellationToken cancellation = default) =>
        new(
            "KVM_SEV_SNP_LAUNCH_FINISH",
            _vm.Process.Connection.Call(Stub.SnpLaunchFinishAsync(
                new SnpLaunchFinishRequest
                {
                    Host = _vm.Process.Host.Id,
                    Pid = _vm.Process.Pid,
                    Fd = _vm.Fd,
                    SevFd = _sev.Fd,
                    Finish = finish ?? new KvmSevSnpLaunchFinish(),
                },
                cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.LaunchDigest,
            reply => reply.Sev);

    /// <summary>Every measured step so far, in order.</summary>
    public async IAsyncEnumerable<TranscriptRecord> Transcript([EnumeratorCancellation] CancellationToken cancellation = default)
    {
        ulong next = 0;
        while (true)
        {
            ListTranscriptResponse page = await _vm.ListTranscript(next, cancellation);
            foreach (TranscriptRecord record in page.Records)
            {
                yield return record;
                next = record.Index + 1;
            }

            if (page.Records.Count == 0 || next >= page.Total)
                yield break;
        }
    }

    /// <summary>The launch digest so far, 96 hexadecimal digits; empty before SNP_LAUNCH_START.</summary>
    public async Task<string> CurrentDigestAsync(CancellationToken cancellation = default) =>
        (await _vm.DescribeAsync(cancellation)).Sev?.LaunchDigest ?? "";
}
