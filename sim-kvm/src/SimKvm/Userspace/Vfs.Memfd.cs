using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// System calls that make and use the private files of the designs before guest_memfd.
internal static partial class Vfs
{
    public static readonly Rule NoSuchSyscall = new(
        "vfs.no-syscall", "this kernel does not have the system call", "sys_ni_syscall", "boot a profile that has it: UPM22 for MFD_INACCESSIBLE, RM22 for memfd_restricted");

    /// <summary>memfd_restricted(2), UPM v9/v10.</summary>
    public static SyscallResult MemfdRestricted(KTask current, uint flags) =>
        current.Host.Profile.PrivateMemory == PrivateMemoryDesign.RestrictedMem ? RestrictedMem.Create(current, flags) : current.Fail(Errno.ENOSYS, NoSuchSyscall);

    /// <summary>The one-way lock of an inaccessible memfd, profile UPM22-shm_lock.</summary>
    public static Errno MemfdShmLock(KTask current, int fd)
    {
        Errno errno = LookupInaccessible(current, fd, out InaccessibleMemfd? file);
        return errno == Errno.OK ? file!.ShmLock(current) : errno;
    }

    /// <summary>The shareable flag of pages of an inaccessible memfd, profile UPM22-shareable.</summary>
    public static Errno MemfdSetShareable(KTask current, int fd, ulong offset, ulong len, bool shareable)
    {
        Errno errno = LookupInaccessible(current, fd, out InaccessibleMemfd? file);
        return errno == Errno.OK ? file!.SetShareable(current, offset, len, shareable) : errno;
    }

    private static Errno LookupInaccessible(KTask current, int fd, out InaccessibleMemfd? memfd)
    {
        Errno errno = current.Process.Files.Lookup(current, fd, out KernelFile? file);
        memfd = file as InaccessibleMemfd;
        return errno == Errno.OK && memfd is null ? current.Fail(Errno.EINVAL, BackingStoreFile.NotAPrivateFile, (ulong)fd) : errno;
    }
}
