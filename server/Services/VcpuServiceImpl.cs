using Google.Protobuf;
using Grpc.Core;
using SimKvm.Abi;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.VcpuService: ioctls of the vCPU fd: registers here, running the guest in <c>VcpuServiceImpl.Run.cs</c>.</summary>
internal sealed partial class VcpuServiceImpl(HostRegistry hosts) : VcpuService.VcpuServiceBase
{
    private const int XsaveSize = 4096;

    // More than the kernel takes (E2BIG from 256 on), less than what would hurt.
    private const int MaxEntries = 1024;

    public override Task<NmiResponse> Nmi(NmiRequest request, ServerCallContext context) => Task.FromResult(new NmiResponse
    {
        Outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_NMI, 0))),
    });

    public override Task<GetRegsResponse> GetRegs(GetRegsRequest request, ServerCallContext context)
    {
        Outcome outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_REGS, default, out kvm_regs regs);
        return Task.FromResult(new GetRegsResponse { Outcome = outcome, Regs = outcome.Errno == 0 ? VcpuStructs.FromAbi(regs) : null });
    }

    public override Task<SetRegsResponse> SetRegs(SetRegsRequest request, ServerCallContext context) => Task.FromResult(new SetRegsResponse
    {
        Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_REGS, VcpuStructs.ToAbi(request.Regs), out _),
    });

    public override Task<GetSregsResponse> GetSregs(GetSregsRequest request, ServerCallContext context)
    {
        Outcome outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_SREGS, default, out kvm_sregs sregs);
        return Task.FromResult(new GetSregsResponse { Outcome = outcome, Sregs = outcome.Errno == 0 ? VcpuStructs.FromAbi(sregs) : null });
    }

    public override Task<SetSregsResponse> SetSregs(SetSregsRequest request, ServerCallContext context) => Task.FromResult(new SetSregsResponse
    {
        Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_SREGS, VcpuStructs.ToAbi(request.Sregs), out _),
    });

    public override Task<GetMsrsResponse> GetMsrs(GetMsrsRequest request, ServerCallContext context)
    {
        Bounded("indices", request.Indices.Count);
        byte[] bytes = VcpuStructs.MsrBuffer([.. request.Indices.Select(index => new KvmMsrEntry { Index = index })]);
        Outcome outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_MSRS, bytes);
        var response = new GetMsrsResponse { Outcome = outcome };
        response.Entries.AddRange(VcpuStructs.ReadMsrs(bytes, (int)outcome.Value));
        return Task.FromResult(response);
    }

    public override Task<SetMsrsResponse> SetMsrs(SetMsrsRequest request, ServerCallContext context)
    {
        Bounded("entries", request.Entries.Count);
        return Task.FromResult(new SetMsrsResponse
        {
            Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_MSRS, VcpuStructs.MsrBuffer(request.Entries)),
        });
    }

    public override Task<GetFpuResponse> GetFpu(GetFpuRequest request, ServerCallContext context)
    {
        Outcome outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_FPU, default, out kvm_fpu fpu);
        return Task.FromResult(new GetFpuResponse { Outcome = outcome, Fpu = outcome.Errno == 0 ? VcpuStructs.FromAbi(fpu) : null });
    }

    public override Task<SetFpuResponse> SetFpu(SetFpuRequest request, ServerCallContext context) => Task.FromResult(new SetFpuResponse
    {
        Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_FPU, VcpuStructs.ToAbi(request.Fpu), out _),
    });

    public override Task<GetXsaveResponse> GetXsave(GetXsaveRequest request, ServerCallContext context)
    {
        byte[] region = new byte[XsaveSize];
        Outcome outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_XSAVE, region);
        return Task.FromResult(new GetXsaveResponse { Outcome = outcome, Region = outcome.Errno == 0 ? UnsafeByteOperations.UnsafeWrap(region) : ByteString.Empty });
    }

    public override Task<SetXsaveResponse> SetXsave(SetXsaveRequest request, ServerCallContext context)
    {
        byte[] region = new byte[XsaveSize];
        Structs.Fixed("region", request.Region, region);
        return Task.FromResult(new SetXsaveResponse { Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_XSAVE, region) });
    }

    public override Task<GetXcrsResponse> GetXcrs(GetXcrsRequest request, ServerCallContext context)
    {
        Outcome outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_XCRS, default, out kvm_xcrs xcrs);
        var response = new GetXcrsResponse { Outcome = outcome };
        response.Xcrs.AddRange(VcpuStructs.FromAbi(xcrs));
        return Task.FromResult(response);
    }

    public override Task<SetXcrsResponse> SetXcrs(SetXcrsRequest request, ServerCallContext context) => Task.FromResult(new SetXcrsResponse
    {
        Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_XCRS, VcpuStructs.ToAbi(request.Xcrs, request.Flags), out _),
    });

    public override Task<GetDebugregsResponse> GetDebugregs(GetDebugregsRequest request, ServerCallContext context)
    {
        Outcome outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_DEBUGREGS, default, out kvm_debugregs debugregs);
        return Task.FromResult(new GetDebugregsResponse { Outcome = outcome, Debugregs = outcome.Errno == 0 ? VcpuStructs.FromAbi(debugregs) : null });
    }

    public override Task<SetDebugregsResponse> SetDebugregs(SetDebugregsRequest request, ServerCallContext context) => Task.FromResult(new SetDebugregsResponse
    {
        Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_DEBUGREGS, VcpuStructs.ToAbi(request.Debugregs), out _),
    });

    public override Task<SetGuestDebugResponse> SetGuestDebug(SetGuestDebugRequest request, ServerCallContext context) => Task.FromResult(new SetGuestDebugResponse
    {
        Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_GUEST_DEBUG, new kvm_guest_debug { control = request.Control }, out _),
    });

    public override Task<GetCpuid2Response> GetCpuid2(GetCpuid2Request request, ServerCallContext context)
    {
        byte[] bytes = VcpuStructs.CpuidBuffer((int)kvm_cpuid2.MAX_CPUID_ENTRIES);
        var response = new GetCpuid2Response { Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_CPUID2, bytes) };
        if (response.Outcome.Errno == 0)
        {
            response.Entries.AddRange(VcpuStructs.ReadCpuid(bytes));
        }
        return Task.FromResult(response);
    }

    public override Task<SetCpuid2Response> SetCpuid2(SetCpuid2Request request, ServerCallContext context)
    {
        Bounded("entries", request.Entries.Count);
        return Task.FromResult(new SetCpuid2Response
        {
            Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_CPUID2, VcpuStructs.CpuidBuffer(request.Entries)),
        });
    }

    private static void Bounded(string field, int count)
    {
        if (count > MaxEntries)
        {
            throw Refusals.BadField(field, $"{count} were given; at most {MaxEntries} are passed on");
        }
    }

    private Outcome Run<T>(string host, uint pid, int fd, uint request, T argument, out T written)
        where T : unmanaged
    {
        Outcome outcome = hosts.RunOn(host, pid, process => Outcomes.Of(Structs.Ioctl(process, fd, request, ref argument)));
        written = argument;
        return outcome;
    }

    private Outcome Run(string host, uint pid, int fd, uint request, byte[] bytes) =>
        hosts.RunOn(host, pid, process => Outcomes.Of(process.Ioctl(fd, request, bytes)));
}
