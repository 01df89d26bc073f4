namespace SimKvm.Userspace;

// System calls of the designs before guest_memfd, and of what seed 004 proposed.
public sealed partial class Process
{
    /// <summary>memfd_restricted(2). The value is the descriptor.</summary>
    public CallReport MemfdRestricted(uint flags) => Call("memfd_restricted", current => Vfs.MemfdRestricted(current, flags));

    /// <summary>Locks an inaccessible memfd for ever (profile UPM22-shm_lock).</summary>
    public CallReport MemfdShmLock(int fd) => Call($"SHM_LOCK {fd}", current => Vfs.MemfdShmLock(current, fd));

    /// <summary>Flags pages of an inaccessible memfd as shareable, or not (profile UPM22-shareable).</summary>
    public CallReport MemfdSetShareable(int fd, ulong offset, ulong len, bool shareable) =>
        Call($"set shareable {fd}", current => Vfs.MemfdSetShareable(current, fd, offset, len, shareable));
}
