using VmmService.V1;

namespace VmmService.Client;

// The dirty log of slots made with KVM_MEM_LOG_DIRTY_PAGES. The bitmap is in the process's memory, as the ioctls want it.
public sealed partial class Vm
{
    /// <summary>KVM_GET_DIRTY_LOG into user memory.</summary>
    /// <param name="slot">Bits 15:0 slot id, bits 31:16 address space.</param>
    /// <param name="dirtyBitmap">User address of one bit a page, in whole words of 64.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<GetDirtyLogResponse, long> GetDirtyLogAsync(uint slot, ulong dirtyBitmap, CancellationToken cancellation = default) =>
        Call(
            "KVM_GET_DIRTY_LOG",
            Stubs.Vm.GetDirtyLogAsync(
                new GetDirtyLogRequest { Host = HostId, Pid = Pid, Fd = Fd, Slot = slot, DirtyBitmap = dirtyBitmap }, cancellationToken: cancellation),
            reply => reply.Outcome);

    /// <summary>KVM_CLEAR_DIRTY_LOG: clears the pages whose bits are set in user memory.</summary>
    /// <param name="slot">Bits 15:0 slot id, bits 31:16 address space.</param>
    /// <param name="firstPage">A multiple of 64.</param>
    /// <param name="numPages">A multiple of 64, or up to the end of the slot.</param>
    /// <param name="dirtyBitmap">User address.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<ClearDirtyLogResponse, long> ClearDirtyLogAsync(
        uint slot, ulong firstPage, uint numPages, ulong dirtyBitmap, CancellationToken cancellation = default) =>
        Call(
            "KVM_CLEAR_DIRTY_LOG",
            Stubs.Vm.ClearDirtyLogAsync(
                new ClearDirtyLogRequest
                {
                    Host = HostId,
                    Pid = Pid,
                    Fd = Fd,
                    Slot = slot,
                    FirstPage = firstPage,
                    NumPages = numPages,
                    DirtyBitmap = dirtyBitmap,
                },
                cancellationToken: cancellation),
            reply => reply.Outcome);
}
