using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>F_SEAL_*: what may never again be done to a memfd.</summary>
[Flags]
internal enum Seals : uint
{
    None = 0,
    Seal = 1,
    Shrink = 2,
    Grow = 4,
    Write = 8,
    FutureWrite = 0x10,
    Exec = 0x20,
    All = Seal | Shrink | Grow | Write | FutureWrite | Exec,
}

/// <summary>The seals of an inode that memfd_create made, on tmpfs or on hugetlbfs (memfd_add_seals).</summary>
/// <param name="set">What it starts with.</param>
/// <param name="executable">Whether its mode has the x bits, as without MFD_NOEXEC_SEAL.</param>
internal sealed class MemfdSeals(Seals set, bool executable = true)
{
    public static readonly Rule NotWritable = new(
        "memfd.seals.read-only", "seals are added through a descriptor that can write", "memfd_add_seals", "open it O_RDWR", "open_flags");

    public static readonly Rule NoSeals = new(
        "memfd.seals.none", "only files of memfd_create have seals", "memfd_file_seals_ptr", "use a memfd");

    public static readonly Rule UnknownSeals = new(
        "memfd.seals.unknown", "the seals are not known", "memfd_add_seals", "use F_SEAL_SEAL (1) to F_SEAL_EXEC (0x20)", "seals");

    public static readonly Rule Sealed = new(
        "memfd.sealed", "a seal of the file forbids it", "memfd_add_seals, shmem_write_begin, shmem_setattr, shmem_fallocate",
        "make the memfd with MFD_ALLOW_SEALING and seal it later", "seals");

    public static readonly Rule BusyForSeal = new(
        "memfd.seals.mapped", "F_SEAL_WRITE needs that nobody has a writable shared mapping", "mapping_deny_writable", "unmap it first");

    public Seals Set { get; private set; } = set;

    /// <summary>st_mode of the file.</summary>
    public uint FileMode => executable ? 0x81ffu : 0x81b6u;

    /// <summary>F_ADD_SEALS. Seals are never taken away.</summary>
    public static Errno Add(KTask current, KernelFile file, uint bits)
    {
        var seals = (Seals)bits;
        if ((file.Mode & FMode.Write) == 0)
        {
            return current.Fail(Errno.EPERM, NotWritable, file.Flags);
        }
        if ((seals & ~Seals.All) != 0)
        {
            return current.Fail(Errno.EINVAL, UnknownSeals, bits);
        }
        return file.MemfdSeals is { } of ? of.Add(current, file, seals) : current.Fail(Errno.EINVAL, NoSeals);
    }

    /// <summary>F_GET_SEALS.</summary>
    public static SyscallResult Get(KTask current, KernelFile file) =>
        file.MemfdSeals is { } of ? SyscallResult.Of((uint)of.Set) : current.Fail(Errno.EINVAL, NoSeals);

    private Errno Add(KTask current, KernelFile file, Seals seals)
    {
        if ((Set & Seals.Seal) != 0)
        {
            return current.Fail(Errno.EPERM, Sealed, (uint)Set);
        }
        if ((seals & Seals.Exec) != 0 && executable)
        {
            // What may be executed may then not be written any more.
            seals |= Seals.Shrink | Seals.Grow | Seals.Write | Seals.FutureWrite;
        }
        if ((seals & Seals.Write) != 0 && (Set & Seals.Write) == 0 && file.VfsInode.Mappers.Any(memory => memory.MapsWritable(file.VfsInode)))
        {
            return current.Fail(Errno.EBUSY, BusyForSeal);
        }
        Set |= seals;
        return Errno.OK;
    }

    /// <summary>EPERM if one of <paramref name="forbidding"/> is set.</summary>
    public Errno Check(KTask current, Seals forbidding) => (Set & forbidding) == 0 ? Errno.OK : current.Fail(Errno.EPERM, Sealed, (uint)Set);

    /// <summary>What a new size from an old one needs not to be sealed.</summary>
    public static Seals Against(ulong oldSize, ulong newSize) => newSize < oldSize ? Seals.Shrink : newSize > oldSize ? Seals.Grow : Seals.None;
}
