using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>A launch that an MRTD may be of, with more freedom than a VMM has: what <see cref="MrtdSearch"/> varies.</summary>
public sealed record MrtdGuess
{
    public required FirmwareImage Firmware { get; init; }

    public required TdxFlavor Flavor { get; init; }

    public MrtdOrder Order { get; init; }

    /// <summary>Bytes of guest memory; they are told in the hand-off blocks.</summary>
    public ulong Memory { get; init; } = TdxLaunchPlan.DefaultMemory;

    /// <summary>Whether a region is extended, where the VMM would not decide.</summary>
    public Func<TdxRegion, bool> Extends { get; init; } = region => region.Extend;

    /// <summary>Whether a region is added at all.</summary>
    public Func<TdxRegion, bool> Adds { get; init; } = _ => true;

    /// <summary>The TD_HOB region starts as zeros.</summary>
    public bool EmptyHob { get; init; }

    /// <summary>Regions by ascending address instead of in table order.</summary>
    public bool ByAddress { get; init; }

    /// <summary>The regions, in order.</summary>
    /// <exception cref="LaunchInputException">The firmware cannot be launched so.</exception>
    public IReadOnlyList<TdxRegion> Regions()
    {
        IEnumerable<TdxRegion> regions = TdxLaunchPlan.Create(Firmware, Memory, Flavor).Regions.Where(Adds)
            .Select(region => region with { Extend = Extends(region), Content = EmptyHob && region.Label == nameof(TdvfSectionType.TD_HOB) ? default : region.Content });
        return [.. ByAddress ? regions.OrderBy(region => region.Gpa) : regions];
    }

    /// <summary>Its MRTD.</summary>
    public Hash384 Mrtd() => MrtdDigest.Measure(Regions(), Order);
}

/// <summary>One way to turn a knob.</summary>
/// <param name="Text">For people.</param>
/// <param name="Apply">Makes the guess another.</param>
public sealed record MrtdChoice(string Text, Func<MrtdGuess, MrtdGuess> Apply);

/// <summary>Something that people get wrong about an MRTD. The first choice is what is believed.</summary>
public sealed record MrtdKnob(string Name, IReadOnlyList<MrtdChoice> Choices);

/// <summary>What a search came to.</summary>
/// <param name="Changes">The knobs that had to be turned; null if nothing gives the MRTD.</param>
/// <param name="Settings">All knobs of what was found, or of what was believed.</param>
/// <param name="Tried">Launches that were measured.</param>
public sealed record MrtdFinding(IReadOnlyList<KnobChange>? Changes, IReadOnlyList<(string Knob, string Choice)> Settings, int Tried);

/// <summary>
/// Finds out what an MRTD is of: turns the known knobs, few of them before many, until a launch gives it (tdx.md 6.2 to 6.5). The knobs are a kernel's order of measuring, a VMM's
/// habits, and the firmware itself.
/// </summary>
public static class MrtdSearch
{
    /// <summary>Sizes of the variable store that builds of edk2 have, for images that are the code half.</summary>
    private static readonly int[] s_storeSizes = [0x20000, 0x84000];

    /// <summary>The knobs.</summary>
    /// <param name="firmwares">Images to try, the likeliest first.</param>
    /// <param name="asked">What is believed: all else of a guess.</param>
    /// <param name="memories">Memory sizes to try, the likeliest first.</param>
    /// <exception cref="LaunchInputException">None of the images has TDX metadata that can be used.</exception>
    public static IReadOnlyList<MrtdKnob> Knobs(IReadOnlyList<FirmwareImage> firmwares, MrtdGuess asked, IReadOnlyList<ulong> memories)
    {
        ArgumentNullException.ThrowIfNull(firmwares);
        ArgumentNullException.ThrowIfNull(asked);
        ArgumentNullException.ThrowIfNull(memories);
        MrtdChoice perPage = new("per page", guess => guess with { Order = MrtdOrder.PerPage });
        MrtdChoice perRegion = new("per region", guess => guess with { Order = MrtdOrder.PerRegion });
        return
        [
            new("firmware", Firmwares(firmwares)),
            new("order of measuring", asked.Order == MrtdOrder.PerPage ? [perPage, perRegion] : [perRegion, perPage]),
            new("VMM", [.. new[] { asked.Flavor }.Concat(TdxFlavor.All).DistinctBy(flavor => flavor.Name).Select(flavor => new MrtdChoice(flavor.Name, guess => guess with { Flavor = flavor }))]),
            new(
                "sections that are extended",
                [
                    new("as the VMM does", guess => guess),
                    new("all", guess => guess with { Extends = _ => true }),
                    new("those with data only", guess => guess with { Extends = region => region.Label is nameof(TdvfSectionType.BFV) or nameof(TdvfSectionType.CFV) or nameof(TdvfSectionType.PAYLOAD) }),
                    new("none", guess => guess with { Extends = _ => false }),
                ]),
            new(
                "sections that are added",
                [
                    new("all", guess => guess),
                    new("all but the variable store", guess => guess with { Adds = region => region.Label != nameof(TdvfSectionType.CFV) }),
                    new("all but memory that starts as zeros", guess => guess with { Adds = region => region.Label != nameof(TdvfSectionType.TEMP_MEM) }),
                    new("all but the hand-off blocks", guess => guess with { Adds = region => region.Label != nameof(TdvfSectionType.TD_HOB) }),
                    new("those with data only", guess => guess with { Adds = region => region.Label is not (nameof(TdvfSectionType.TEMP_MEM) or nameof(TdvfSectionType.TD_HOB)) }),
                ]),
            new("order of sections", [new("as in the table", guess => guess), new("by address", guess => guess with { ByAddress = true })]),
            new("hand-off blocks", [new("as QEMU makes them", guess => guess), new("zeros", guess => guess with { EmptyHob = true })]),
            new("memory", [.. memories.Distinct().Select(memory => new MrtdChoice(Size(memory), guess => guess with { Memory = memory }))]),
        ];
    }

    /// <summary>Looks for an MRTD.</summary>
    /// <param name="target">The MRTD.</param>
    /// <param name="asked">What is believed.</param>
    /// <param name="knobs">What to vary; the first choice of each is what is believed.</param>
    /// <param name="max">Launches to measure at most.</param>
    /// <param name="cancellation">Gives up.</param>
    public static MrtdFinding Run(Hash384 target, MrtdGuess asked, IReadOnlyList<MrtdKnob> knobs, int max, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(asked);
        ArgumentNullException.ThrowIfNull(knobs);
        int tried = 0;
        for (int changes = 0; changes <= knobs.Count; changes++)
        {
            foreach (int[] setting in Settings(knobs, changes))
            {
                cancellation.ThrowIfCancellationRequested();
                if (tried == max)
                    return new MrtdFinding(null, Describe(knobs, new int[knobs.Count]), tried);
                tried++;
                if (MeasuresTo(target, asked, knobs, setting))
                    return new MrtdFinding(ChangesOf(knobs, setting), Describe(knobs, setting), tried);
            }
        }

        return new MrtdFinding(null, Describe(knobs, new int[knobs.Count]), tried);
    }

    private static bool MeasuresTo(Hash384 target, MrtdGuess asked, IReadOnlyList<MrtdKnob> knobs, int[] setting)
    {
        MrtdGuess guess = asked;
        for (int i = 0; i < knobs.Count; i++)
            guess = knobs[i].Choices[setting[i]].Apply(guess);
        try
        {
            return guess.Mrtd() == target;
        }
        catch (LaunchInputException)
        {
            // Not every combination can be launched.
            return false;
        }
    }

    // Every way to turn exactly so many knobs away from what is believed.
    private static IEnumerable<int[]> Settings(IReadOnlyList<MrtdKnob> knobs, int changes) => Settings(knobs, new int[knobs.Count], 0, changes);

    private static IEnumerable<int[]> Settings(IReadOnlyList<MrtdKnob> knobs, int[] setting, int from, int changes)
    {
        if (changes == 0)
        {
            yield return setting;
            yield break;
        }

        for (int i = from; i <= knobs.Count - changes; i++)
        {
            for (int choice = 1; choice < knobs[i].Choices.Count; choice++)
            {
                int[] turned = [.. setting];
                turned[i] = choice;
                foreach (int[] each in Settings(knobs, turned, i + 1, changes - 1))
                    yield return each;
            }
        }
    }

    private static List<KnobChange> ChangesOf(IReadOnlyList<MrtdKnob> knobs, int[] setting) =>
    [
        .. knobs.Select((knob, i) => (knob, choice: setting[i])).Where(each => each.choice != 0)
            .Select(each => new KnobChange(each.knob.Name, each.knob.Choices[0].Text, each.knob.Choices[each.choice].Text)),
    ];

    private static List<(string Knob, string Choice)> Describe(IReadOnlyList<MrtdKnob> knobs, int[] setting) =>
        [.. knobs.Select((knob, i) => (knob.Name, knob.Choices[setting[i]].Text))];

    private static List<MrtdChoice> Firmwares(IReadOnlyList<FirmwareImage> images)
    {
        List<MrtdChoice> choices = [];
        LaunchInputException? refused = null;
        foreach (FirmwareImage image in images)
        {
            refused = Refusal(image) ?? refused;
            if (Refusal(image) is null)
                choices.Add(new(image.Name, guess => guess with { Firmware = image }));
            // The variable store is not extended, so zeros give the MRTD that any store gives.
            foreach (int size in s_storeSizes.Where(size => Refusal(image) is not null && image.Bytes.Length + size <= FirmwareImage.MaxSize))
            {
                FirmwareImage whole = FirmwareImage.ParseSplit(new byte[size], image.Bytes, image.Name);
                if (Refusal(whole) is null)
                    choices.Add(new($"{image.Name}, the code half, behind a variable store of {Size((ulong)size)}", guess => guess with { Firmware = whole }));
            }
        }

        return choices.Count > 0 ? choices : throw refused ?? new LaunchInputException("No firmware was given (--firmware), and none is installed that has TDX metadata.");
    }

    private static LaunchInputException? Refusal(FirmwareImage image)
    {
        try
        {
            TdvfMetadata.Parse(image, TdvfRules.TdShim);
            return null;
        }
        catch (LaunchInputException exception)
        {
            return exception;
        }
    }

    private static string Size(ulong bytes) => bytes % (1 << 20) == 0 ? $"{bytes >> 20} MiB" : $"{bytes >> 10} KiB";
}
