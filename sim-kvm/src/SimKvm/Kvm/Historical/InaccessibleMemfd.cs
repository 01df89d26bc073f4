using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm.Historical;

/// <summary>
/// memfd_create(MFD_INACCESSIBLE): the private file of UPM v3 to v8, 2021-12 to 2022-09 (kvm-guest-memory.md 13.1). Its pages are for guests; read, write and mmap are
/// refused. Here are also the three ways out of that which seed 004 discusses, because an SEV launch encrypts the payload where it is and somebody must have put it there.
/// </summary>
/// <remarks>
/// Any number of slots may be bound to the same page (v5 dropped the test for overlaps). A page that goes is zapped from every slot first, then removed; there is no begin
/// and end around the two, one zap is an invalidation of its own.
/// That an inaccessible file answers EPERM is UNVERIFIED.
/// </remarks>
internal sealed class InaccessibleMemfd : BackingStoreFile
{
    /// <summary>MFD_* of memfd_create.</summary>
    public const uint MFD_CLOEXEC = 1;
    public const uint MFD_ALLOW_SEALING = 2;
    public const uint MFD_HUGETLB = 4;
    public const uint MFD_INACCESSIBLE = 8;

    private static readonly StepLabel LockStep = new("private file lock");

    public static readonly Rule UnknownFlags = new(
        "kvm.memfd.flags", "the flags of memfd_create are not known, or MFD_INACCESSIBLE comes with MFD_ALLOW_SEALING or MFD_HUGETLB", "memfd_create, UPM v4",
        "use MFD_INACCESSIBLE (8), alone or with MFD_CLOEXEC (1)", "flags");

    public static readonly Rule NameTooLong = new(
        "kvm.memfd.name", "the name of a memfd is longer than 249 bytes", "memfd_create", "use a shorter one; it is for people only", "bytes#");

    public static readonly Rule Inaccessible = new(
        "kvm.private-file.inaccessible", "the content of the file is for guests only", "MFD_INACCESSIBLE, UPM v3 to v8",
        "give the guest its initial content through shared memory; profiles UPM22-shm_lock and UPM22-shareable show what else was proposed");

    public static readonly Rule Locked = new(
        "kvm.private-file.locked", "the file was locked, which is for ever", "SHM_LOCK in seed 004; not posted", "write the content before the lock");

    public static readonly Rule NotShareable = new(
        "kvm.private-file.not-shareable", "the page is not flagged shareable", "pread and pwrite of shareable pages, seed 004; not posted",
        "flag the page first; a launch update takes the flag away", "index");

    public static readonly Rule NotSharedByGuest = new(
        "kvm.private-file.not-shared-by-guest", "the guest has not shared the page", "pKVM in seed 004; not posted", "wait until the guest shares it (KVM_HC_MAP_GPA_RANGE)",
        "index");

    public static readonly Rule NoSuchOperation = new(
        "kvm.private-file.no-operation", "files of this kernel cannot be locked, or have no shareable pages", "seed 004; not posted",
        "boot profile UPM22-shm_lock for a lock, UPM22-shareable for the flag");

    private readonly PageTree<bool> _shareable = new();
    private bool _locked;

    private InaccessibleMemfd(SimHost host, string name)
        : base(host) => Name = $"/memfd:{name} (deleted)";

    public override string Name { get; }

    /// <summary>memfd_create(2) with MFD_INACCESSIBLE. The value is the descriptor.</summary>
    public static SyscallResult Create(KTask current, string name, uint flags)
    {
        const int longest = 249;
        if ((flags & ~(MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_INACCESSIBLE)) != 0 || (flags & (MFD_ALLOW_SEALING | MFD_HUGETLB)) != 0)
        {
            return current.Fail(Errno.EINVAL, UnknownFlags, flags);
        }
        int length = System.Text.Encoding.UTF8.GetByteCount(name);
        if (length > longest)
        {
            return current.Fail(Errno.EINVAL, NameTooLong, (ulong)length);
        }
        Errno errno = current.Process.Files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        current.Process.Files.Install(fd, new InaccessibleMemfd(current.Host, name));
        return SyscallResult.Of(fd);
    }

    /// <summary>The one-way lock of profile UPM22-shm_lock. Mappings stay, and every later touch of them is SIGBUS.</summary>
    public Errno ShmLock(KTask current)
    {
        if (Host.Profile.PrivateFileAccess != PrivateFileAccess.UntilLocked)
        {
            return current.Fail(Errno.EINVAL, NoSuchOperation);
        }
        using var held = Lock.Enter(current);
        current.Step(LockStep);
        current.Machine.Writing(_shareable);
        _locked = true;
        VfsInode.UnmapMappingRange(current, 0, PageTree<bool>.Limit);
        return Errno.OK;
    }

    /// <summary>Flags pages as shareable, or takes the flag away (profile UPM22-shareable).</summary>
    public Errno SetShareable(KTask current, ulong offset, ulong len, bool shareable)
    {
        if (Host.Profile.PrivateFileAccess != PrivateFileAccess.ShareablePages)
        {
            return current.Fail(Errno.EINVAL, NoSuchOperation);
        }
        if (((offset | len) & PageSize.OffsetMask) != 0 || len == 0 || offset + len < offset || offset + len > Size)
        {
            return current.Fail(Errno.EINVAL, RangeUnaligned, offset, len);
        }
        using var held = Lock.Enter(current);
        current.Machine.Writing(_shareable);
        _shareable.Set(offset >> PageSize.Shift, (offset + len) >> PageSize.Shift, shareable);
        return Errno.OK;
    }

    /// <summary>A launch update encrypted the page: it is not shareable any more.</summary>
    public void Launched(ulong index)
    {
        Host.Machine.Writing(_shareable);
        _shareable.Set(index, false);
    }

    internal override IEnumerable<object> SharedState => [_shareable, .. base.SharedState];

    internal override SyscallResult Read(KTask current, UserArg buffer, ulong count, ref long position) => Transfer(current, buffer, count, ref position, write: false);

    internal override SyscallResult Write(KTask current, UserArg buffer, ulong count, ref long position) => Transfer(current, buffer, count, ref position, write: true);

    internal override Errno Mmap(KTask current, in FileMapping mapping) => Host.Profile.PrivateFileAccess switch
    {
        PrivateFileAccess.UntilLocked => _locked ? current.Fail(Errno.EPERM, Locked) : Errno.OK,
        PrivateFileAccess.SharedByGuest => Errno.OK,
        _ => current.Fail(Errno.EPERM, Inaccessible),
    };

    /// <summary>A touch of a mapping. EFAULT stands for SIGBUS.</summary>
    internal override Errno Fault(KTask current, ulong index, out Pfn pfn)
    {
        pfn = default;
        Errno errno = MayTouch(current, index);
        return (errno == Errno.OK ? GetPage(current, index, out pfn) : errno) == Errno.OK ? Errno.OK : Errno.EFAULT;
    }

    /// <summary>fallocate makes pages private where presence says so: guests lose the shared pages that they have there.</summary>
    protected override void BeforeAllocation(KTask current, ulong start, ulong end)
    {
        if (Host.Profile.PrivateState == PrivateStateDesign.FilePresence)
        {
            ZapBindings(current, start, end);
        }
    }

    // memfile_notifier_invalidate for the pages that go, then shmem removes them.
    protected override void PunchHole(KTask current, ulong start, ulong end)
    {
        using var held = Lock.Enter(current);
        VfsInode.UnmapMappingRange(current, start, end);
        ZapBindings(current, start, end);
        RemovePages(current, start, end);
    }

    private void ZapBindings(KTask current, ulong start, ulong end)
    {
        foreach (Binding binding in Bindings)
        {
            GfnRange gfns = GfnsOf(binding, start, end);
            if (!gfns.IsEmpty)
            {
                binding.Vm.Mmu.ZapGfnRange(current, gfns);
            }
        }
    }

    private SyscallResult Transfer(KTask current, UserArg buffer, ulong count, ref long position, bool write)
    {
        if (Host.Profile.PrivateFileAccess == PrivateFileAccess.Never)
        {
            return current.Fail(Errno.EPERM, Inaccessible);
        }
        ulong left = (ulong)position < Size ? Math.Min(count, Size - (ulong)position) : 0;
        if (left == 0 && count != 0 && write)
        {
            return current.Fail(Errno.EPERM, SizeIsSet, Size, (ulong)position + count);
        }
        byte[] page = new byte[PageSize.Bytes];
        ulong done = 0;
        while (done < left)
        {
            int offset = (int)((ulong)position & PageSize.OffsetMask);
            Span<byte> part = page.AsSpan(0, (int)Math.Min(left - done, (ulong)(PageSize.Bytes - offset)));
            Errno errno = TransferPart(current, buffer, done, (ulong)position, part, write);
            if (errno != Errno.OK)
            {
                return done > 0 ? SyscallResult.Of((long)done) : errno;
            }
            done += (ulong)part.Length;
            position += part.Length;
        }
        return SyscallResult.Of((long)done);
    }

    private Errno TransferPart(KTask current, UserArg buffer, ulong at, ulong position, Span<byte> part, bool write)
    {
        ulong index = position >> PageSize.Shift;
        int offset = (int)(position & PageSize.OffsetMask);
        Errno errno = MayTouch(current, index);
        if (errno == Errno.OK && write)
        {
            errno = buffer.CopyIn(current, part, at);
        }
        return errno == Errno.OK ? TransferLocked(current, buffer, at, index, offset, part, write) : errno;
    }

    // Under the inode's lock, which the one-way lock takes too: whoever was let in is out again before it falls.
    private Errno TransferLocked(KTask current, UserArg buffer, ulong at, ulong index, int offset, Span<byte> part, bool write)
    {
        using var held = Lock.Enter(current);
        Errno errno = MayTouch(current, index);
        Pfn pfn = default;
        if (errno == Errno.OK)
        {
            errno = GetPage(current, index, out pfn);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (write)
        {
            return current.Machine.HostWrite(current, pfn, offset, part) ? Errno.OK : Errno.EFAULT;
        }
        current.Machine.HostRead(pfn, offset, part);
        return buffer.CopyOut(current, part, at);
    }

    // The rules of seed 004, for one page.
    private Errno MayTouch(KTask current, ulong index)
    {
        current.Machine.Reading(_shareable);
        return Access(current, index);
    }

    private Errno Access(KTask current, ulong index) => Host.Profile.PrivateFileAccess switch
    {
        PrivateFileAccess.UntilLocked => _locked ? current.Fail(Errno.EPERM, Locked) : Errno.OK,
        PrivateFileAccess.ShareablePages => _shareable[index] ? Errno.OK : current.Fail(Errno.EPERM, NotShareable, index),
        PrivateFileAccess.SharedByGuest => IsSharedByGuest(index) ? Errno.OK : current.Fail(Errno.EPERM, NotSharedByGuest, index),
        _ => current.Fail(Errno.EPERM, Inaccessible),
    };

    // A page that no guest has is the host's as well as one that its guest shares.
    private bool IsSharedByGuest(ulong index)
    {
        foreach (Binding binding in Bindings)
        {
            GfnRange gfn = GfnsOf(binding, index, index + 1);
            if (!gfn.IsEmpty && PrivatePages.StateOf(binding.Vm, binding.Slot, gfn.Start) != PageState.Shared)
            {
                return false;
            }
        }
        return true;
    }
}
