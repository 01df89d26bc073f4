// The three kinds of address of the simulated machine, as types, so that a guest page cannot be passed where a host frame is meant.
// Ranges of guest pages are next door in GfnRange.cs, page sizes in PageLevel.cs. Each is a bare ulong at run time.

namespace SimMachine.Addressing;

/// <summary>A guest physical address, in bytes.</summary>
public readonly record struct Gpa(ulong Value) : IComparable<Gpa>
{
    /// <summary>The page that holds this address.</summary>
    public Gfn ToGfn() => new(Value >> PageSize.Shift);

    /// <summary>Bytes from the start of the page.</summary>
    public int PageOffset => (int)(Value & PageSize.OffsetMask);

    public bool IsPageAligned => PageOffset == 0;

    public int CompareTo(Gpa other) => Value.CompareTo(other.Value);

    public static Gpa operator +(Gpa left, ulong bytes) => new(left.Value + bytes);

    /// <summary>The distance in bytes.</summary>
    public static ulong operator -(Gpa left, Gpa right) => left.Value - right.Value;

    public static bool operator <(Gpa left, Gpa right) => left.Value < right.Value;

    public static bool operator >(Gpa left, Gpa right) => left.Value > right.Value;

    public static bool operator <=(Gpa left, Gpa right) => left.Value <= right.Value;

    public static bool operator >=(Gpa left, Gpa right) => left.Value >= right.Value;

    public override string ToString() => $"0x{Value:x}";
}

/// <summary>A guest frame number: a guest physical address in units of 4 KiB, whatever the size of the mapping.</summary>
public readonly record struct Gfn(ulong Value) : IComparable<Gfn>
{
    /// <summary>The address of the page's first byte.</summary>
    public Gpa ToGpa() => new(Value << PageSize.Shift);

    public int CompareTo(Gfn other) => Value.CompareTo(other.Value);

    public static Gfn operator +(Gfn left, ulong pages) => new(left.Value + pages);

    /// <summary>The distance in pages.</summary>
    public static ulong operator -(Gfn left, Gfn right) => left.Value - right.Value;

    public static bool operator <(Gfn left, Gfn right) => left.Value < right.Value;

    public static bool operator >(Gfn left, Gfn right) => left.Value > right.Value;

    public static bool operator <=(Gfn left, Gfn right) => left.Value <= right.Value;

    public static bool operator >=(Gfn left, Gfn right) => left.Value >= right.Value;

    public override string ToString() => $"0x{Value:x}";
}

/// <summary>A host frame number: a page of the machine's physical memory. Zero is never a frame, see <see cref="HostMemory"/>.</summary>
public readonly record struct Pfn(ulong Value) : IComparable<Pfn>
{
    /// <summary>The system physical address of the frame's first byte.</summary>
    public ulong ToAddress() => Value << PageSize.Shift;

    public int CompareTo(Pfn other) => Value.CompareTo(other.Value);

    public static Pfn operator +(Pfn left, ulong pages) => new(left.Value + pages);

    /// <summary>The distance in pages.</summary>
    public static ulong operator -(Pfn left, Pfn right) => left.Value - right.Value;

    public static bool operator <(Pfn left, Pfn right) => left.Value < right.Value;

    public static bool operator >(Pfn left, Pfn right) => left.Value > right.Value;

    public static bool operator <=(Pfn left, Pfn right) => left.Value <= right.Value;

    public static bool operator >=(Pfn left, Pfn right) => left.Value >= right.Value;

    public override string ToString() => $"0x{Value:x}";
}
