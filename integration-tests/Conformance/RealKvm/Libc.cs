using System.Runtime.InteropServices;

namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>The system calls of this machine that the comparison makes (x86-64).</summary>
internal static unsafe partial class Libc
{
    public const int O_RDWR = 2;
    public const int O_CLOEXEC = 0x80000;
    public const int O_NONBLOCK = 0x800;
    public const uint SPLICE_F_NONBLOCK = 2;
    public const uint PROT_NONE = 0;
    public const uint PROT_READ_WRITE = 3;
    public const uint MAP_PRIVATE_ANONYMOUS = 0x22;

    public static readonly void* MapFailed = (void*)-1;

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial int open(string path, int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int close(int fd);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int ioctl(int fd, nuint request, nuint argument);

    [LibraryImport("libc", SetLastError = true)]
    public static partial void* mmap(void* address, nuint length, uint prot, uint flags, int fd, long offset);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int munmap(void* address, nuint length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int mprotect(void* address, nuint length, uint prot);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int fallocate(int fd, int mode, long offset, long length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int fstat(int fd, Stat* stat);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int pipe2(int* fds, int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint read(int fd, void* buffer, nuint count);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint write(int fd, void* buffer, nuint count);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial int memfd_create(string name, uint flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int dup(int fd);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int ftruncate(int fd, long length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint lseek(int fd, long offset, uint whence);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int fcntl(int fd, uint command, nuint argument);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int flock(int fd, uint operation);

    [LibraryImport("libc")]
    public static partial int posix_fadvise(int fd, long offset, long length, uint advice);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int fsync(int fd);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint pread(int fd, void* buffer, nuint count, long position);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint pwrite(int fd, void* buffer, nuint count, long position);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint splice(int from, long* fromOffset, int to, long* toOffset, nuint count, uint flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint sendfile(int to, int from, long* offset, nuint count);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int madvise(void* address, nuint length, uint advice);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int msync(void* address, nuint length, uint flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int mlock(void* address, nuint length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int munlock(void* address, nuint length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint mremap(void* address, nuint oldLength, nuint newLength, uint flags);

    /// <summary>struct stat, as far as it is looked at.</summary>
    [StructLayout(LayoutKind.Explicit, Size = 144)]
    public struct Stat
    {
        [FieldOffset(24)] public uint st_mode;
        [FieldOffset(48)] public long st_size;
        [FieldOffset(64)] public long st_blocks;
    }
}
