using System.Buffers.Binary;
using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

/// <summary>
/// The dirty bitmap of a slot with KVM_MEM_LOG_DIRTY_PAGES: which of its pages the guest, or KVM for it, has stored to since they were last told. Told by
/// KVM_GET_DIRTY_LOG; told and kept until KVM_CLEAR_DIRTY_LOG where user space has asked for that (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
/// </summary>
/// <remarks>Under mmu_lock, and slots_lock in the two ioctls. A page whose bit is clear is write-protected in stage 2, so that the next store faults and sets it.</remarks>
internal sealed class DirtyLog
{
    private const int BitsPerWord = 64;
    private const int WordsPerCopy = 512;

    public static readonly Rule NoLog = new(
        "kvm.dirty-log.absent", "there is no slot of that id, or it was made without KVM_MEM_LOG_DIRTY_PAGES", "kvm_get_dirty_log_protect, kvm_clear_dirty_log_protect",
        "create the slot with flag 1", "as_id#", "slot#");

    public static readonly Rule BadSlot = new(
        "kvm.dirty-log.slot", "the address space or the slot id cannot be", "kvm_get_dirty_log_protect", "use an id below KVM_CAP_NR_MEMSLOTS", "as_id#", "slot#");

    public static readonly Rule ClearRange = new(
        "kvm.dirty-log.clear-range", "the range leaves the slot, does not begin at a multiple of 64 pages, or ends at none before the slot's end", "kvm_clear_dirty_log_protect",
        "clear whole words, or up to the end of the slot", "first_page", "num_pages", "slot_pages");

    private readonly Memslot _slot;
    private readonly PageTree<bool> _dirty;

    private DirtyLog(Memslot slot, PageTree<bool> dirty)
    {
        _slot = slot;
        _dirty = dirty;
    }

    /// <summary>kvm_prepare_memory_region: a slot that goes on being logged keeps its bitmap, also where it moves.</summary>
    public static DirtyLog? For(Vm vm, Memslot slot, Memslot? old)
    {
        if ((slot.Flags & KvmMem.LOG_DIRTY_PAGES) == 0)
        {
            return null;
        }
        if (old?.DirtyLog is { } kept)
        {
            return new DirtyLog(slot, kept._dirty);
        }
        var log = new DirtyLog(slot, new PageTree<bool>());
        log._dirty.Set(0, slot.Npages, vm.DirtyLogInitiallySet);
        return log;
    }

    /// <summary>kvm_mmu_slot_apply_flags: when logging begins, stores must fault; where all is dirty from the start, nothing is to be found out.</summary>
    public static void ApplyFlags(KTask current, Vm vm, Memslot slot, Memslot? old)
    {
        bool begins = slot.DirtyLog is not null && old is not null && old.DirtyLog is null;
        if (begins && !vm.DirtyLogInitiallySet)
        {
            using var mmu = vm.Mmu.Lock.Enter(current);
            vm.Mmu.WriteProtect(current, slot.Range, split: true);
        }
    }

    /// <summary>mark_page_dirty_in_slot.</summary>
    /// <param name="relativeGfn">Page of the slot, from 0.</param>
    public void MarkPageDirty(ulong relativeGfn) => _dirty.Set(relativeGfn, true);

    public bool IsDirty(ulong relativeGfn) => _dirty[relativeGfn];

    /// <summary>KVM_GET_DIRTY_LOG. Without manual protection the bits that are told are cleared, also where the copy then faults.</summary>
    public static Errno Get(KTask current, Vm vm, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_dirty_log args);
        if (errno != Errno.OK)
        {
            return errno;
        }
        using var slots = vm.SlotsLock.Enter(current);
        errno = Find(current, vm, args.slot, out DirtyLog? log);
        return errno != Errno.OK ? errno : log!.CopyOut(current, vm, UserArg.FromValue(args.dirty_bitmap));
    }

    private Errno CopyOut(KTask current, Vm vm, UserArg bitmap)
    {
        List<PageRun<bool>> dirty = [];
        foreach (PageRun<bool> run in _dirty.Runs(0, _slot.Npages))
        {
            if (run.Value)
            {
                dirty.Add(run);
            }
        }
        if (!vm.ManualDirtyLogProtect)
        {
            using var mmu = vm.Mmu.Lock.Enter(current);
            foreach (PageRun<bool> run in dirty)
            {
                Clear(current, vm, run.Start, run.End);
            }
        }
        byte[] bytes = new byte[WordsPerCopy * sizeof(ulong)];
        ulong words = (_slot.Npages + BitsPerWord - 1) / BitsPerWord;
        int next = 0;
        for (ulong first = 0; first < words; first += WordsPerCopy)
        {
            int count = (int)Math.Min(WordsPerCopy, words - first);
            Fill(bytes.AsSpan(0, count * sizeof(ulong)), first * BitsPerWord, dirty, ref next);
            Errno errno = bitmap.CopyOut(current, bytes.AsSpan(0, count * sizeof(ulong)), first * sizeof(ulong));
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return Errno.OK;
    }

    // Sets the bits of the runs that fall into a piece of the bitmap which begins at a page.
    private static void Fill(Span<byte> bits, ulong firstPage, List<PageRun<bool>> dirty, ref int next)
    {
        bits.Clear();
        ulong end = firstPage + ((ulong)bits.Length * 8);
        for (; next < dirty.Count && dirty[next].Start < end; next++)
        {
            for (ulong page = Math.Max(dirty[next].Start, firstPage); page < Math.Min(dirty[next].End, end); page++)
            {
                bits[(int)((page - firstPage) / 8)] |= (byte)(1 << (int)(page % 8));
            }
            if (dirty[next].End > end)
            {
                return;
            }
        }
    }

    /// <summary>KVM_CLEAR_DIRTY_LOG: clears the bits that the caller's bitmap has. It needs no manual protection.</summary>
    public static Errno Clear(KTask current, Vm vm, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_clear_dirty_log args);
        if (errno != Errno.OK)
        {
            return errno;
        }
        using var slots = vm.SlotsLock.Enter(current);
        errno = Find(current, vm, args.slot, out DirtyLog? log, args.first_page % BitsPerWord != 0 ? args : null);
        return errno != Errno.OK ? errno : log!.Clear(current, vm, args);
    }

    private Errno Clear(KTask current, Vm vm, in kvm_clear_dirty_log args)
    {
        ulong left = _slot.Npages - Math.Min(args.first_page, _slot.Npages);
        if (args.first_page > _slot.Npages || args.num_pages > left || (args.num_pages < left && args.num_pages % BitsPerWord != 0))
        {
            return current.Fail(Errno.EINVAL, ClearRange, args.first_page, args.num_pages, _slot.Npages);
        }
        byte[] bits = new byte[(args.num_pages + BitsPerWord - 1) / BitsPerWord * sizeof(ulong)];
        Errno errno = UserArg.FromValue(args.dirty_bitmap).CopyIn(current, bits);
        if (errno != Errno.OK)
        {
            return errno;
        }
        using var mmu = vm.Mmu.Lock.Enter(current);
        for (int at = 0; at < bits.Length; at += sizeof(ulong))
        {
            ulong word = BinaryPrimitives.ReadUInt64LittleEndian(bits.AsSpan(at));
            for (; word != 0; word &= word - 1)
            {
                ulong page = args.first_page + ((ulong)at * 8) + (ulong)System.Numerics.BitOperations.TrailingZeroCount(word);
                if (page < _slot.Npages && _dirty[page])
                {
                    Clear(current, vm, page, page + 1);
                }
            }
        }
        return Errno.OK;
    }

    // kvm_arch_mmu_enable_log_dirty_pt_masked: the next store faults again.
    private void Clear(KTask current, Vm vm, ulong first, ulong last)
    {
        _dirty.Set(first, last, false);
        vm.Mmu.WriteProtect(current, GfnRange.FromPages(new Gfn(_slot.BaseGfn + first), last - first), split: true);
    }

    private static Errno Find(KTask current, Vm vm, uint slot, out DirtyLog? log, kvm_clear_dirty_log? misaligned = null)
    {
        int asId = (int)(slot >> 16);
        int id = (int)(slot & 0xffff);
        log = null;
        if (asId >= vm.AddressSpaceCount || id >= Memslots.UserMemSlots)
        {
            return current.Fail(Errno.EINVAL, BadSlot, (ulong)asId, (ulong)id);
        }
        if (misaligned is { } args)
        {
            return current.Fail(Errno.EINVAL, ClearRange, args.first_page, args.num_pages, 0);
        }
        log = vm.Memslots.FindById(asId, id)?.DirtyLog;
        return log is null ? current.Fail(Errno.ENOENT, NoLog, (ulong)asId, (ulong)id) : Errno.OK;
    }
}
