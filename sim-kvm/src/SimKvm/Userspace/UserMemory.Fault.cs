using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>A page of a process as the host's page tables have it.</summary>
/// <param name="Pfn">The frame.</param>
/// <param name="Writable">It may be written to without another fault.</param>
/// <param name="Level">The size of the host's mapping.</param>
internal readonly record struct HostPage(Pfn Pfn, bool Writable, PageLevel Level);

// What KVM asks of user memory: the frame behind an address of a slot.
public sealed partial class UserMemory
{
    public static readonly Rule PinUnaligned = new(
        "mm.pin.alignment", "a pin is of whole pages", "pin_user_pages", "align address and length to 4096", "addr", "length");

    public static readonly Rule NoSuchPin = new("mm.pin.unknown", "there is no such pin", "unpin_user_pages", "use the id that the pin gave", "pin#");

    private readonly SortedDictionary<ulong, Pfn[]> _longTermPins = [];
    private ulong _lastPin;

    /// <summary>pin_user_pages with FOLL_LONGTERM: all pages or none.</summary>
    internal SyscallResult PinLongTerm(KTask current, ulong address, ulong length, bool write)
    {
        if (length == 0 || ((address | length) & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, PinUnaligned, address, length);
        }
        var frames = new Pfn[length >> PageSize.Shift];
        for (int i = 0; i < frames.Length; i++)
        {
            Errno errno = Pin(current, address + ((ulong)i << PageSize.Shift), write, out frames[i]);
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        foreach (Pfn frame in frames)
        {
            _host.PagePins.Pin(frame);
        }
        _longTermPins.Add(++_lastPin, frames);
        return SyscallResult.Of((long)_lastPin);
    }

    internal Errno UnpinLongTerm(KTask current, ulong pin)
    {
        if (!_longTermPins.Remove(pin, out Pfn[]? frames))
        {
            return current.Fail(Errno.EINVAL, NoSuchPin, pin);
        }
        foreach (Pfn frame in frames)
        {
            _host.PagePins.Unpin(current, frame);
        }
        return Errno.OK;
    }

    private void UnpinAll(KTask current)
    {
        foreach (ulong pin in _longTermPins.Keys.ToArray())
        {
            UnpinLongTerm(current, pin);
        }
    }

    /// <summary>hva_to_pfn: faults the page in. A load of memory that nobody wrote gives the zero page, read-only.</summary>
    /// <returns>EFAULT where the address cannot be accessed so.</returns>
    internal Errno FaultIn(KTask current, ulong address, bool write, out HostPage page)
    {
        using var mmap = MmapLock.EnterShared(current);
        page = default;
        Errno errno = Lookup(current, address, write, out Pfn pfn);
        if (errno != Errno.OK)
        {
            return errno;
        }
        bool untouched = pfn.Value == 0;
        // A file's page behind a private mapping is copied by the first store.
        _vmas.TryFind(address, out _, out Vma? vma);
        bool writable = write || (!untouched && vma is { Writable: true } && (vma.Shared || IsOwnPage(address)));
        page = new HostPage(untouched ? _host.ZeroPage : pfn, writable, vma?.File is { } file && vma.Shared ? file.MappingLevel : PageLevel.Page4K);
        return Errno.OK;
    }

    /// <summary>The frame that an access would reach as things are, without bringing anything about. Frame 0 stands for the zero page.</summary>
    internal bool TryPeek(ulong address, out Pfn pfn)
    {
        pfn = default;
        if (!_vmas.TryFind(address, out AddressRange range, out Vma? vma))
        {
            return false;
        }
        ulong entry = _pages[address >> PageSize.Shift];
        if (entry == PoisonedPage)
        {
            return false;
        }
        if (vma.File is not null && entry == 0)
        {
            return vma.File.TryPeek(vma.FilePage + ((address - range.Start) >> PageSize.Shift), out pfn);
        }
        pfn = new Pfn(entry == ZeroPageMapped ? 0 : entry);
        return true;
    }
}
