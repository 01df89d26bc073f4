using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// A vCPU descriptor: what it runs, and registers as far as a launch needs them. Once its state is encrypted (SNP_LAUNCH_FINISH) register calls answer EINVAL.
/// </summary>
public sealed partial class Vcpu : RemoteFd
{
    internal Vcpu(RemoteProcess process, int fd, ulong vcpuId)
        : base(process, fd) => VcpuId = vcpuId;

    /// <summary>The id given to KVM_CREATE_VCPU (the APIC id).</summary>
    public ulong VcpuId { get; }

    /// <summary>KVM_GET_REGS.</summary>
    public KvmCall<GetRegsResponse, KvmRegs> GetRegsAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_REGS",
            Stubs.Vcpu.GetRegsAsync(new GetRegsRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.Regs);

    /// <summary>KVM_SET_REGS.</summary>
    public KvmCall<SetRegsResponse, long> SetRegsAsync(KvmRegs regs, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_REGS",
            Stubs.Vcpu.SetRegsAsync(new SetRegsRequest { Host = HostId, Pid = Pid, Fd = Fd, Regs = regs }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_SREGS.</summary>
    public KvmCall<GetSregsResponse, KvmSregs> GetSregsAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_SREGS",
            Stubs.Vcpu.GetSregsAsync(new GetSregsRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.Sregs);

    /// <summary>KVM_SET_SREGS.</summary>
    public KvmCall<SetSregsResponse, long> SetSregsAsync(KvmSregs sregs, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_SREGS",
            Stubs.Vcpu.SetSregsAsync(new SetSregsRequest { Host = HostId, Pid = Pid, Fd = Fd, Sregs = sregs }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_FPU.</summary>
    public KvmCall<GetFpuResponse, KvmFpu> GetFpuAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_FPU",
            Stubs.Vcpu.GetFpuAsync(new GetFpuRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.Fpu);

    /// <summary>KVM_SET_FPU.</summary>
    public KvmCall<SetFpuResponse, long> SetFpuAsync(KvmFpu fpu, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_FPU",
            Stubs.Vcpu.SetFpuAsync(new SetFpuRequest { Host = HostId, Pid = Pid, Fd = Fd, Fpu = fpu }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_DEBUGREGS.</summary>
    public KvmCall<GetDebugregsResponse, KvmDebugregs> GetDebugregsAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_DEBUGREGS",
            Stubs.Vcpu.GetDebugregsAsync(new GetDebugregsRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.Debugregs);

    /// <summary>KVM_SET_DEBUGREGS.</summary>
    public KvmCall<SetDebugregsResponse, long> SetDebugregsAsync(KvmDebugregs debugregs, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_DEBUGREGS",
            Stubs.Vcpu.SetDebugregsAsync(new SetDebugregsRequest { Host = HostId, Pid = Pid, Fd = Fd, Debugregs = debugregs }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_SET_GUEST_DEBUG. A vCPU that is being debugged cannot be encrypted.</summary>
    /// <param name="control">KVM_GUESTDBG_*; 0 switches it off.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SetGuestDebugResponse, long> SetGuestDebugAsync(uint control, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_GUEST_DEBUG",
            Stubs.Vcpu.SetGuestDebugAsync(new SetGuestDebugRequest { Host = HostId, Pid = Pid, Fd = Fd, Control = control }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_MSRS. The kernel stops at the first MSR that it does not know; what came before is the result.</summary>
    public KvmCall<GetMsrsResponse, IReadOnlyList<KvmMsrEntry>> GetMsrsAsync(IEnumerable<uint> indices, CancellationToken cancellation = default)
    {
        var request = new GetMsrsRequest { Host = HostId, Pid = Pid, Fd = Fd };
        request.Indices.AddRange(indices);
        return Call(
            "KVM_GET_MSRS",
            Stubs.Vcpu.GetMsrsAsync(request, cancellationToken: cancellation),
            reply => reply.Outcome,
            IReadOnlyList<KvmMsrEntry> (reply) => reply.Entries);
    }

    /// <summary>KVM_SET_MSRS. The result is how many were set: the kernel stops at the first that it refuses, without an errno.</summary>
    public KvmCall<SetMsrsResponse, long> SetMsrsAsync(IEnumerable<KvmMsrEntry> entries, CancellationToken cancellation = default)
    {
        var request = new SetMsrsRequest { Host = HostId, Pid = Pid, Fd = Fd };
        request.Entries.AddRange(entries);
        return Call("KVM_SET_MSRS", Stubs.Vcpu.SetMsrsAsync(request, cancellationToken: cancellation), reply => reply.Outcome);
    }

    /// <summary>KVM_GET_XSAVE: 4096 bytes, the XSAVE area in standard format.</summary>
    public KvmCall<GetXsaveResponse, ReadOnlyMemory<byte>> GetXsaveAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_XSAVE",
            Stubs.Vcpu.GetXsaveAsync(new GetXsaveRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            reply => reply.Region.Memory);

    /// <summary>KVM_SET_XSAVE.</summary>
    /// <param name="region">4096 bytes, the XSAVE area in standard format.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<SetXsaveResponse, long> SetXsaveAsync(ReadOnlyMemory<byte> region, CancellationToken cancellation = default) =>
        Call(
            "KVM_SET_XSAVE",
            Stubs.Vcpu.SetXsaveAsync(
                new SetXsaveRequest { Host = HostId, Pid = Pid, Fd = Fd, Region = UnsafeByteOperations.UnsafeWrap(region) }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_GET_XCRS.</summary>
    public KvmCall<GetXcrsResponse, IReadOnlyList<KvmXcr>> GetXcrsAsync(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_XCRS",
            Stubs.Vcpu.GetXcrsAsync(new GetXcrsRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            IReadOnlyList<KvmXcr> (reply) => reply.Xcrs);

    /// <summary>KVM_SET_XCRS.</summary>
    public KvmCall<SetXcrsResponse, long> SetXcrsAsync(IEnumerable<KvmXcr> xcrs, CancellationToken cancellation = default)
    {
        var request = new SetXcrsRequest { Host = HostId, Pid = Pid, Fd = Fd };
        request.Xcrs.AddRange(xcrs);
        return Call("KVM_SET_XCRS", Stubs.Vcpu.SetXcrsAsync(request, cancellationToken: cancellation), reply => reply.Outcome);
    }

    /// <summary>KVM_GET_CPUID2.</summary>
    public KvmCall<GetCpuid2Response, IReadOnlyList<KvmCpuidEntry2>> GetCpuid2Async(CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_CPUID2",
            Stubs.Vcpu.GetCpuid2Async(new GetCpuid2Request { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation),
            reply => reply.Outcome,
            IReadOnlyList<KvmCpuidEntry2> (reply) => reply.Entries);

    /// <summary>KVM_SET_CPUID2.</summary>
    public KvmCall<SetCpuid2Response, long> SetCpuid2Async(IEnumerable<KvmCpuidEntry2> entries, CancellationToken cancellation = default)
    {
        var request = new SetCpuid2Request { Host = HostId, Pid = Pid, Fd = Fd };
        request.Entries.AddRange(entries);
        return Call("KVM_SET_CPUID2", Stubs.Vcpu.SetCpuid2Async(request, cancellationToken: cancellation), reply => reply.Outcome);
    }

    /// <summary>KVM_SET_TSC_KHZ of this vCPU; EINVAL for one of a TD. 0 is the host's.</summary>
    public KvmCall<SetTscKhzResponse, long> SetTscKhzAsync(ulong khz, CancellationToken cancellation = default) =>
        Call("KVM_SET_TSC_KHZ", Stubs.Vm.SetTscKhzAsync(new SetTscKhzRequest { Host = HostId, Pid = Pid, Fd = Fd, Khz = khz }, cancellationToken: cancellation), reply => reply.Outcome);

    /// <summary>KVM_GET_TSC_KHZ of this vCPU.</summary>
    public KvmCall<GetTscKhzResponse, long> GetTscKhzAsync(CancellationToken cancellation = default) =>
        Call("KVM_GET_TSC_KHZ", Stubs.Vm.GetTscKhzAsync(new GetTscKhzRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation), reply => reply.Outcome);

    /// <summary>KVM_NMI: an NMI is pending for the guest until it is entered.</summary>
    public KvmCall<NmiResponse, long> NmiAsync(CancellationToken cancellation = default) =>
        Call("KVM_NMI", Stubs.Vcpu.NmiAsync(new NmiRequest { Host = HostId, Pid = Pid, Fd = Fd }, cancellationToken: cancellation), reply => reply.Outcome);
}
