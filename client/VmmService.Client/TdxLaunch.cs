using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// The commands of KVM_MEMORY_ENCRYPT_OP that launch a TD, and what the TDX module knows of it. Each method is one command, except <see cref="AddAsync"/>, which repeats
/// its command as VMMs do. Errors carry the module's completion status in <see cref="KvmException.HwError"/>, where the kernel tells it.
/// </summary>
public sealed class TdxLaunch
{
    // A kernel may answer EAGAIN or EBUSY for a while; a VMM tries again, and so do we, but not for ever.
    private const int MaxRetriesInARow = 32;

    private readonly Vm _vm;

    internal TdxLaunch(Vm vm) => _vm = vm;

    private TdxService.TdxServiceClient Stub => _vm.Process.Connection.Stubs.Tdx;

    private string Host => _vm.Process.Host.Id;

    private uint Pid => _vm.Process.Pid;

    /// <summary>KVM_TDX_CAPABILITIES.</summary>
    public KvmCall<TdxCapabilitiesResponse, KvmTdxCapabilities> CapabilitiesAsync(uint flags = 0, CancellationToken cancellation = default) =>
        new(
            "KVM_TDX_CAPABILITIES",
            _vm.Process.Connection.Call(Stub.TdxCapabilitiesAsync(
                new TdxCapabilitiesRequest { Host = Host, Pid = Pid, Fd = _vm.Fd, Flags = flags }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Capabilities,
            hwError: reply => reply.Tdx);

    /// <summary>KVM_TDX_INIT_VM.</summary>
    /// <param name="init">Attributes, state components, owner's registers, CPUID; leaf 0x80000008 has to be there.</param>
    /// <param name="flags">Must be 0.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<TdxInitVmResponse, long> InitVmAsync(KvmTdxInitVm init, uint flags = 0, CancellationToken cancellation = default) =>
        new(
            "KVM_TDX_INIT_VM",
            _vm.Process.Connection.Call(Stub.TdxInitVmAsync(
                new TdxInitVmRequest { Host = Host, Pid = Pid, Fd = _vm.Fd, Flags = flags, Init = init }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value,
            hwError: reply => reply.Tdx);

    /// <summary>KVM_TDX_INIT_VCPU. The vCPU's CPUID has to have x2APIC by then.</summary>
    /// <param name="vcpu">A vCPU of this VM.</param>
    /// <param name="initialRcx">Its RCX and R8 at the reset vector: where firmware looks for the TD HOB.</param>
    /// <param name="flags">Must be 0.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<TdxInitVcpuResponse, long> InitVcpuAsync(Vcpu vcpu, ulong initialRcx, uint flags = 0, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(vcpu);
        return new(
            "KVM_TDX_INIT_VCPU",
            _vm.Process.Connection.Call(Stub.TdxInitVcpuAsync(
                new TdxInitVcpuRequest { Host = Host, Pid = Pid, Fd = vcpu.Fd, Flags = flags, InitialRcx = initialRcx }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value);
    }

    /// <summary>KVM_TDX_INIT_MEM_REGION, once. The result is the structure as the kernel wrote it back: what is left to do; it is in the reply after errors too.</summary>
    /// <param name="vcpu">A vCPU that is initialised.</param>
    /// <param name="region">Source, gpa and pages.</param>
    /// <param name="measure">KVM_TDX_MEASURE_MEMORY_REGION: the content is measured too.</param>
    /// <param name="content">Content to use instead of the region's source.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<TdxInitMemRegionResponse, KvmTdxInitMemRegion> InitMemRegionAsync(
        Vcpu vcpu, KvmTdxInitMemRegion region, bool measure = true, Content? content = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(vcpu);
        return new(
            "KVM_TDX_INIT_MEM_REGION",
            _vm.Process.Connection.Call(Stub.TdxInitMemRegionAsync(
                new TdxInitMemRegionRequest { Host = Host, Pid = Pid, Fd = vcpu.Fd, Flags = measure ? 1u : 0, Region = region, Content = content }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Region);
    }

    /// <summary>KVM_TDX_INIT_MEM_REGION, repeated until nothing is left. EAGAIN, EBUSY and EINTR are tried again some times, from where the kernel stopped.</summary>
    /// <exception cref="KvmException">The kernel refused a page; pages before it are measured.</exception>
    public async Task AddAsync(Vcpu vcpu, KvmTdxInitMemRegion region, bool measure = true, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(region);
        KvmTdxInitMemRegion rest = region;
        for (int retries = 0; rest.NrPages > 0;)
        {
            KvmCall<TdxInitMemRegionResponse, KvmTdxInitMemRegion> call = InitMemRegionAsync(vcpu, rest, measure, cancellation: cancellation);
            TdxInitMemRegionResponse reply = await call.Reply;
            bool again = reply.Outcome.Errno is KernelNumbers.EAGAIN or KernelNumbers.EBUSY or KernelNumbers.EINTR && ++retries <= MaxRetriesInARow;
            if (!again)
            {
                await call;
            }
            rest = reply.Region;
        }
    }

    /// <summary>KVM_TDX_FINALIZE_VM. The result is MRTD, 96 hexadecimal digits.</summary>
    public KvmCall<TdxFinalizeVmResponse, string> FinalizeVmAsync(CancellationToken cancellation = default) =>
        new(
            "KVM_TDX_FINALIZE_VM",
            _vm.Process.Connection.Call(Stub.TdxFinalizeVmAsync(new TdxFinalizeVmRequest { Host = Host, Pid = Pid, Fd = _vm.Fd }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Mrtd,
            hwError: reply => reply.Tdx);

    /// <summary>KVM_TDX_GET_CPUID: what the TD's vCPU sees, for KVM_SET_CPUID2.</summary>
    public KvmCall<TdxGetCpuidResponse, IReadOnlyList<KvmCpuidEntry2>> GetCpuidAsync(Vcpu vcpu, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(vcpu);
        return new(
            "KVM_TDX_GET_CPUID",
            _vm.Process.Connection.Call(Stub.TdxGetCpuidAsync(new TdxGetCpuidRequest { Host = Host, Pid = Pid, Fd = vcpu.Fd }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => [.. reply.Cpuid]);
    }

    /// <summary>What the TDX module has of the TD: no kernel call, nothing changes.</summary>
    public Task<DescribeTdResponse> DescribeAsync(CancellationToken cancellation = default) =>
        _vm.Process.Connection.Call(Stub.DescribeTdAsync(new DescribeTdRequest { Host = Host, Pid = Pid, Fd = _vm.Fd }, cancellationToken: cancellation));

    /// <summary>Every call that MRTD measured so far, in order.</summary>
    public async IAsyncEnumerable<MrtdRecord> Transcript([System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancellation = default)
    {
        for (ulong next = 0, total = 1; next < total;)
        {
            ListMrtdTranscriptResponse page = await _vm.Process.Connection.Call(Stub.ListMrtdTranscriptAsync(
                new ListMrtdTranscriptRequest { Host = Host, Pid = Pid, Fd = _vm.Fd, Start = next }, cancellationToken: cancellation));
            foreach (MrtdRecord record in page.Records)
            {
                yield return record;
            }
            next += (ulong)page.Records.Count;
            total = page.Records.Count == 0 ? 0 : page.Total;
        }
    }

    /// <summary>Pages of the Secure EPT that are not free, in order of addresses.</summary>
    /// <param name="start">First byte looked at.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public async Task<IReadOnlyList<SeptPage>> SeptPagesAsync(ulong start = 0, CancellationToken cancellation = default) =>
        (await _vm.Process.Connection.Call(Stub.ListSeptPagesAsync(
            new ListSeptPagesRequest { Host = Host, Pid = Pid, Fd = _vm.Fd, Start = start }, cancellationToken: cancellation))).Pages;
}
