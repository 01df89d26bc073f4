using VmmService.V1;

namespace VmmService.Client;

/// <summary>A descriptor of /dev/kvm: what the kernel can do, and new VMs.</summary>
public sealed class Kvm : RemoteFd
{
    internal Kvm(RemoteProcess process, int fd)
        : base(process, fd)
    {
    }

    /// <summary>KVM_GET_API_VERSION; 12 on every kernel of today.</summary>
    public KvmCall<GetApiVersionResponse, long> GetApiVersionAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_API_VERSION",
            Stubs.Kvm.GetApiVersionAsync(new GetApiVersionRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_CHECK_EXTENSION for any VM. A capability that the kernel does not know is 0.</summary>
    /// <param name="cap">KVM_CAP_* number.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<CheckExtensionResponse, long> CheckExtensionAsync(ulong cap, CancellationToken cancellation = default) =>
        Call(
            "KVM_CHECK_EXTENSION",
            Stubs.Kvm.CheckExtensionAsync(new CheckExtensionRequest { Host = HostId, Pid = Pid, Fd = Fd, Cap = cap }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_VCPU_MMAP_SIZE, in bytes.</summary>
    public KvmCall<GetVcpuMmapSizeResponse, long> GetVcpuMmapSizeAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_VCPU_MMAP_SIZE",
            Stubs.Kvm.GetVcpuMmapSizeAsync(new GetVcpuMmapSizeRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_SUPPORTED_CPUID.</summary>
    public KvmCall<GetSupportedCpuidResponse, IReadOnlyList<KvmCpuidEntry2>> GetSupportedCpuidAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_SUPPORTED_CPUID",
            Stubs.Kvm.GetSupportedCpuidAsync(new GetSupportedCpuidRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            IReadOnlyList<KvmCpuidEntry2> (reply) => reply.Entries);

    /// <summary>KVM_HAS_DEVICE_ATTR. ENXIO where there is no such attribute.</summary>
    public KvmCall<HasDeviceAttrResponse, long> HasDeviceAttrAsync(uint group, ulong attr, CancellationToken cancellation = default) =>
        Call(
            "KVM_HAS_DEVICE_ATTR",
            Stubs.Kvm.HasDeviceAttrAsync(
                new HasDeviceAttrRequest { Host = HostId, Pid = Pid, Fd = Fd, Group = group, Attr = attr }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_DEVICE_ATTR; the result is what the kernel stored. ENXIO where there is no such attribute.</summary>
    public KvmCall<GetDeviceAttrResponse, ulong> GetDeviceAttrAsync(uint group, ulong attr, CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_DEVICE_ATTR",
            Stubs.Kvm.GetDeviceAttrAsync(
                new GetDeviceAttrRequest { Host = HostId, Pid = Pid, Fd = Fd, Group = group, Attr = attr }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.AttrValue);

    /// <summary>KVM_CREATE_VM. EINVAL for a type that this kernel does not offer.</summary>
    public KvmCall<CreateVmResponse, Vm> CreateVmAsync(VmType type, CancellationToken cancellation = default) =>
        CreateVm(new CreateVmRequest { VmType = type }, cancellation);

    /// <summary>KVM_CREATE_VM with the kernel's number of the type, whatever it is.</summary>
    public KvmCall<CreateVmResponse, Vm> CreateVmAsync(ulong rawType, CancellationToken cancellation = default) =>
        CreateVm(new CreateVmRequest { RawType = rawType }, cancellation);

    private KvmCall<CreateVmResponse, Vm> CreateVm(CreateVmRequest request, CancellationToken cancellation)
    {
        request.Host = HostId;
        request.Pid = Pid;
        request.Fd = Fd;
        return Call(
            "KVM_CREATE_VM",
            Stubs.Kvm.CreateVmAsync(request, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => new Vm(Process, (int)reply.Outcome.Value));
    }
}
