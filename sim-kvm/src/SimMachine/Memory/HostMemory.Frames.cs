// The frame table of HostMemory and the allocation of frames.
//
// A frame that was handed out and has not been touched since is not in the table: below the high-water mark, absent means
// allocated, key 0, never written. So a machine costs table space for the frames that its guests touch, in groups of 256. Fresh
// frames are handed out in ascending order; freed ones first, the last freed before the others. Frame 0 is never handed out,
// so that a zero Pfn in a table is an error that shows.

using System.Runtime.InteropServices;
using SimMachine.Addressing;

namespace SimMachine;

public sealed unsafe partial class HostMemory
{
    /// <summary>The largest machine: 256 TiB.</summary>
    public const ulong MaxPages = 1UL << 36;

    private const int GroupShift = 8;
    private const int GroupSize = 1 << GroupShift;
    private static readonly Frame s_untouched;

    private Frame[]?[] _groups = [];
    private ulong _highest; // frames 1.._highest have been handed out at least once
    private ulong _freeHead; // the frame freed last, 0 for none
    private long _freeCount;
    private bool _disposed;

    private enum FrameState
    {
        Allocated = 0,
        Free = 1,
        Leaked = 2,
    }

    /// <summary>Frames that the machine has: those from 1 to TotalPages. Frame 0 exists beside them and is nobody's.</summary>
    public ulong TotalPages { get; }

    /// <summary>Frames in use. Neither free nor leaked ones count.</summary>
    public long AllocatedPages => (long)_highest - _freeCount - LeakedPages;

    /// <summary>Frames with bytes behind them.</summary>
    public long BackedPages { get; private set; }

    /// <summary>Frames that are lost until the machine is switched off.</summary>
    public long LeakedPages { get; private set; }

    /// <summary>Hands out a frame that reads as zeros under key 0. False if the machine has none left.</summary>
    public bool TryAllocate(out Pfn pfn)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        if (_freeHead != 0)
        {
            pfn = new Pfn(_freeHead);
            ref var frame = ref Touch(pfn);
            _freeHead = frame.NextFree;
            _freeCount--;
            frame.SetAllocated();
            return true;
        }
        if (_highest == TotalPages)
        {
            pfn = default;
            return false;
        }
        pfn = new Pfn(++_highest);
        return true;
    }

    /// <summary>Hands out frames that follow each other, the first at a multiple of their number, as for a huge page.</summary>
    /// <param name="count">A power of two.</param>
    /// <param name="pfn">The first frame.</param>
    /// <returns>False if the part of the machine that was never handed out has no such run; single frames may be left.</returns>
    public bool TryAllocateRun(ulong count, out Pfn pfn)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        ulong first = (_highest + count) & ~(count - 1);
        pfn = new Pfn(first);
        if (first + count - 1 > TotalPages)
        {
            return false;
        }
        while (_highest + 1 < first)
        {
            // What alignment skips is for single pages.
            Free(new Pfn(++_highest));
        }
        _highest = first + count - 1;
        return true;
    }

    public bool IsAllocated(Pfn pfn) => IsKnown(pfn) && Peek(pfn).State == FrameState.Allocated;

    public bool IsLeaked(Pfn pfn) => IsKnown(pfn) && Peek(pfn).State == FrameState.Leaked;

    /// <summary>Gives the frame back. Its contents and key are gone at once; its version goes on, so that ciphertext never repeats.</summary>
    public void Free(Pfn pfn)
    {
        Allocated(pfn);
        ref var frame = ref Touch(pfn);
        DropPage(ref frame);
        SetKey(pfn, ref frame, 0);
        frame.Version++;
        frame.SetFree(_freeHead);
        _freeHead = pfn.Value;
        _freeCount++;
    }

    /// <summary>Gives the frame up: it is never handed out again. This is what a kernel does with a page that it cannot take back from
    /// the firmware's hands.</summary>
    public void Leak(Pfn pfn)
    {
        Allocated(pfn);
        ref var frame = ref Touch(pfn);
        DropPage(ref frame);
        SetKey(pfn, ref frame, 0);
        frame.SetLeaked();
        LeakedPages++;
    }

    /// <summary>Checks the counters and the free list against the table.</summary>
    /// <exception cref="InvalidOperationException">They disagree: a bug of this class.</exception>
    public void CheckInvariants()
    {
        long backed = 0, leaked = 0, free = 0, chain = 0;
        for (var group = 0; group < _groups.Length; group++)
        {
            for (var i = 0; i < (_groups[group]?.Length ?? 0); i++)
            {
                ref readonly var frame = ref _groups[group]![i];
                var pfn = ((ulong)group << GroupShift) + (ulong)i;
                Require(frame.IsUntouched || IsKnown(new Pfn(pfn)), $"frame 0x{pfn:x} was never handed out and is not clean");
                backed += frame.Page != null ? 1 : 0;
                leaked += frame.State == FrameState.Leaked ? 1 : 0;
                free += frame.State == FrameState.Free ? 1 : 0;
            }
        }
        for (var next = _freeHead; next != 0; next = Peek(new Pfn(next)).NextFree)
        {
            var isFree = IsKnown(new Pfn(next)) && Peek(new Pfn(next)).State == FrameState.Free;
            Require(isFree, $"frame 0x{next:x} is on the free list and not free");
            Require(++chain <= _freeCount, "the free list is longer than counted");
        }
        Require(chain == _freeCount && free == _freeCount, $"{free} frames are free, {chain} on the list, {_freeCount} counted");
        Require(backed == BackedPages, $"{backed} frames are backed, {BackedPages} counted");
        Require(leaked == LeakedPages, $"{leaked} frames are leaked, {LeakedPages} counted");

        static void Require(bool condition, string what)
        {
            if (!condition)
                throw new InvalidOperationException($"HostMemory: {what}.");
        }
    }

    private bool IsKnown(Pfn pfn) => pfn.Value - 1 < _highest;

    /// <summary>The state of a frame that must be in use, to be read.</summary>
    private ref readonly Frame Allocated(Pfn pfn)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        if (!IsAllocated(pfn))
            throw new InvalidOperationException($"Frame {pfn} {(IsKnown(pfn) ? $"is {Peek(pfn).State}" : "was never handed out")}.");
        return ref Peek(pfn);
    }

    private ref readonly Frame Peek(Pfn pfn)
    {
        var group = pfn.Value >> GroupShift;
        if (group < (ulong)_groups.Length && _groups[group] is { } frames)
            return ref frames[(int)(pfn.Value & (GroupSize - 1))];
        return ref s_untouched;
    }

    /// <summary>The state of a frame, to be changed: from now on it is in the table.</summary>
    private ref Frame Touch(Pfn pfn)
    {
        var group = (int)(pfn.Value >> GroupShift);
        if (group >= _groups.Length)
            Array.Resize(ref _groups, Math.Max(group + 1, _groups.Length * 2));
        var frames = _groups[group] ??= new Frame[GroupSize];
        return ref frames[(int)(pfn.Value & (GroupSize - 1))];
    }

    private void SetPage(ref Frame frame, byte* page)
    {
        frame.SetPage(page);
        BackedPages++;
    }

    private void DropPage(ref Frame frame)
    {
        if (frame.Page == null)
            return;
        _arena.Return(frame.Page);
        frame.SetPage(null);
        BackedPages--;
    }

    private void ReturnAllPages()
    {
        if (_disposed)
            return;
        _disposed = true;
        byte* first = null;
        byte* last = null;
        long count = 0;
        foreach (var group in _groups)
        {
            foreach (ref readonly var frame in group.AsSpan())
            {
                var page = frame.Page;
                if (page == null)
                    continue;
                PageArena.Link(page, first);
                first = page;
                last = last == null ? page : last;
                count++;
            }
        }
        if (count > 0)
            _arena.ReturnChain(first, last, count);
        _groups = [];
        BackedPages = 0;
    }

    /// <summary>
    /// 16 bytes a frame. The first word holds the address of the bytes, or for a free frame the number of the next free one;
    /// pages are 4 KiB aligned, so its low bits hold the state.
    /// </summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Frame
    {
        private const int LinkShift = 12;
        private const ulong StateMask = 3;

        private ulong _word;
        public uint Key;
        public uint Version;

        public readonly FrameState State => (FrameState)(_word & StateMask);

        public readonly byte* Page => State == FrameState.Allocated ? (byte*)_word : null;

        public readonly ulong NextFree => _word >> LinkShift;

        public readonly bool IsUntouched => _word == 0 && Key == 0 && Version == 0;

        public void SetPage(byte* page) => _word = (ulong)page;

        public void SetAllocated() => _word = 0;

        public void SetFree(ulong next) => _word = (next << LinkShift) | (ulong)FrameState.Free;

        public void SetLeaked() => _word = (ulong)FrameState.Leaked;
    }
}
