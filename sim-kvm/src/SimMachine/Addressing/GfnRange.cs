// A half-open run of guest pages. It cannot be backwards and cannot reach past the last page of a 64-bit guest physical address;
// what a caller may ask for (limits of the guest, empty requests) is for the caller to check first.

namespace SimMachine.Addressing;

/// <summary>The guest pages from <see cref="Start"/> up to, but not including, <see cref="End"/>.</summary>
public readonly record struct GfnRange
{
    /// <summary>One past the highest page number that 64-bit byte addresses can name.</summary>
    public const ulong Limit = 1UL << (64 - PageSize.Shift);

    /// <exception cref="ArgumentException">The range is backwards or reaches past <see cref="Limit"/>.</exception>
    public GfnRange(Gfn start, Gfn end)
    {
        if (start > end || end.Value > Limit)
            throw new ArgumentException($"[{start}, {end}) is not a range of guest pages.", nameof(end));
        Start = start;
        End = end;
    }

    public Gfn Start { get; }

    public Gfn End { get; }

    /// <summary>Pages in the range.</summary>
    public ulong Count => End - Start;

    public bool IsEmpty => Start == End;

    /// <summary>The pages of <paramref name="size"/> bytes from <paramref name="gpa"/>.</summary>
    /// <exception cref="ArgumentException">Either is not a multiple of 4 KiB, or their sum passes 2^64.</exception>
    public static GfnRange FromBytes(ulong gpa, ulong size)
    {
        if (((gpa | size) & PageSize.OffsetMask) != 0)
            throw new ArgumentException($"gpa 0x{gpa:x} and size 0x{size:x} are not both multiples of 4 KiB.", nameof(gpa));
        var start = gpa >> PageSize.Shift;
        return new GfnRange(new Gfn(start), new Gfn(start + (size >> PageSize.Shift)));
    }

    public static GfnRange FromPages(Gfn start, ulong count) =>
        count <= Limit
            ? new GfnRange(start, start + count)
            : throw new ArgumentException($"0x{count:x} pages are more than an address space has.", nameof(count));

    public bool Contains(Gfn gfn) => gfn >= Start && gfn < End;

    /// <summary>Whether every page of <paramref name="other"/> is in this range. An empty range is in every range.</summary>
    public bool Contains(GfnRange other) => other.IsEmpty || (other.Start >= Start && other.End <= End);

    public bool Overlaps(GfnRange other) => !Intersect(other).IsEmpty;

    /// <summary>The pages in both; an empty range if there are none.</summary>
    public GfnRange Intersect(GfnRange other)
    {
        var start = Start > other.Start ? Start : other.Start;
        var end = End < other.End ? End : other.End;
        return start < end ? new GfnRange(start, end) : default;
    }

    public override string ToString() => $"[{Start}, {End})";
}
