using SimKvm.Kvm.Historical;
using SimKvm.Profiles;

namespace SimKvm.Userspace;

// System calls on memfds. Branch `files` has these for all files: on merge its Process.Files.cs replaces this file, and its Vfs.MemfdCreate begins with the test that
// MemfdCreate has here.
public sealed partial class Process
{
    /// <summary>memfd_create(2).</summary>
    public CallReport MemfdCreate(string name, uint flags) => Call("memfd_create", current =>
        Host.Profile.PrivateMemory == PrivateMemoryDesign.InaccessibleMemfd && (flags & InaccessibleMemfd.MFD_INACCESSIBLE) != 0
            ? InaccessibleMemfd.Create(current, name, flags)
            : current.Fail(Errno.ENOSYS, Vfs.NoSuchSyscall));

    /// <summary>ftruncate(2).</summary>
    public CallReport Ftruncate(int fd, long length) => Call($"ftruncate {fd}", current =>
    {
        Errno errno = Files.Lookup(current, fd, out KernelFile? file);
        return errno != Errno.OK ? errno : length < 0 ? current.Fail(Errno.EINVAL, Vfs.BadRange, (ulong)length, 0) : file!.Truncate(current, length);
    });

    /// <summary>pread64(2) into bytes of the caller.</summary>
    public CallReport ReadFile(int fd, Memory<byte> buffer, long? position = null) =>
        Call($"pread64 {fd}", current => Transfer(current, fd, UserArg.FromBytes(buffer.Span), (ulong)buffer.Length, position ?? 0, write: false));

    /// <summary>pwrite64(2) from bytes of the caller.</summary>
    public CallReport WriteFile(int fd, Memory<byte> buffer, long? position = null) =>
        Call($"pwrite64 {fd}", current => Transfer(current, fd, UserArg.FromBytes(buffer.Span), (ulong)buffer.Length, position ?? 0, write: true));

    private SyscallResult Transfer(KTask current, int fd, UserArg buffer, ulong count, long position, bool write)
    {
        Errno errno = Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if ((file!.Methods & (write ? FMode.Pwrite : FMode.Pread)) == 0)
        {
            return current.Fail(Errno.ESPIPE, KernelFile.NoMethod, (ulong)file.Kind);
        }
        return write ? file.Write(current, buffer, count, ref position) : file.Read(current, buffer, count, ref position);
    }
}
