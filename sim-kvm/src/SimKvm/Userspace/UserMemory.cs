using SimKvm.Locking;
using SimMachine.Addressing;

namespace SimKvm.Userspace;

/// <summary>
/// The memory of a VMM process (mm_struct): mappings, and the frames behind what was touched. Mapping calls are in <c>UserMemory.Mmap.cs</c>; here are the
/// accesses: loads and stores of the program, copies of the kernel, and page pins.
/// </summary>
/// <remarks>
/// mmap_lock is taken for reading by every access, because any of them may fault (might_fault). Anonymous memory that was never stored to reads as zeros and
/// has no frame. Pages of a mapped file are asked for at each access and never cached, so a hole punched into the file is seen at once.
/// Invariant: a page has a frame only inside an anonymous mapping.
/// </remarks>
public sealed partial class UserMemory
{
    private readonly SimHost _host;
    private readonly RangeMap<Vma> _vmas = new();

    // Page number to frame number; 0 where nothing was stored yet.
    private readonly PageTree<ulong> _pages = new();

    internal UserMemory(SimHost host) => _host = host;

    internal SimLock MmapLock { get; } = new(LockOrder.Mmap);

    /// <summary>Reads as far as it can; false where a byte cannot be read (the rest is then left alone).</summary>
    internal bool TryRead(KTask current, ulong address, Span<byte> destination) => Read(current, address, destination) == destination.Length;

    /// <summary>Stores all or, where a byte cannot be stored, what comes before it.</summary>
    internal bool TryWrite(KTask current, ulong address, ReadOnlySpan<byte> source) => Write(current, address, source) == source.Length;

    /// <summary>Loads; gives the number of bytes that could be read.</summary>
    internal int Read(KTask current, ulong address, Span<byte> destination)
    {
        using var mmap = MmapLock.EnterShared(current);
        int done = 0;
        while (done < destination.Length)
        {
            ulong at = address + (ulong)done;
            int offset = (int)(at & PageSize.OffsetMask);
            Span<byte> part = destination[done..Math.Min(destination.Length, done + PageSize.Bytes - offset)];
            if (Lookup(current, at, write: false, out Pfn pfn) != Errno.OK)
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

    /// <summary>Stores; gives the number of bytes that could be stored.</summary>
    internal int Write(KTask current, ulong address, ReadOnlySpan<byte> source)
    {
        using var mmap = MmapLock.EnterShared(current);
        int done = 0;
        while (done < source.Length)
        {
            ulong at = address + (ulong)done;
            int offset = (int)(at & PageSize.OffsetMask);
            ReadOnlySpan<byte> part = source[done..Math.Min(source.Length, done + PageSize.Bytes - offset)];
            if (Lookup(current, at, write: true, out Pfn pfn) != Errno.OK || !_host.Machine.HostWrite(current, pfn, offset, part))
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
    internal Errno Pin(KTask current, ulong address, bool write, out Pfn pfn)
    {
        using var mmap = MmapLock.EnterShared(current);
        Errno errno = Lookup(current, address, write, out pfn);
        if (errno == Errno.OK && pfn.Value == 0)
        {
            pfn = _host.ZeroPage;
        }
        return errno;
    }

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

    /// <summary>The frames of anonymous pages.</summary>
    internal IEnumerable<Pfn> Frames()
    {
        foreach (PageRun<ulong> run in _pages.Runs(0, PageTree<ulong>.Limit))
        {
            for (ulong page = run.Start; run.Value != 0 && page < run.End; page++)
            {
                yield return new Pfn(run.Value);
            }
        }
    }

    /// <summary>The maps are whole, and a page has a frame only inside an anonymous mapping.</summary>
    internal void CheckInvariants()
    {
        _vmas.CheckInvariants();
        _pages.CheckInvariants();
        foreach (PageRun<ulong> run in _pages.Runs(0, PageTree<ulong>.Limit))
        {
            for (ulong page = run.Start; run.Value != 0 && page < run.End; page++)
            {
                if (!_vmas.TryFind(page << PageSize.Shift, out _, out Vma? vma) || vma.File is not null)
                {
                    throw new InvalidOperationException($"page 0x{page:x} has frame 0x{run.Value:x} outside of anonymous memory");
                }
            }
        }
    }

    // Frame 0 stands for the zero page, and is given for loads only.
    private Errno Lookup(KTask current, ulong address, bool write, out Pfn pfn)
    {
        pfn = default;
        if (!_vmas.TryFind(address, out AddressRange range, out Vma? vma))
        {
            return current.Fail(Errno.EFAULT, NotMapped, address);
        }
        if (!(write ? vma.Writable : vma.Readable))
        {
            return current.Fail(Errno.EFAULT, Protected, address, vma.Prot);
        }
        if (vma.File is not null)
        {
            return vma.File.Fault(current, vma.FilePage + ((address - range.Start) >> PageSize.Shift), out pfn);
        }
        ulong page = address >> PageSize.Shift;
        pfn = new Pfn(_pages[page]);
        if (pfn.Value == 0 && write)
        {
            if (!_host.Machine.TryAllocateFrame(out pfn))
            {
                return current.Fail(Errno.ENOMEM, OutOfMemory, address);
            }
            // What was mapped for loads was the zero page.
            Notify(current, page << PageSize.Shift, (page + 1) << PageSize.Shift);
            _pages.Set(page, pfn.Value);
        }
        return Errno.OK;
    }
}
