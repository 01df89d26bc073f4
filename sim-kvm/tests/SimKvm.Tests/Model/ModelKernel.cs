using SimKvm.Userspace;

namespace SimKvm.Tests.Model;

/// <summary>
/// The kernel again, slow and obvious, from the specification (kvm-guest-memory.md 2 to 6 and 10) and not from our code: dictionaries of pages, searches over
/// everything, no counters. It says what each call answers and what is there afterwards. Here are processes, files and user memory; calls on VMs are in
/// <c>ModelKernel.Vm.cs</c>.
/// </summary>
internal sealed partial class ModelKernel(Behaviours behaviours, int fdLimit)
{
    private const ulong PageMask = 4095;
    private const int RunPages = 3;
    private const ulong MmapBase = 0x7000_0000_0000;
    private const ulong TaskSize = 0x7fff_ffff_f000;

    private static readonly byte[] s_zeros = new byte[4096];

    // Files that were open after the last call.
    private HashSet<ModelFile> _open = [];

    public Behaviours Behaviours { get; } = behaviours;

    public List<ModelProcess> Processes { get; } = [];

    /// <summary>VMs that somebody keeps alive.</summary>
    public IEnumerable<ModelVm> LiveVms => OpenFiles().Select(file => file.Vm).OfType<ModelVm>().Distinct();

    /// <summary>Frames that hold something: stored-to anonymous pages, and pages of guest_memfds.</summary>
    public long Frames =>
        (LiveVms.Sum(vm => vm.Vcpus.Count) * RunPages) + Processes.Sum(process => process.Memory.Values.Count(page => page.Bytes is not null)) + OpenFiles().Sum(file => (long)file.Pages.Count);

    /// <summary>Files that a descriptor or a mapping refers to.</summary>
    public HashSet<ModelFile> OpenFiles() =>
        [.. Processes.SelectMany(process => process.Files.Values.Concat(process.Memory.Values.Select(page => page.File).OfType<ModelFile>()))];

    /// <summary>After each call: a guest_memfd that nobody refers to any more is released. Its slots stay, without a file.</summary>
    public void ReleaseFiles()
    {
        HashSet<ModelFile> open = OpenFiles();
        foreach (ModelFile file in _open.Except(open))
        {
            List<ModelSlot> bound = [.. file.Vm?.Slots.Where(slot => slot.File == file) ?? []];
            bound.ForEach(slot => slot.File = null);
            if (bound.Count > 0)
            {
                file.Vm!.Seq++;
            }
        }
        _open = open;
    }

    public SyscallResult Open(ModelProcess process) => Install(process, new ModelFile(FdKind.Kvm));

    public static Errno Close(ModelProcess process, int fd) => process.Files.Remove(fd) ? Errno.OK : Errno.EBADF;

    /// <summary>A descriptor in another process, as SCM_RIGHTS makes one.</summary>
    public SyscallResult Pass(ModelProcess process, int fd, ModelProcess to) =>
        process.Files.TryGetValue(fd, out ModelFile? file) ? Install(to, file) : Errno.EBADF;

    /// <summary>mmap without an address. Where it goes is the kernel's choice.</summary>
    public static Errno Mmap(ModelProcess process, ulong length, uint prot, uint flags, int fd, ulong offset, ulong address)
    {
        const uint type = 0xf, anonymous = 0x20;
        if ((offset & PageMask) != 0)
        {
            return Errno.EINVAL;
        }
        ModelFile? file = null;
        if ((flags & anonymous) == 0 && !process.Files.TryGetValue(fd, out file))
        {
            return Errno.EBADF;
        }
        if (length == 0)
        {
            return Errno.EINVAL;
        }
        if (length > TaskSize)
        {
            return Errno.ENOMEM;
        }
        if ((flags & type) is not (1 or 2))
        {
            return Errno.EINVAL;
        }
        if (file is not null)
        {
            if (file.Kind != FdKind.Kvm && (prot & 4) != 0)
            {
                return Errno.EPERM;
            }
            if (file.Kind != FdKind.GuestMemfd || (file.Flags & 1) == 0)
            {
                return Errno.ENODEV;
            }
            if ((flags & type) == 2)
            {
                return Errno.EINVAL;
            }
        }
        for (ulong i = 0; i < (length + PageMask) >> 12; i++)
        {
            // A kernel that maps over something without being asked to has chosen badly, and then this throws.
            process.Memory.Add((address >> 12) + i, new ModelMapping(prot, file, (offset >> 12) + i));
        }
        return Errno.OK;
    }

    public static Errno Munmap(ModelProcess process, ulong address, ulong length)
    {
        ulong end = (address + length + PageMask) & ~PageMask;
        if ((address & PageMask) != 0 || length == 0 || end > TaskSize || end < address)
        {
            return Errno.EINVAL;
        }
        for (ulong page = address >> 12; page < end >> 12; page++)
        {
            process.Memory.Remove(page);
        }
        return Errno.OK;
    }

    /// <summary>Stores of the program; gives how many bytes could be stored.</summary>
    public static int Write(ModelProcess process, ulong address, ReadOnlySpan<byte> bytes)
    {
        for (int i = 0; i < bytes.Length; i++)
        {
            ulong at = address + (ulong)i;
            if (Touch(process, at, write: true) is not { } page)
            {
                return i;
            }
            page[at & PageMask] = bytes[i];
        }
        return bytes.Length;
    }

    /// <summary>Loads of the program; gives how many bytes could be read.</summary>
    public static int Read(ModelProcess process, ulong address, Span<byte> bytes)
    {
        for (int i = 0; i < bytes.Length; i++)
        {
            ulong at = address + (ulong)i;
            if (Touch(process, at, write: false) is not { } page)
            {
                return i;
            }
            bytes[i] = page[at & PageMask];
        }
        return bytes.Length;
    }

    public static Errno Fstat(ModelProcess process, int fd, out ulong size)
    {
        size = 0;
        if (!process.Files.TryGetValue(fd, out ModelFile? file))
        {
            return Errno.EBADF;
        }
        size = file.Size;
        return Errno.OK;
    }

    public Errno Fallocate(ModelProcess process, int fd, uint mode, long offset, long length)
    {
        const uint keepSize = 1, punchHole = 2;
        if (!process.Files.TryGetValue(fd, out ModelFile? file))
        {
            return Errno.EBADF;
        }
        if (offset < 0 || length <= 0)
        {
            return Errno.EINVAL;
        }
        Errno refused = Behaviours.FallocateOneOperation ? OneOperation(mode) : Combinations(mode);
        if (refused != Errno.OK)
        {
            return refused;
        }
        if (file.Kind != FdKind.GuestMemfd)
        {
            return Errno.ENODEV;
        }
        if (offset > long.MaxValue - length)
        {
            return Errno.EFBIG;
        }
        if ((mode & keepSize) == 0 || (mode & ~(keepSize | punchHole)) != 0)
        {
            return Errno.EOPNOTSUPP;
        }
        if ((((ulong)offset | (ulong)length) & PageMask) != 0)
        {
            return Errno.EINVAL;
        }
        ulong start = (ulong)offset >> 12, end = (ulong)(offset + length) >> 12;
        if ((mode & punchHole) != 0)
        {
            if (file.Vm!.Slots.Exists(slot => slot.IsBoundIn(file, start, end)))
            {
                file.Vm.Seq++;
            }
            foreach (ulong index in file.Pages.Keys.Where(index => index >= start && index < end).ToArray())
            {
                file.Pages.Remove(index);
            }
            return Errno.OK;
        }
        if (end << 12 > file.Size)
        {
            return Errno.EINVAL;
        }
        for (ulong index = start; index < end; index++)
        {
            GetPage(file, index).Uptodate |= Behaviours.AllocatedIsUptodate;
        }
        return Errno.OK;
    }

    // All modes that there are, 6.12 and later: allocate, punch, collapse, zero, insert, unshare, write zeroes.
    private static Errno OneOperation(uint mode) =>
        mode is 0 or 1 or 3 or 8 or 0x10 or 0x11 or 0x20 or 0x40 or 0x41 or 0x80 ? Errno.OK : Errno.EOPNOTSUPP;

    private static Errno Combinations(uint mode)
    {
        bool unknown = (mode & ~0x7bu) != 0, punchAndZero = (mode & 0x12) == 0x12, punchWithoutKeep = (mode & 3) == 2;
        bool notAlone = ((mode & 8) != 0 && mode != 8) || ((mode & 0x20) != 0 && mode != 0x20) || ((mode & 0x40) != 0 && (mode & ~0x41u) != 0);
        return unknown || punchAndZero || punchWithoutKeep ? Errno.EOPNOTSUPP : notAlone ? Errno.EINVAL : Errno.OK;
    }

    private SyscallResult Install(ModelProcess process, ModelFile file)
    {
        if (process.Files.Count >= fdLimit - 3)
        {
            return Errno.EMFILE;
        }
        int fd = process.LowestFreeFd;
        process.Files.Add(fd, file);
        return SyscallResult.Of(fd);
    }

    // The bytes that an access of the program reaches, or null where it cannot.
    private static byte[]? Touch(ModelProcess process, ulong address, bool write)
    {
        if (!process.Memory.TryGetValue(address >> 12, out ModelMapping? mapping) || mapping.Prot == 0 || (write && (mapping.Prot & 2) == 0))
        {
            return null;
        }
        if (mapping.File is not { } file)
        {
            return write ? mapping.Bytes ??= new byte[4096] : mapping.Bytes ?? s_zeros;
        }
        // Not created shared, or behind the end: SIGBUS.
        if ((file.Flags & 2) == 0 || mapping.FilePage >= file.Size >> 12)
        {
            return null;
        }
        ModelPage page = GetPage(file, mapping.FilePage);
        page.Uptodate = true;
        return page.Bytes;
    }

    private static ModelPage GetPage(ModelFile file, ulong index)
    {
        if (!file.Pages.TryGetValue(index, out ModelPage? page))
        {
            file.Pages.Add(index, page = new ModelPage());
        }
        return page;
    }
}
