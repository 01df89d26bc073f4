using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;

namespace SimKvm.Tests.Support;

/// <summary>System calls of a second thread, made between two steps of another call.</summary>
internal static class OtherThread
{
    public static void SetAttributes(this KTask thread, TestVm vm, ulong gpa, ulong pages, ulong attributes) => thread.Ioctl(
        vm.Fd, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, new kvm_memory_attributes { address = gpa, size = pages * Vmm.Page, attributes = attributes });

    public static void SetPrivate(this KTask thread, TestVm vm, ulong gpa, ulong pages) => thread.SetAttributes(vm, gpa, pages, TestVm.Private);

    public static void DeleteSlot(this KTask thread, TestVm vm, uint slot) =>
        thread.Ioctl(vm.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, new kvm_userspace_memory_region2 { slot = slot });

    public static void PunchHole(this KTask thread, int gmem, ulong page, ulong pages) =>
        Must(Vfs.Fallocate(thread, gmem, Vfs.KeepSize | Vfs.PunchHole, (long)(page * Vmm.Page), (long)(pages * Vmm.Page)));

    /// <summary>An ioctl that must succeed.</summary>
    public static void Ioctl<T>(this KTask thread, int fd, uint request, T argument)
        where T : unmanaged
    {
        Must(thread.TryIoctl(fd, request, ref argument));
    }

    public static Errno TryIoctl<T>(this KTask thread, int fd, uint request, ref T argument)
        where T : unmanaged =>
        IoctlTable.Dispatch(thread, fd, request, UserArg.FromBytes(MemoryMarshal.AsBytes(new Span<T>(ref argument)))).Errno;

    private static void Must(Errno errno)
    {
        if (errno != Errno.OK)
        {
            throw new InvalidOperationException($"the other thread's call answered {errno}");
        }
    }
}
