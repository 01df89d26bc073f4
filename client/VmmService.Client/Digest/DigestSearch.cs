using System.Security.Cryptography;
using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>Where a found launch differs from the one that was thought of.</summary>
/// <param name="Knob">Name of the knob.</param>
/// <param name="Asked">As it was thought of.</param>
/// <param name="Found">As it is.</param>
public sealed record KnobChange(string Knob, string Asked, string Found);

/// <summary>What a digest is of.</summary>
/// <param name="Vcpus">Number of vCPUs; 0 for a digest from before they are measured, and for plain SEV, which does not measure them.</param>
/// <param name="Changes">Differences from the launch that was thought of; none if it is that.</param>
/// <param name="Settings">Every knob as it is.</param>
/// <param name="Indifferent">Names of knobs that make no difference to this digest.</param>
public sealed record DigestFinding(
    int Vcpus, IReadOnlyList<KnobChange> Changes, IReadOnlyList<(string Knob, string Choice)> Settings, IReadOnlyList<string> Indifferent);

/// <summary>What a search came to.</summary>
/// <param name="Finding">The combination; null if none of those tried gives the digest.</param>
/// <param name="Tried">Combinations tried, numbers of vCPUs counted.</param>
/// <param name="Complete">Whether all there are were tried, or enough to find.</param>
/// <param name="Knobs">What was varied.</param>
/// <param name="Impossible">Why some combinations cannot be launched, each reason once.</param>
public sealed record DigestSearchResult(DigestFinding? Finding, ulong Tried, bool Complete, IReadOnlyList<DigestKnob> Knobs, IReadOnlyList<string> Impossible);

/// <summary>How far a search is.</summary>
/// <param name="Changes">How many knobs are varied at once now.</param>
/// <param name="Tried">Combinations so far.</param>
/// <param name="Total">Combinations in all, as far as the limit allows.</param>
public readonly record struct DigestSearchProgress(int Changes, ulong Tried, ulong Total);

/// <summary>
/// Finds out what a launch digest is of: first the launch that was thought of, then all that differ from it in one knob, in two, and so on. So what is found first has the fewest changes.
/// A search asks nobody and changes nothing.
/// </summary>
public sealed class DigestSearch
{
    /// <summary>Combinations tried unless another limit is given: some seconds.</summary>
    public const ulong DefaultMaxCombinations = 20_000_000;

    // Reasons for a person to read.
    private const int MostReasons = 5;
    private const int Impossible = -1;
    private const ulong ProgressEvery = 1 << 16;

    private readonly DigestQuestion _question;
    private readonly IReadOnlyList<DigestKnob> _knobs;
    private readonly GuessMeter _meter;
    private readonly HashSet<int> _counts;
    private readonly int _most;
    private readonly ulong _limit;
    private readonly ulong _total;
    private readonly IProgress<DigestSearchProgress>? _progress;
    private readonly Dictionary<UInt128, int> _memories = [];
    private readonly Dictionary<UInt128, int> _vcpus = [];
    private readonly HashSet<(int Memory, int Vcpus)> _seen = [];
    private readonly List<string> _impossible = [];
    private readonly int[] _choices;
    private ulong _tried;
    private ulong _reported;

    private DigestSearch(DigestQuestion question, IReadOnlyList<DigestKnob> knobs, GuessMeter meter, ulong limit, IProgress<DigestSearchProgress>? progress)
    {
        _question = question;
        _knobs = knobs;
        _meter = meter;
        _counts = [.. question.VcpusTried];
        _most = question.VcpusTried.Max();
        _limit = limit;
        _progress = progress;
        _choices = new int[knobs.Count];
        UInt128 total = (UInt128)_counts.Count;
        foreach (DigestKnob knob in knobs)
            total = UInt128.Min(limit, total * (UInt128)knob.Choices.Count);
        _total = (ulong)UInt128.Min(limit, total);
    }

    /// <summary>Searches.</summary>
    /// <param name="target">The digest: 48 bytes of an SNP launch, or 32 of an SEV or SEV-ES launch.</param>
    /// <param name="question">What was thought of, and what may have been.</param>
    /// <param name="maxCombinations">Gives up after so many.</param>
    /// <param name="progress">Told now and then.</param>
    /// <param name="cancellation">Stops.</param>
    /// <exception cref="ArgumentException">The target has another length.</exception>
    public static DigestSearchResult Run(
        ReadOnlySpan<byte> target, DigestQuestion question, ulong maxCombinations = DefaultMaxCombinations, IProgress<DigestSearchProgress>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(question);
        ArgumentOutOfRangeException.ThrowIfZero(maxCombinations);
        switch (target.Length)
        {
            case Hash384.Size:
                return new DigestSearch(question, DigestKnobs.Snp(question), new SnpGuessMeter(new Hash384(target)), maxCombinations, progress).Search(cancellation);
            case SHA256.HashSizeInBytes:
                return new DigestSearch(question, DigestKnobs.Legacy(question), new LegacyGuessMeter(target.ToArray()), maxCombinations, progress).Search(cancellation);
            default:
                throw new ArgumentException($"a launch digest has {Hash384.Size} or {SHA256.HashSizeInBytes} bytes, not {target.Length}", nameof(target));
        }
    }

    private DigestSearchResult Search(CancellationToken cancellation)
    {
        bool complete = true;
        DigestFinding? finding = null;
        for (int changes = 0; changes <= _knobs.Count && finding is null && complete; changes++)
        {
            foreach (int _ in Vary(changes, first: 0))
            {
                cancellation.ThrowIfCancellationRequested();
                if (_tried + (ulong)_counts.Count > _limit)
                {
                    complete = false;
                    break;
                }

                finding = Try();
                Report(changes);
                if (finding is not null)
                    break;
            }
        }

        return new DigestSearchResult(finding, _tried, complete, _knobs, _impossible);
    }

    // Steps through all ways to change so many of the knobs from `first` on; _choices has each in turn.
    private IEnumerable<int> Vary(int changes, int first)
    {
        if (changes == 0)
        {
            yield return 0;
            yield break;
        }

        for (int knob = first; knob <= _knobs.Count - changes; knob++)
        {
            for (int choice = 1; choice < _knobs[knob].Choices.Count; choice++)
            {
                _choices[knob] = choice;
                foreach (int _ in Vary(changes - 1, knob + 1))
                    yield return 0;
            }

            _choices[knob] = 0;
        }
    }

    private DigestFinding? Try()
    {
        _tried += (ulong)_counts.Count;
        if (Number(_choices) is not { } number || !_seen.Add(number))
            return null;

        int vcpus = _meter.Find(number.Memory, number.Vcpus, _counts, _most);
        return vcpus == GuessMeter.None ? null : Describe(vcpus, number);
    }

    // Null for what cannot be launched. A guess is made and hashed only where its choices were not met before in the knobs that matter for memory, or for vCPUs.
    private (int Memory, int Vcpus)? Number(int[] choices)
    {
        int memory = Cached(_memories, KnobScope.Memory, choices, _meter.Memory);
        return memory == Impossible ? null : (memory, Cached(_vcpus, KnobScope.Vcpus, choices, _meter.Vcpus));
    }

    private int Cached(Dictionary<UInt128, int> cache, KnobScope scope, int[] choices, Func<LaunchGuess, int> number)
    {
        UInt128 key = 0;
        for (int i = 0; i < choices.Length; i++)
        {
            if ((_knobs[i].Scope & scope) != 0)
                key = (key * (UInt128)_knobs[i].Choices.Count) + (UInt128)choices[i];
        }

        if (!cache.TryGetValue(key, out int known))
            cache.Add(key, known = NumberOf(choices, number));
        return known;
    }

    private int NumberOf(int[] choices, Func<LaunchGuess, int> number)
    {
        LaunchGuess guess = DigestKnobs.Asked(_question);
        for (int i = 0; i < choices.Length; i++)
            guess = _knobs[i].Choices[choices[i]].Apply(guess);
        try
        {
            return number(guess);
        }
        catch (LaunchInputException exception)
        {
            if (_impossible.Count < MostReasons && !_impossible.Contains(exception.Message))
                _impossible.Add(exception.Message);
            return Impossible;
        }
    }

    private DigestFinding Describe(int vcpus, (int Memory, int Vcpus) number)
    {
        List<KnobChange> changes = [];
        if (vcpus != _question.Vcpus[0])
            changes.Add(new KnobChange(DigestKnobs.Vcpus, $"{_question.Vcpus[0]}", vcpus == 0 ? "none measured" : $"{vcpus}"));
        for (int i = 0; i < _knobs.Count; i++)
        {
            if (_choices[i] != 0)
                changes.Add(new KnobChange(_knobs[i].Name, _knobs[i].Choices[0].Text, _knobs[i].Choices[_choices[i]].Text));
        }

        return new DigestFinding(
            vcpus,
            changes,
            [.. _knobs.Select((knob, i) => (knob.Name, knob.Choices[_choices[i]].Text))],
            [.. Enumerable.Range(0, _knobs.Count).Where(i => _knobs[i].Choices.Count > 1 && IsIndifferent(i, vcpus, number)).Select(i => _knobs[i].Name)]);
    }

    private bool IsIndifferent(int knob, int vcpus, (int Memory, int Vcpus) number)
    {
        int[] choices = [.. _choices];
        for (int choice = 0; choice < _knobs[knob].Choices.Count; choice++)
        {
            choices[knob] = choice;
            if (Number(choices) is not { } other || other.Memory != number.Memory)
                return false;
            // With other vCPUs, none of them may count.
            if (other.Vcpus != number.Vcpus && _meter.Find(other.Memory, other.Vcpus, _counts, _most) != vcpus)
                return false;
        }

        return true;
    }

    private void Report(int changes)
    {
        if (_progress is null || _tried - _reported < ProgressEvery)
            return;
        _reported = _tried;
        _progress.Report(new DigestSearchProgress(changes, _tried, _total));
    }
}
