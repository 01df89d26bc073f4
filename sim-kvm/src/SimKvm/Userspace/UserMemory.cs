using SimKvm.Locking;
using SimMachine.Addressing;

namespace SimKvm.Userspace;

/// <summary>
/// The memory of a VMM process (mm_struct): mappings, and the frames behind what was touched. Here are the accesses: loads and stores of the
/// program, copies of the kernel, and page pins. Next door: mmap and munmap, changes of mappings, advice, what is common to them, and fork.
/// </summary>
/// <remarks>
/// mmap_lock is taken for reading by every access, because any of them may fault (might_fault). Anonymous memory that was never stored to reads as zeros and
/// has no frame. Pages of a mapped file are asked for at each access and never cached, so a hole punched into the file is seen at once.
/// Invariant: a page has a frame of its own only inside a private mapping: all pages of an anonymous one, and those of a file that were stored to.
/// </remarks>
public sealed partial class UserMemory
{
    private readonly SimHost _host;
    private readonly RangeMap<Vma> _vmas = new();

    // Page number to frame number, for pages that are the mapping's own; 0 where nothing is, or one of the two below.
    private readonly PageTree<ulong> _pages = new();

    // A load found no page: the page table has the zero page, which a store replaces.
    private const ulong ZeroPageMapped = ulong.MaxValue;

    // A hwpoison entry: the page's memory failed.
    private const ulong PoisonedPage = ulong.MaxValue - 1;

    internal UserMemory(SimHost host) => _host = host;

    internal SimLock MmapLock { get; } = new(LockOrder.Mmap);

    internal IEnumerable<object> SharedState => [MmapLock, _pages];

    /// <summary>Reads as far as it can; false where a byte cannot be read (the rest is then left alone).</summary>
    internal bool TryRead(KTask current, ulong address, Span<byte> destination) => Read(current, address, destination, out _) == destination.Length;

    /// <summary>Stores all or, where a byte cannot be stored, what comes before it.</summary>
    internal bool TryWrite(KTask current, ulong address, ReadOnlySpan<byte> source) => Write(current, address, source, out _) == source.Length;

    /// <summary>Loads; gives the number of bytes that could be read, and if that is not all, the signal that a program's load brings.</summary>
    internal int Read(KTask current, ulong address, Span<byte> destination, out Signal? signal)
    {
        using var mmap = MmapLock.EnterShared(current);
        signal = null;
        int done = 0;
        while (done < destination.Length)
        {
            ulong at = address + (ulong)done;
            int offset = (int)(at & PageSize.OffsetMask);
            Span<byte> part = destination[done..Math.Min(destination.Length, done + PageSize.Bytes - offset)];
            signal = HandleFault(current, at, write: false, out Pfn pfn);
            if (signal is not null)
            {
                break;
            }
            if (pfn.Value == 0)
            {
                part.Clear();
            }
            else
            {
                _host.Machine.HostRead(pfn, offset, part);
            }
            done += part.Length;
        }
        return done;
    }

    /// <summary>Stores; gives the number of bytes that could be stored, and if that is not all, the signal that a program's store brings.</summary>
    internal int Write(KTask current, ulong address, ReadOnlySpan<byte> source, out Signal? signal)
    {
        using var mmap = MmapLock.EnterShared(current);
        signal = null;
        int done = 0;
        while (done < source.Length)
        {
            ulong at = address + (ulong)done;
            int offset = (int)(at & PageSize.OffsetMask);
            ReadOnlySpan<byte> part = source[done..Math.Min(source.Length, done + PageSize.Bytes - offset)];
            signal = HandleFault(current, at, write: true, out Pfn pfn);
            if (signal is null && !_host.Machine.HostWrite(current, pfn, offset, part))
            {
                // The page belongs to a guest (RMP fault); the finding names it.
                signal = Signal.BusAdrErr(at);
            }
            if (signal is not null)
            {
                break;
            }
            done += part.Length;
        }
        return done;
    }

    /// <summary>
    /// get_user_pages of one page: the frame behind an address, made if it is to be written to. EFAULT where the address cannot be accessed so.
    /// </summary>
    /// <param name="hold">The pin is a reference (<see cref="PagePins"/>), which the caller drops; else it is over with the call, because nobody comes in between.</param>
    internal Errno Pin(KTask current, ulong address, bool write, out Pfn pfn, bool hold = false)
    {
        using var mmap = MmapLock.EnterShared(current);
        while (true)
        {
            Errno errno = Lookup(current, address, write, out pfn);
            if (errno != Errno.OK)
            {
                return Errno.EFAULT;
            }
            pfn = pfn.Value == 0 ? _host.ZeroPage : pfn;
            if (!hold)
            {
                return Errno.OK;
            }
            // gup_fast: take the reference, then look whether the page is still what is mapped there.
            if (StillMaps(address, pfn))
            {
                _host.PagePins.Pin(pfn);
                return Errno.OK;
            }
        }
    }

    private bool StillMaps(ulong address, Pfn pfn) =>
        !_vmas.TryFind(address, out AddressRange range, out Vma? vma) || vma.File is null || IsOwnPage(address)
        || vma.File.StillGives(vma.FilePage + ((address - range.Start) >> PageSize.Shift), pfn);

    /// <summary>The file behind each mapping of a file: a reference each.</summary>
    internal IEnumerable<KernelFile> MappedFiles()
    {
        var files = new List<KernelFile>();
        foreach ((_, Vma vma) in _vmas.Enumerate())
        {
            if (vma.File is not null)
            {
                files.Add(vma.File);
            }
        }
        return files;
    }

    /// <summary>The frames of the process's own pages.</summary>
    internal IEnumerable<Pfn> Frames()
    {
        foreach (PageRun<ulong> run in _pages.Runs(0, PageTree<ulong>.Limit))
        {
            for (ulong page = run.Start; run.Value is not (0 or ZeroPageMapped or PoisonedPage) && page < run.End; page++)
            {
                yield return new Pfn(run.Value);
            }
        }
    }

    /// <summary>The maps are whole, and a page has a frame of its own only inside a private mapping.</summary>
    internal void CheckInvariants()
    {
        _vmas.CheckInvariants();
        _pages.CheckInvariants();
        foreach (PageRun<ulong> run in _pages.Runs(0, PageTree<ulong>.Limit))
        {
            for (ulong page = run.Start; run.Value is not (0 or ZeroPageMapped or PoisonedPage) && page < run.End; page++)
            {
                if (!_vmas.TryFind(page << PageSize.Shift, out _, out Vma? vma) || vma.Shared)
                {
                    throw new InvalidOperationException($"page 0x{page:x} has frame 0x{run.Value:x} outside of private mappings");
                }
            }
        }
    }

    // get_user_pages knows no signals: what would be SIGBUS or SIGSEGV is EFAULT, and a failed page EHWPOISON for who asks (FOLL_HWPOISON).
    private Errno Lookup(KTask current, ulong address, bool write, out Pfn pfn) => HandleFault(current, address, write, out pfn) switch
    {
        null => Errno.OK,
        { Signo: Signo.SIGKILL } => Errno.ENOMEM,
        var signal => signal == Signal.BusMceErrAr(address) ? Errno.EHWPOISON : Errno.EFAULT,
    };

    // handle_mm_fault: null and the frame, or the signal for a program's access. Frame 0 stands for the zero page, and is given for loads only.
    private Signal? HandleFault(KTask current, ulong address, bool write, out Pfn pfn)
    {
        Signal? signal = HandlePage(current, address, write, out pfn);
        if (signal is not null || _host.Machine.El2.HostMayAccess(pfn))
        {
            return signal;
        }
        // A page that a protected guest owns is not mapped in the host's stage 2: the access comes back from EL2.
        current.Fail(Errno.EFAULT, OwnedByGuest, address, pfn.Value);
        return Signal.SegvAccErr(address);
    }

    private Signal? HandlePage(KTask current, ulong address, bool write, out Pfn pfn)
    {
        pfn = default;
        if (!_vmas.TryFind(address, out AddressRange range, out Vma? vma))
        {
            current.Fail(Errno.EFAULT, NotMapped, address);
            return Signal.SegvMapErr(address);
        }
        if (!(write ? vma.Writable : vma.Readable))
        {
            current.Fail(Errno.EFAULT, Protected, address, vma.Prot);
            return Signal.SegvAccErr(address);
        }
        ulong page = address >> PageSize.Shift;
        current.Machine.Reading(_pages, page, page + 1);
        ulong entry = _pages[page];
        if (entry == PoisonedPage)
        {
            current.Fail(Errno.EFAULT, PageFailed, address);
            return Signal.BusMceErrAr(address);
        }
        if (entry is not (0 or ZeroPageMapped))
        {
            pfn = new Pfn(entry);
            return null;
        }
        if (vma.File is not null)
        {
            Errno errno = vma.File.Fault(current, vma.FilePage + ((address - range.Start) >> PageSize.Shift), out pfn);
            if (errno != Errno.OK)
            {
                return errno switch
                {
                    Errno.EHWPOISON => Signal.BusMceErrAr(address),
                    Errno.ENOMEM => Signal.OutOfMemory,
                    _ => Signal.BusAdrErr(address),
                };
            }
            return write && !vma.Shared ? CopyForWriting(current, address, page, ref pfn) : null;
        }
        if (!write)
        {
            current.Machine.Writing(_pages, page, page + 1);
            _pages.Set(page, ZeroPageMapped);
            return null;
        }
        return CopyForWriting(current, address, page, ref pfn);
    }

    // do_anonymous_page and do_cow_fault: the page that is stored to becomes the mapping's own. Whoever mapped what was seen there before must look again.
    private Signal? CopyForWriting(KTask current, ulong address, ulong page, ref Pfn pfn)
    {
        Pfn source = pfn;
        if (!_host.Machine.TryAllocateFrame(out pfn))
        {
            current.Fail(Errno.ENOMEM, OutOfMemory, address);
            return Signal.OutOfMemory;
        }
        current.Machine.Writing(_pages, page, page + 1);
        if (source.Value == 0 && _pages[page] == 0)
        {
            _pages.Set(page, pfn.Value);
            return null;
        }
        using var invalidation = Invalidate(current, page << PageSize.Shift, (page + 1) << PageSize.Shift);
        if (source.Value != 0)
        {
            _host.Machine.HostCopy(current, source, pfn);
        }
        _pages.Set(page, pfn.Value);
        return null;
    }
}
