using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>Which file operations an fd has, as far as ioctl dispatch goes.</summary>
public enum FdKind
{
    Kvm,
    Vm,
    Vcpu,
    GuestMemfd,
    Sev,
}

/// <summary>
/// An open file of the simulated kernel (struct file): referenced by fds and by mappings, released when the last reference is dropped. The virtual methods are
/// its file operations; their defaults are what the VFS answers for an absent one.
/// </summary>
public abstract class KernelFile
{
    public static readonly Rule NoFallocate = new(
        "vfs.fallocate.not-regular", "the file is not a regular file", "vfs_fallocate", "fallocate a guest_memfd", "fd_kind#");

    public static readonly Rule NoMmap = new(
        "vfs.mmap.no-method", "the file cannot be mapped", "do_mmap", "map anonymous memory, or a guest_memfd made with GUEST_MEMFD_FLAG_MMAP", "fd_kind#");

    private int _references = 1;

    public abstract FdKind Kind { get; }

    /// <summary>The name the fd has in procfs, for people.</summary>
    public abstract string Name { get; }

    /// <summary>File references, 0 once the file is released. A count of 0 with release not yet run is a dying file.</summary>
    internal int References => _references;

    internal void Get() => _references++;

    /// <summary>fput(): the last reference runs release.</summary>
    internal void Put(KTask current)
    {
        if (--_references == 0)
        {
            Release(current);
        }
        else if (_references < 0)
        {
            throw new InvalidOperationException($"{Name} was put more often than it was taken");
        }
    }

    /// <summary>Checks that precede every ioctl on this fd, also unknown ones.</summary>
    internal virtual Errno IoctlEntry(KTask current, uint request) => Errno.OK;

    /// <summary>What an ioctl number that this fd does not know answers.</summary>
    internal virtual Errno UnknownIoctl => Errno.ENOTTY;

    internal virtual Errno Fallocate(KTask current, uint mode, long offset, long len) =>
        current.Fail(Errno.ENODEV, NoFallocate, (ulong)Kind);

    /// <summary>The file's mmap method. Nothing is populated here; accesses come through <see cref="Fault"/>.</summary>
    internal virtual Errno Mmap(KTask current, bool shared) => current.Fail(Errno.ENODEV, NoMmap, (ulong)Kind);

    /// <summary>A host access to a page of a mapping of this file. An errno stands for the signal that the process would get.</summary>
    internal virtual Errno Fault(KTask current, ulong index, out Pfn pfn)
    {
        pfn = default;
        return Errno.EFAULT;
    }

    /// <summary>The frame that <see cref="Fault"/> would give, if it is there already.</summary>
    internal virtual bool TryPeek(ulong index, out Pfn pfn)
    {
        pfn = default;
        return false;
    }

    internal virtual FileStat Stat() => new(0, 0x2180, 0);

    /// <summary>Last reference is gone.</summary>
    internal abstract void Release(KTask current);
}

/// <summary>What fstat fills, as far as the simulated files have it.</summary>
/// <param name="Size">Bytes.</param>
/// <param name="Mode">File type and permission bits.</param>
/// <param name="Blocks">Blocks of 512 bytes.</param>
public readonly record struct FileStat(ulong Size, uint Mode, ulong Blocks);
