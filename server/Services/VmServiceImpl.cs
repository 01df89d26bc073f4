using Grpc.Core;
using SimKvm.Abi;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.VmService: ioctls of the VM fd.</summary>
internal sealed class VmServiceImpl(HostRegistry hosts) : VmService.VmServiceBase
{
    public override Task<CreateVcpuResponse> CreateVcpu(CreateVcpuRequest request, ServerCallContext context) => Task.FromResult(new CreateVcpuResponse
    {
        Outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_CREATE_VCPU, request.VcpuId))),
    });

    public override Task<SetUserMemoryRegionResponse> SetUserMemoryRegion(SetUserMemoryRegionRequest request, ServerCallContext context) =>
        Task.FromResult(new SetUserMemoryRegionResponse
        {
            Outcome = hosts.RunOn(
                request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION, Structs.ToAbi(request.Region)))),
        });

    public override Task<SetUserMemoryRegion2Response> SetUserMemoryRegion2(SetUserMemoryRegion2Request request, ServerCallContext context) =>
        Task.FromResult(new SetUserMemoryRegion2Response
        {
            Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, Structs.ToAbi(request.Region)),
        });

    public override Task<SetMemoryAttributesResponse> SetMemoryAttributes(SetMemoryAttributesRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            kvm_memory_attributes args = Structs.ToAbi(request.Attributes);
            return new SetMemoryAttributesResponse { Outcome = Outcomes.Of(Structs.Ioctl(process, request.Fd, Structs.SetMemoryAttributesOf(process.Host.Profile), ref args)), Attributes = Structs.FromAbi(args) };
        }));

    public override Task<GetSupportedMemoryAttributesResponse> GetSupportedMemoryAttributes(GetSupportedMemoryAttributesRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            ulong attributes = 0;
            Outcome outcome = Outcomes.Of(Structs.Ioctl(process, request.Fd, KvmIoctl.KVM_GET_SUPPORTED_MEMORY_ATTRIBUTES, ref attributes));
            return new GetSupportedMemoryAttributesResponse { Outcome = outcome, Attributes = attributes };
        }));

    public override Task<CreateGuestMemfdResponse> CreateGuestMemfd(CreateGuestMemfdRequest request, ServerCallContext context) =>
        Task.FromResult(new CreateGuestMemfdResponse
        {
            Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_CREATE_GUEST_MEMFD, Structs.ToAbi(request.GuestMemfd)),
        });

    public override Task<GetDirtyLogResponse> GetDirtyLog(GetDirtyLogRequest request, ServerCallContext context) => Task.FromResult(new GetDirtyLogResponse
    {
        Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_GET_DIRTY_LOG, new kvm_dirty_log { slot = request.Slot, dirty_bitmap = request.DirtyBitmap }),
    });

    public override Task<ClearDirtyLogResponse> ClearDirtyLog(ClearDirtyLogRequest request, ServerCallContext context) =>
        Task.FromResult(new ClearDirtyLogResponse
        {
            Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_CLEAR_DIRTY_LOG, new kvm_clear_dirty_log
            {
                slot = request.Slot,
                num_pages = request.NumPages,
                first_page = request.FirstPage,
                dirty_bitmap = request.DirtyBitmap,
            }),
        });

    public override Task<SetTssAddrResponse> SetTssAddr(SetTssAddrRequest request, ServerCallContext context) => Task.FromResult(new SetTssAddrResponse
    {
        Outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_SET_TSS_ADDR, request.Addr))),
    });

    public override Task<SetIdentityMapAddrResponse> SetIdentityMapAddr(SetIdentityMapAddrRequest request, ServerCallContext context) =>
        Task.FromResult(new SetIdentityMapAddrResponse
        {
            Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_SET_IDENTITY_MAP_ADDR, request.Addr),
        });

    public override Task<EnableCapResponse> EnableCap(EnableCapRequest request, ServerCallContext context) => Task.FromResult(new EnableCapResponse
    {
        Outcome = Run(request.Host, request.Pid, request.Fd, KvmIoctl.KVM_ENABLE_CAP, Structs.ToAbi(request.EnableCap)),
    });

    public override Task<CreateIrqchipResponse> CreateIrqchip(CreateIrqchipRequest request, ServerCallContext context) => Task.FromResult(new CreateIrqchipResponse
    {
        Outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_CREATE_IRQCHIP, 0))),
    });

    public override Task<SetTscKhzResponse> SetTscKhz(SetTscKhzRequest request, ServerCallContext context) => Task.FromResult(new SetTscKhzResponse
    {
        Outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_SET_TSC_KHZ, request.Khz))),
    });

    public override Task<GetTscKhzResponse> GetTscKhz(GetTscKhzRequest request, ServerCallContext context) => Task.FromResult(new GetTscKhzResponse
    {
        Outcome = hosts.RunOn(request.Host, request.Pid, process => Outcomes.Of(process.Ioctl(request.Fd, KvmIoctl.KVM_GET_TSC_KHZ, 0))),
    });

    private Outcome Run<T>(string host, uint pid, int fd, uint request, T argument)
        where T : unmanaged =>
        hosts.RunOn(host, pid, process => Outcomes.Of(Structs.Ioctl(process, fd, request, ref argument)));
}
