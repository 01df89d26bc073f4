using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// A VM descriptor: vCPUs, memory slots, attributes, guest_memfds. The commands of an SNP launch are on <see cref="SnpLaunch"/>, which is made from a VM and a
/// /dev/sev descriptor. Closing it does not end the VM while a vCPU or guest_memfd is open.
/// </summary>
public sealed partial class Vm : RemoteFd
{
    internal Vm(RemoteProcess process, int fd)
        : base(process, fd)
    {
    }

    /// <summary>The SNP launch commands of this VM, issued with <paramref name="sev"/> as sev_fd.</summary>
    public SnpLaunch SnpLaunch(SevDevice sev)
    {
        ArgumentNullException.ThrowIfNull(sev);
        return new SnpLaunch(this, sev);
    }

    /// <summary>The SEV and SEV-ES launch commands of this VM, issued with <paramref name="sev"/> as sev_fd.</summary>
    public SevLaunch SevLaunch(SevDevice sev)
    {
        ArgumentNullException.ThrowIfNull(sev);
        return new SevLaunch(this, sev);
    }

    /// <summary>The commands by which a SEV guest goes to another host, issued with <paramref name="sev"/> as sev_fd.</summary>
    public SevMigration SevMigration(SevDevice sev)
    {
        ArgumentNullException.ThrowIfNull(sev);
        return new SevMigration(this, sev);
    }

    /// <summary>The launch commands of a TD.</summary>
    public TdxLaunch TdxLaunch() => new(this);

    /// <summary>Attestation of this VM's guest, once it is launched.</summary>
    public Attestation.GuestAttestation Attestation => new(this);

    /// <summary>KVM_CREATE_VCPU. EINVAL for an id beyond the limit, EEXIST for one that is in use.</summary>
    public KvmCall<CreateVcpuResponse, Vcpu> CreateVcpuAsync(ulong vcpuId, CancellationToken cancellation = default) =>
        Call(
            "KVM_CREATE_VCPU",
            Stubs.Vm.CreateVcpuAsync(new CreateVcpuRequest { Host = HostId, Pid = Pid, Fd = Fd, VcpuId = vcpuId }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => new Vcpu(Process, (int)reply.Outcome.Value, vcpuId));

    /// <summary>KVM_SET_USER_MEMORY_REGION.</summary>
    public KvmCall<SetUserMemoryRegionResponse, long> SetUserMemoryRegionAsync(KvmUserspaceMemoryRegion region, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_USER_MEMORY_REGION",
            Stubs.Vm.SetUserMemoryRegionAsync(
                new SetUserMemoryRegionRequest { Host = HostId, Pid = Pid, Fd = Fd, Region = region }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_SET_USER_MEMORY_REGION2.</summary>
    public KvmCall<SetUserMemoryRegion2Response, long> SetUserMemoryRegion2Async(KvmUserspaceMemoryRegion2 region, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_USER_MEMORY_REGION2",
            Stubs.Vm.SetUserMemoryRegion2Async(
                new SetUserMemoryRegion2Request { Host = HostId, Pid = Pid, Fd = Fd, Region = region }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES.</summary>
    /// <param name="address">Guest physical address, bytes.</param>
    /// <param name="size">Bytes.</param>
    /// <param name="attributes">0 for shared, <see cref="KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE"/> for private.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SetMemoryAttributesResponse, long> SetMemoryAttributesAsync(
        ulong address, ulong size, ulong attributes, CancellationToken cancellation = default) =>
        SetMemoryAttributesAsync(new KvmMemoryAttributes { Address = address, Size = size, Attributes = attributes }, cancellation);

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES with every field of its argument.</summary>
    public KvmCall<SetMemoryAttributesResponse, long> SetMemoryAttributesAsync(KvmMemoryAttributes attributes, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_MEMORY_ATTRIBUTES",
            Stubs.Vm.SetMemoryAttributesAsync(
                new SetMemoryAttributesRequest { Host = HostId, Pid = Pid, Fd = Fd, Attributes = attributes }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES, in profiles RM22 and GM23; the result is the mask.</summary>
    public KvmCall<GetSupportedMemoryAttributesResponse, ulong> GetSupportedMemoryAttributesAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES",
            Stubs.Vm.GetSupportedMemoryAttributesAsync(
                new GetSupportedMemoryAttributesRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.Attributes);

    /// <summary>KVM_CREATE_GUEST_MEMFD.</summary>
    /// <param name="size">Bytes, a multiple of the page size.</param>
    /// <param name="flags">GUEST_MEMFD_FLAG_*.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<CreateGuestMemfdResponse, GuestMemfd> CreateGuestMemfdAsync(ulong size, ulong flags = 0, CancellationToken cancellation = default) =>
        Call(
            "KVM_CREATE_GUEST_MEMFD",
            Stubs.Vm.CreateGuestMemfdAsync(
                new CreateGuestMemfdRequest { Host = HostId, Pid = Pid, Fd = Fd, GuestMemfd = new KvmCreateGuestMemfd { Size = size, Flags = flags } },
                cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => new GuestMemfd(Process, (int)reply.Outcome.Value, size));

    /// <summary>KVM_CHECK_EXTENSION for this VM.</summary>
    public KvmCall<CheckExtensionResponse, long> CheckExtensionAsync(ulong cap, CancellationToken cancellation = default) =>
        Call(
            "KVM_CHECK_EXTENSION",
            Stubs.Kvm.CheckExtensionAsync(new CheckExtensionRequest { Host = HostId, Pid = Pid, Fd = Fd, Cap = cap }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_ENABLE_CAP.</summary>
    public KvmCall<EnableCapResponse, long> EnableCapAsync(KvmEnableCap cap, CancellationToken cancellation = default) =>
        Call(
            "KVM_ENABLE_CAP",
            Stubs.Vm.EnableCapAsync(new EnableCapRequest { Host = HostId, Pid = Pid, Fd = Fd, EnableCap = cap }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: this VM becomes a mirror, with the key of a SEV guest. Before it has vCPUs.</summary>
    public KvmCall<EnableCapResponse, long> CopyEncContextFromAsync(Vm source, CancellationToken cancellation = default) =>
        EnableEncContextCap(KernelNumbers.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, source, cancellation);

    /// <summary>KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: a SEV guest moves into this VM, and leaves a dead one behind.</summary>
    public KvmCall<EnableCapResponse, long> MoveEncContextFromAsync(Vm source, CancellationToken cancellation = default) =>
        EnableEncContextCap(KernelNumbers.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM, source, cancellation);

    private KvmCall<EnableCapResponse, long> EnableEncContextCap(ulong cap, Vm source, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(source);
        return EnableCapAsync(new KvmEnableCap { Cap = (uint)cap, Args = { (ulong)source.Fd } }, cancellation);
    }

    /// <summary>KVM_CREATE_IRQCHIP. For local APICs alone, enable KVM_CAP_SPLIT_IRQCHIP instead (<see cref="EnableSplitIrqchipAsync"/>).</summary>
    public KvmCall<CreateIrqchipResponse, long> CreateIrqchipAsync(CancellationToken cancellation = default) =>
        Call("KVM_CREATE_IRQCHIP", Stubs.Vm.CreateIrqchipAsync(new CreateIrqchipRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation), reply => reply.Outcome);

    /// <summary>KVM_ENABLE_CAP of KVM_CAP_SPLIT_IRQCHIP: local APICs in the kernel, the rest in user space. TDs need it.</summary>
    /// <param name="pins">IOAPIC pins that routes are kept for, at most 24.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<EnableCapResponse, long> EnableSplitIrqchipAsync(ulong pins = 24, CancellationToken cancellation = default) =>
        EnableCapAsync(new KvmEnableCap { Cap = (uint)KernelNumbers.KVM_CAP_SPLIT_IRQCHIP, Args = { pins } }, cancellation);

    /// <summary>KVM_SET_TSC_KHZ: the frequency of vCPUs that are made later, and of a TD. 0 is the host's.</summary>
    public KvmCall<SetTscKhzResponse, long> SetTscKhzAsync(ulong khz, CancellationToken cancellation = default) =>
        Call("KVM_SET_TSC_KHZ", Stubs.Vm.SetTscKhzAsync(new SetTscKhzRequest { Host = HostId, Pid = Pid, Fd = Fd, Khz = khz }, cancellationToken: cancellation), reply => reply.Outcome);

    /// <summary>KVM_GET_TSC_KHZ.</summary>
    public KvmCall<GetTscKhzResponse, long> GetTscKhzAsync(CancellationToken cancellation = default) =>
        Call("KVM_GET_TSC_KHZ", Stubs.Vm.GetTscKhzAsync(new GetTscKhzRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation), reply => reply.Outcome);

    /// <summary>The state of the VM as ranges: slots, attributes, private pages, vCPUs, SEV state. No kernel call; nothing changes.</summary>
    public Task<DescribeVmResponse> DescribeAsync(CancellationToken cancellation = default) =>
        Process.Connection.Call(
            Stubs.Inspect.DescribeVmAsync(new DescribeVmRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation));

    /// <summary>The guest physical space as runs: slot, backing, attribute, stage 2, RMP.</summary>
    public IAsyncEnumerable<GpaRun> MapAsync(ulong start = 0, ulong end = 0, CancellationToken cancellation = default) =>
        Process.Host.Inspect.MapAsync(Pid, Fd, start, end, cancellation);

    /// <summary>Everything about one guest physical page, and why it is mapped as it is.</summary>
    public Task<ExplainGpaResponse> ExplainGpaAsync(ulong gpa, CancellationToken cancellation = default) =>
        Process.Host.Inspect.ExplainGpaAsync(Pid, Fd, gpa, cancellation);

    internal Task<ListTranscriptResponse> ListTranscript(ulong start, CancellationToken cancellation) =>
        Process.Connection.Call(
            Stubs.Inspect.ListTranscriptAsync(
                new ListTranscriptRequest { Host = HostId, Pid = Pid, Fd = Fd, Start = start }, cancellationToken: cancellation));
}
