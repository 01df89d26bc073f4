using System.Globalization;

namespace SimKvm.Tests.Model;

/// <summary>
/// A sequence by its numbers, as a failing test prints it and <c>VMM_MODEL_RUN</c> takes it: profile:seed:length, and behind that the calls that are left after
/// shrinking.
/// </summary>
internal sealed record SequenceId(string Profile, int Seed, int Length, IReadOnlyList<int>? Kept = null)
{
    public IReadOnlyList<Call> Calls
    {
        get
        {
            IReadOnlyList<Call> all = Sequence.Generate(Seed, Length, Behaviours.Of(Profile)!);
            return Kept is null ? all : [.. Kept.Select(index => all[index])];
        }
    }

    public static SequenceId Parse(string text)
    {
        string[] parts = text.Split(':');
        return new SequenceId(
            parts[0], int.Parse(parts[1], CultureInfo.InvariantCulture), int.Parse(parts[2], CultureInfo.InvariantCulture),
            parts.Length > 3 ? [.. parts[3].Split(',').Select(number => int.Parse(number, CultureInfo.InvariantCulture))] : null);
    }

    public override string ToString() => $"{Profile}:{Seed}:{Length}{(Kept is null ? "" : ":" + string.Join(',', Kept))}";
}
