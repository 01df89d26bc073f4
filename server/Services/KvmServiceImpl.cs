using System.Runtime.InteropServices;
using Grpc.Core;
using SimKvm.Abi;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;
using VmType = VmmService.V1.VmType;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.KvmService: ioctls of /dev/kvm.</summary>
internal sealed class KvmServiceImpl(HostRegistry hosts) : KvmService.KvmServiceBase
{
    private const int MaxCpuidEntries = 256;
    private const uint MaxMsrs = 1024;

    public override Task<GetApiVersionResponse> GetApiVersion(GetApiVersionRequest request, ServerCallContext context) =>
        Task.FromResult(new GetApiVersionResponse { Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_API_VERSION, 0) });

    public override Task<CreateVmResponse> CreateVm(CreateVmRequest request, ServerCallContext context)
    {
        ulong type = request.TypeCase switch
        {
            CreateVmRequest.TypeOneofCase.RawType => request.RawType,
            CreateVmRequest.TypeOneofCase.VmType when request.VmType == VmType.ArmProtected => unchecked((uint)SimKvm.Abi.VmType.KVM_VM_TYPE_ARM_PROTECTED),
            CreateVmRequest.TypeOneofCase.VmType when request.VmType != VmType.Unspecified && Enum.IsDefined(request.VmType) => (ulong)request.VmType - 1,
            _ => throw Refusals.BadEnum("vm_type", request.VmType),
        };
        return Task.FromResult(new CreateVmResponse { Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_CREATE_VM, type) });
    }

    public override Task<CheckExtensionResponse> CheckExtension(CheckExtensionRequest request, ServerCallContext context) =>
        Task.FromResult(new CheckExtensionResponse { Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_CHECK_EXTENSION, request.Cap) });

    public override Task<GetVcpuMmapSizeResponse> GetVcpuMmapSize(GetVcpuMmapSizeRequest request, ServerCallContext context) =>
        Task.FromResult(new GetVcpuMmapSizeResponse { Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_VCPU_MMAP_SIZE, 0) });

    public override Task<GetSupportedCpuidResponse> GetSupportedCpuid(GetSupportedCpuidRequest request, ServerCallContext context)
    {
        byte[] bytes = VcpuStructs.CpuidBuffer(MaxCpuidEntries);
        Outcome outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_GET_SUPPORTED_CPUID, bytes)));
        var response = new GetSupportedCpuidResponse { Outcome = outcome };
        if (outcome.Errno == 0)
        {
            response.Entries.AddRange(VcpuStructs.ReadCpuid(bytes));
        }
        return Task.FromResult(response);
    }

    public override Task<GetMsrIndexListResponse> GetMsrIndexList(GetMsrIndexListRequest request, ServerCallContext context)
    {
        uint room = request.HasNmsrs ? Math.Min(request.Nmsrs, MaxMsrs) : MaxMsrs;
        byte[] bytes = new byte[sizeof(uint) * (1 + (int)room)];
        MemoryMarshal.Write(bytes, room);
        Outcome outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_GET_MSR_INDEX_LIST, bytes)));
        ReadOnlySpan<uint> list = MemoryMarshal.Cast<byte, uint>(bytes);
        var response = new GetMsrIndexListResponse { Outcome = outcome, Nmsrs = list[0] };
        if (outcome.Errno == 0)
        {
            response.Indices.AddRange(list[1..(1 + (int)list[0])].ToArray());
        }
        return Task.FromResult(response);
    }

    public override Task<HasDeviceAttrResponse> HasDeviceAttr(HasDeviceAttrRequest request, ServerCallContext context)
    {
        var attr = new kvm_device_attr { group = request.Group, attr = request.Attr };
        Outcome outcome = hosts.RunOn(
            request.Host, request.Pid, process => Outcomes.Of(Structs.Ioctl(process, request.Fd, KvmIoctl.KVM_HAS_DEVICE_ATTR, ref attr)));
        return Task.FromResult(new HasDeviceAttrResponse { Outcome = outcome });
    }

    public override Task<GetDeviceAttrResponse> GetDeviceAttr(GetDeviceAttrRequest request, ServerCallContext context)
    {
        var response = new GetDeviceAttrResponse();
        response.Outcome = hosts.RunOn(request.Host, request.Pid, process =>
        {
            Scratch scratch = hosts.ScratchOf(request.Host, process);
            var attr = new kvm_device_attr { group = request.Group, attr = request.Attr, addr = scratch.Address };
            scratch.Store(0, new byte[sizeof(ulong)]);
            CallReport report = Structs.Ioctl(process, request.Fd, KvmIoctl.KVM_GET_DEVICE_ATTR, ref attr);
            response.AttrValue = report.Succeeded ? MemoryMarshal.Read<ulong>(scratch.Load(0, sizeof(ulong))) : 0;
            return Outcomes.Of(report);
        });
        return Task.FromResult(response);
    }

    private Outcome Run(string host, uint pid, int fd, uint request, ulong arg) =>
        hosts.RunOn(host, pid, process => Outcomes.Of(process.Ioctl(fd, request, arg)));
}
