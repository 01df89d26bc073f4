using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace VmmService.Vmm;

/// <summary>
/// The lists of vmm digest explain. The first value is what is believed. A value that stands alone is followed by all known ones; of several, no others are tried.
/// </summary>
internal static class KnobLists
{
    /// <summary>Numbers of vCPUs are tried up to this.</summary>
    public const int UsualVcpus = 64;

    private const string All = "all";

    // Longer than any list that a person writes, and short enough for every product of lists to be counted.
    private const int MostValues = 256;

    /// <summary>Names for --keep.</summary>
    public static IEnumerable<string> Keepable => DigestKnobs.Names.Select(name => name.ToLowerInvariant().Replace(' ', '-'));

    public static byte[] Target(string text)
    {
        try
        {
            byte[] bytes = Convert.FromHexString(text.StartsWith("0x", StringComparison.OrdinalIgnoreCase) ? text[2..] : text);
            if (bytes.Length is Hash384.Size or 32)
                return bytes;
        }
        catch (FormatException)
        {
            // Told below.
        }

        throw new UsageException(
            $"--target: a launch digest is 96 hexadecimal digits (SNP) or 64 (SEV, SEV-ES), and this has {text.Length} characters. In an SNP attestation report it is the MEASUREMENT, 48 bytes at 0x90.");
    }

    public static IReadOnlyList<int> Vcpus(string? text)
    {
        IEnumerable<int> usual = Enumerable.Range(1, UsualVcpus);
        List<int> values = Values(
            "--vcpus", text ?? "1", usual, word => Range(word, out uint from, out uint to) && from >= 1 && to <= SnpLaunchPlan.MaxVcpus && from <= to
                ? Enumerable.Range((int)from, (int)(to - from + 1))
                : null,
            $"numbers from 1 to {SnpLaunchPlan.MaxVcpus} or ranges of them, such as 1-8");
        return values;
    }

    public static IReadOnlyList<CpuSignature> Signatures(string? text) => Values(
        "--vcpu-types",
        text ?? "EPYC-v4",
        CpuModel.All.Select(model => model.Signature).Distinct(),
        word => char.IsAsciiDigit(word[0]) ? [CpuSignature.Parse(word)] : [CpuModel.Find(word).Signature],
        "CPU models or signatures");

    public static IReadOnlyList<ulong> Features(string? text, bool snp)
    {
        IReadOnlyList<ulong> known = snp ? SevFeatures.KnownSnp : SevFeatures.KnownSevEs;
        return Values("--guest-features", text ?? Numbers.Hex(known[0]), known, word => Numbers.TryParse(word, out ulong mask) ? [mask] : null, "masks of at most 64 bits, such as 0x21");
    }

    public static IReadOnlyList<VmmFlavor> Flavors(string? text) => Values("--vmm", text ?? VmmFlavor.Qemu.Name, DigestKnobs.Flavors, word => [VmmFlavor.Find(word)], "names of VMMs");

    public static IReadOnlyCollection<string> Keep(string[] texts)
    {
        List<string> kept = [];
        foreach (string word in texts.SelectMany(text => text.Split(',', StringSplitOptions.TrimEntries)))
        {
            string? name = DigestKnobs.Names.FirstOrDefault(each => string.Equals(each, word.Replace('-', ' '), StringComparison.OrdinalIgnoreCase));
            kept.Add(name ?? throw new UsageException($"--keep {word}: not something that is varied; there are {string.Join(", ", Keepable)}"));
        }

        return kept;
    }

    private static List<T> Values<T>(string option, string text, IEnumerable<T> known, Func<string, IEnumerable<T>?> read, string what)
    {
        if (text.Equals(All, StringComparison.OrdinalIgnoreCase))
            return [.. known];

        string[] words = text.Split(',', StringSplitOptions.TrimEntries);
        List<T> values = [];
        foreach (string word in words)
            values.AddRange((word.Length > 0 ? read(word) : null) ?? throw new UsageException($"{option} {text}: '{word}' does not fit; the option takes {what}, with commas between them, or all"));
        if (words.Length > MostValues)
            throw new UsageException($"{option}: a list of {words.Length} values and the limit is {MostValues}; search in several runs");

        return [.. (values.Count == 1 ? values.Concat(known) : values).Distinct()];
    }

    private static bool Range(string word, out uint from, out uint to)
    {
        string[] ends = word.Split('-', 2);
        to = 0;
        return Numbers.TryParse(ends[0], out from) && Numbers.TryParse(ends[^1], out to);
    }
}
