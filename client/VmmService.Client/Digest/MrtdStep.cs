using System.Security.Cryptography;
using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>A page in an MRTD: that it was added, or its content.</summary>
/// <param name="Extends">False for TDH.MEM.PAGE.ADD, true for the 16 TDH.MR.EXTEND of a page.</param>
/// <param name="Gpa">Of the page.</param>
/// <param name="Content">
/// SHA-384 over the SHA-256 hashes of the chunks where it is extended, else zeros. The MRTD takes the bytes themselves; the hash is for comparing, and transcripts of daemons have those of
/// the chunks.
/// </param>
/// <param name="Section">Which section it is of.</param>
public readonly record struct MrtdStep(bool Extends, ulong Gpa, Hash384 Content, string Section)
{
    /// <summary>Every step of a launch, in order.</summary>
    public static IReadOnlyList<MrtdStep> Of(IEnumerable<TdxRegion> regions, MrtdOrder order)
    {
        ArgumentNullException.ThrowIfNull(regions);
        List<MrtdStep> steps = [];
        byte[] page = new byte[FirmwareImage.PageSize];
        foreach (TdxRegion region in regions)
        {
            for (ulong i = 0; i < region.Pages; i++)
            {
                steps.Add(new(Extends: false, Gpa(region, i), default, region.Label));
                if (region.Extend && order == MrtdOrder.PerPage)
                    steps.Add(Extend(region, i));
            }

            for (ulong i = 0; region.Extend && order == MrtdOrder.PerRegion && i < region.Pages; i++)
                steps.Add(Extend(region, i));
        }

        return steps;

        static ulong Gpa(TdxRegion region, ulong index) => region.Gpa + (index * FirmwareImage.PageSize);

        MrtdStep Extend(TdxRegion region, ulong index)
        {
            region.ReadPage(index, page);
            return new(Extends: true, Gpa(region, index), ContentOf(page), region.Label);
        }
    }

    private static Hash384 ContentOf(ReadOnlySpan<byte> page)
    {
        Span<byte> hashes = stackalloc byte[page.Length / MrtdDigest.ChunkSize * SHA256.HashSizeInBytes];
        for (int chunk = 0; chunk < page.Length / MrtdDigest.ChunkSize; chunk++)
            SHA256.HashData(page.Slice(chunk * MrtdDigest.ChunkSize, MrtdDigest.ChunkSize), hashes[(chunk * SHA256.HashSizeInBytes)..]);
        return Hash384.Of(hashes);
    }

    public override string ToString() => Extends ? $"EXTEND 0x{Gpa:x} ({Section}) content {Content}" : $"ADD 0x{Gpa:x} ({Section})";
}

/// <summary>Why two MRTDs differ.</summary>
/// <param name="FirstIndex">The first step that differs; null if none does.</param>
/// <param name="Meanings">What it comes to, in sentences, the most telling first.</param>
public sealed record MrtdDiff(int? FirstIndex, IReadOnlyList<string> Meanings)
{
    /// <summary>Puts two launches side by side.</summary>
    public static MrtdDiff Compare(IReadOnlyList<MrtdStep> a, IReadOnlyList<MrtdStep> b)
    {
        ArgumentNullException.ThrowIfNull(a);
        ArgumentNullException.ThrowIfNull(b);
        int first = 0;
        while (first < a.Count && first < b.Count && Key(a[first]) == Key(b[first]))
            first++;
        if (first == a.Count && first == b.Count)
            return new MrtdDiff(null, []);

        List<string> meanings = [];
        Side sideA = new(a), sideB = new(b);
        AddMissing(meanings, "A", sideA, sideB);
        AddMissing(meanings, "B", sideB, sideA);
        AddContents(meanings, sideA, sideB);
        // Nothing but the order is left.
        if (meanings.Count == 0)
            meanings.Add(OrderMeaning(a, b, first));
        return new MrtdDiff(first, meanings);
    }

    private static (bool Extends, ulong Gpa, Hash384 Content) Key(MrtdStep step) => (step.Extends, step.Gpa, step.Content);

    private static void AddMissing(List<string> meanings, string name, Side has, Side lacks)
    {
        foreach (IGrouping<string, MrtdStep> section in has.Added.Values.Where(step => !lacks.Added.ContainsKey(step.Gpa)).GroupBy(step => step.Section))
            meanings.Add($"only {name} adds {Pages(section)} of {section.Key}, from 0x{section.First().Gpa:x}: another section table, or a section that a VMM leaves out");
        foreach (IGrouping<string, MrtdStep> section in has.Extended.Values.Where(step => !lacks.Extended.ContainsKey(step.Gpa) && lacks.Added.ContainsKey(step.Gpa)).GroupBy(step => step.Section))
            meanings.Add($"only {name} extends {Pages(section)} of {section.Key}, from 0x{section.First().Gpa:x}: EXTENDMR in the image, or a VMM that extends every section");
    }

    private static void AddContents(List<string> meanings, Side a, Side b)
    {
        IEnumerable<MrtdStep> differing = a.Extended.Values.Where(step => b.Extended.TryGetValue(step.Gpa, out MrtdStep other) && other.Content != step.Content);
        foreach (IGrouping<string, MrtdStep> section in differing.GroupBy(step => step.Section))
        {
            string why = section.Key switch
            {
                nameof(TdvfSectionType.TD_HOB) => "the memory size, or the VMM's hand-off blocks",
                nameof(TdvfSectionType.CFV) => "the variable store",
                _ => "another build of the firmware",
            };
            meanings.Add($"{Pages(section)} of {section.Key} differ in content, the first at 0x{section.First().Gpa:x}: {why}");
        }
    }

    private static string OrderMeaning(IReadOnlyList<MrtdStep> a, IReadOnlyList<MrtdStep> b, int first)
    {
        bool sameSections = a.Where(step => !step.Extends).Select(step => step.Gpa).SequenceEqual(b.Where(step => !step.Extends).Select(step => step.Gpa));
        if (a.Count != b.Count)
            return "one of them adds or extends pages twice";
        return sameSections
            ? $"the same pages with the same content, but {(a[first].Extends ? "A" : "B")} extends each page after adding it, and {(a[first].Extends ? "B" : "A")} the region after adding all of it: kernels of two generations"
            : "the same pages with the same content, in another order of sections";
    }

    private static string Pages(IEnumerable<MrtdStep> steps) => steps.Count() is var count && count == 1 ? "1 page" : $"{count} pages";

    // By address, the first time that it comes. Sorted, so that what is said does not depend on hashing.
    private sealed class Side(IReadOnlyList<MrtdStep> steps)
    {
        public SortedDictionary<ulong, MrtdStep> Added { get; } = By(steps.Where(step => !step.Extends));

        public SortedDictionary<ulong, MrtdStep> Extended { get; } = By(steps.Where(step => step.Extends));

        private static SortedDictionary<ulong, MrtdStep> By(IEnumerable<MrtdStep> steps)
        {
            SortedDictionary<ulong, MrtdStep> found = [];
            foreach (MrtdStep step in steps)
                found.TryAdd(step.Gpa, step);
            return found;
        }
    }
}
