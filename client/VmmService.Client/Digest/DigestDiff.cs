namespace VmmService.Client.Digest;

/// <summary>How a measured page differs between two launches.</summary>
public enum DigestDifferenceKind
{
    /// <summary>Both have it, with other content.</summary>
    Content,

    /// <summary>Both have it, as another page type.</summary>
    PageType,

    /// <summary>Both have this VMSA, at another address.</summary>
    Address,

    OnlyInA,

    OnlyInB,

    /// <summary>Both have it alike, at another place in the order.</summary>
    Order,
}

/// <summary>A difference, of one page or of several that follow each other and differ in the same way.</summary>
/// <param name="Kind">How.</param>
/// <param name="IndexA">Index of the first record in A; null if A does not have it.</param>
/// <param name="IndexB">Index of the first record in B; null if B does not have it.</param>
/// <param name="Pages">How many records.</param>
/// <param name="Meaning">What it means, a sentence or more.</param>
public sealed record DigestDifference(DigestDifferenceKind Kind, int? IndexA, int? IndexB, int Pages, string Meaning);

/// <summary>
/// Why two launch digests differ. The pages of two launches are put side by side: by guest physical address, which a launch can measure once, and VMSAs by vCPU. The words are
/// <see cref="DigestWords"/>'s.
/// </summary>
public sealed class DigestDiff
{
    private readonly DigestTranscript _a;
    private readonly DigestTranscript _b;
    private readonly DigestWords _words;

    private DigestDiff(DigestSide a, DigestSide b)
    {
        _a = a.Transcript;
        _b = b.Transcript;
        _words = new DigestWords(a, b);
    }

    /// <summary>The record at which the two part, in both; null if the launches measure the same. It can be the index behind the last record of one.</summary>
    public int? FirstIndex { get; private set; }

    /// <summary>What the first differing record means.</summary>
    public string? FirstMeaning { get; private set; }

    /// <summary>All differences, by their place in A, what only B has by its place in B.</summary>
    public IReadOnlyList<DigestDifference> Differences { get; private set; } = [];

    /// <summary>Compares two launches.</summary>
    public static DigestDiff Compare(DigestSide a, DigestSide b)
    {
        ArgumentNullException.ThrowIfNull(a);
        ArgumentNullException.ThrowIfNull(b);
        var diff = new DigestDiff(a, b);
        diff.Run();
        return diff;
    }

    private void Run()
    {
        int common = 0;
        int shorter = Math.Min(_a.Steps.Count, _b.Steps.Count);
        while (common < shorter && _a.Steps[common].Page == _b.Steps[common].Page)
            common++;
        if (common == _a.Steps.Count && common == _b.Steps.Count)
            return;

        int[] inB = Align();
        int[] inA = Reverse(inB);
        List<Single> singles = Collect(inB, inA);
        FirstIndex = common;
        FirstMeaning = MeaningOfFirst(common, inB, inA);
        Differences = Merge(singles);
    }

    // A record that differs; an index is -1 where that side does not have it.
    private readonly record struct Single(DigestDifferenceKind Kind, int A, int B);

    // For each record of A its partner in B, or -1.
    private int[] Align()
    {
        var places = new Dictionary<(bool Vmsa, ulong Gpa, int Ordinal), int>();
        foreach (((bool, ulong, int) key, int index) in Keys(_b))
            places.Add(key, index);
        int[] partners = new int[_a.Steps.Count];
        foreach (((bool, ulong, int) key, int index) in Keys(_a))
            partners[index] = places.GetValueOrDefault(key, -1);
        return partners;
    }

    // The ordinal tells vCPUs apart, and records of one address in a transcript that no machine made.
    private static IEnumerable<((bool Vmsa, ulong Gpa, int Ordinal) Key, int Index)> Keys(DigestTranscript transcript)
    {
        var seen = new Dictionary<(bool, ulong), int>();
        for (int i = 0; i < transcript.Steps.Count; i++)
        {
            MeasuredPage page = transcript.Steps[i].Page;
            bool vmsa = page.PageType == MeasuredPageType.VMSA;
            (bool, ulong) place = (vmsa, vmsa ? 0 : page.Gpa);
            int ordinal = seen.GetValueOrDefault(place);
            seen[place] = ordinal + 1;
            yield return ((place.Item1, place.Item2, ordinal), i);
        }
    }

    private int[] Reverse(int[] inB)
    {
        int[] inA = new int[_b.Steps.Count];
        Array.Fill(inA, -1);
        for (int i = 0; i < inB.Length; i++)
        {
            if (inB[i] >= 0)
                inA[inB[i]] = i;
        }

        return inA;
    }

    private List<Single> Collect(int[] inB, int[] inA)
    {
        HashSet<int> inOrder = LongestRising(inB);
        List<Single> singles = [];
        for (int i = 0; i < inB.Length; i++)
        {
            if (KindOf(i, inB[i], inOrder.Contains(i)) is { } kind)
                singles.Add(new Single(kind, i, inB[i]));
        }

        for (int j = 0; j < inA.Length; j++)
        {
            if (inA[j] < 0)
                singles.Add(new Single(DigestDifferenceKind.OnlyInB, -1, j));
        }

        return singles;
    }

    private DigestDifferenceKind? KindOf(int i, int j, bool inOrder)
    {
        if (j < 0)
            return DigestDifferenceKind.OnlyInA;
        MeasuredPage a = _a.Steps[i].Page;
        MeasuredPage b = _b.Steps[j].Page;
        if (a.PageType != b.PageType)
            return DigestDifferenceKind.PageType;
        if (a.Contents != b.Contents)
            return DigestDifferenceKind.Content;
        if (a.Gpa != b.Gpa)
            return DigestDifferenceKind.Address;
        return inOrder ? null : DigestDifferenceKind.Order;
    }

    // The most records of A whose partners stand in the same order in B: the others are those that moved.
    private static HashSet<int> LongestRising(int[] inB)
    {
        List<int> tails = [];
        int[] before = new int[inB.Length];
        for (int i = 0; i < inB.Length; i++)
        {
            if (inB[i] < 0)
                continue;

            int low = 0;
            for (int high = tails.Count; low < high;)
            {
                int middle = (low + high) / 2;
                if (inB[tails[middle]] < inB[i])
                    low = middle + 1;
                else
                    high = middle;
            }

            before[i] = low == 0 ? -1 : tails[low - 1];
            if (low == tails.Count)
                tails.Add(i);
            else
                tails[low] = i;
        }

        HashSet<int> rising = [];
        for (int i = tails.Count == 0 ? -1 : tails[^1]; i >= 0; i = before[i])
            rising.Add(i);
        return rising;
    }

    private string MeaningOfFirst(int index, int[] inB, int[] inA)
    {
        bool hasA = index < inB.Length;
        bool hasB = index < inA.Length;
        if (hasA && inB[index] == index && hasB)
            return _words.Meaning(KindOf(index, index, inOrder: false)!.Value, index, index);
        if (hasA && inB[index] < 0)
            return _words.Meaning(DigestDifferenceKind.OnlyInA, index, -1);
        if (hasB && inA[index] < 0)
            return _words.Meaning(DigestDifferenceKind.OnlyInB, -1, index);
        return _words.MeaningOfOrder(index);
    }

    private List<DigestDifference> Merge(List<Single> singles)
    {
        List<DigestDifference> merged = [];
        for (int first = 0, last; first < singles.Count; first = last + 1)
        {
            last = first;
            while (last + 1 < singles.Count && Follows(singles[last], singles[last + 1]))
                last++;
            Single single = singles[first];
            merged.Add(new DigestDifference(
                single.Kind, single.A < 0 ? null : single.A, single.B < 0 ? null : single.B, last - first + 1, _words.Meaning(single.Kind, single.A, single.B)));
        }

        return merged;
    }

    private bool Follows(Single single, Single next) =>
        single.Kind == next.Kind
        && (single.A < 0 ? next.A < 0 : next.A == single.A + 1)
        && (single.B < 0 ? next.B < 0 : next.B == single.B + 1)
        && _words.SameSubject(single.A, single.B, next.A, next.B);
}
