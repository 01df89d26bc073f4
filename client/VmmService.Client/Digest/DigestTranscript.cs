namespace VmmService.Client.Digest;

/// <summary>A measured page with the digest after it.</summary>
public readonly record struct DigestStep(MeasuredPage Page, Hash384 DigestAfter);

/// <summary>
/// The measured pages of a launch in order, with the digest after each. It is computed here from pages (<see cref="Measure"/>) or was read from elsewhere, and then may contradict
/// itself (<see cref="FirstBrokenStep"/>).
/// </summary>
public sealed class DigestTranscript
{
    private readonly DigestStep[] _steps;

    /// <summary>Takes what was read elsewhere.</summary>
    /// <param name="steps">In order.</param>
    /// <param name="initial">The digest before the first step.</param>
    public DigestTranscript(IEnumerable<DigestStep> steps, Hash384 initial = default)
    {
        _steps = [.. steps];
        Initial = initial;
    }

    /// <summary>The digest before the first step; zeros, unless a chain is continued.</summary>
    public Hash384 Initial { get; }

    public IReadOnlyList<DigestStep> Steps => _steps;

    /// <summary>The launch digest.</summary>
    public Hash384 Digest => _steps.Length == 0 ? Initial : _steps[^1].DigestAfter;

    /// <summary>Computes the digest after each page.</summary>
    public static DigestTranscript Measure(IEnumerable<MeasuredPage> pages, Hash384 initial = default)
    {
        ArgumentNullException.ThrowIfNull(pages);
        List<DigestStep> steps = [];
        Hash384 digest = initial;
        foreach (MeasuredPage page in pages)
        {
            digest = page.Extend(digest);
            steps.Add(new DigestStep(page, digest));
        }

        return new DigestTranscript(steps, initial);
    }

    /// <summary>Index of the first step whose digest does not follow from its page and the digest before; null if all do.</summary>
    public int? FirstBrokenStep()
    {
        Hash384 digest = Initial;
        for (int i = 0; i < _steps.Length; i++)
        {
            if (_steps[i].Page.Extend(digest) != _steps[i].DigestAfter)
                return i;
            digest = _steps[i].DigestAfter;
        }

        return null;
    }
}
