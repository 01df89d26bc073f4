using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Text;

namespace SimKvm.Exploration;

/// <summary>
/// Who went when, as a short string: the profile, and how many stretches each program ran in turn, as <c>GM23SNP:A14B22A3</c>. Programs are letters in the order of the scenario.
/// Behind its end whoever runs goes on while it can, then the first that can, so a schedule says no more than needed.
/// </summary>
public sealed class Schedule
{
    /// <summary>Characters that are taken.</summary>
    public const int MaxLength = 16 << 10;

    private const int MaxStretches = 1 << 20;

    private readonly byte[] _programs;

    private Schedule(string profile, byte[] programs)
    {
        Profile = profile;
        _programs = programs;
    }

    /// <summary>Id of the kernel profile; empty where it was left out.</summary>
    public string Profile { get; }

    /// <summary>Reads a schedule.</summary>
    /// <param name="problem">What is wrong with it, in words.</param>
    public static bool TryParse(string text, [NotNullWhen(true)] out Schedule? schedule, out string problem)
    {
        schedule = null;
        problem = "";
        if (text.Length > MaxLength)
        {
            problem = $"a schedule has at most {MaxLength} characters";
            return false;
        }
        int colon = text.LastIndexOf(':');
        var programs = new List<byte>();
        for (int at = colon + 1; at < text.Length;)
        {
            int program = text[at] - 'A';
            int digits = at + 1;
            while (digits < text.Length && char.IsAsciiDigit(text[digits]))
            {
                digits++;
            }
            bool counted = int.TryParse(text.AsSpan(at + 1, digits - at - 1), NumberStyles.None, CultureInfo.InvariantCulture, out int count);
            if (program is < 0 or >= PreparedScenario.MaxPrograms || !counted || programs.Count + (long)count > MaxStretches)
            {
                problem = $"'{text[at..digits]}' is not a program's letter and a number of stretches; a schedule is written as PROFILE:A14B22A3";
                return false;
            }
            programs.AddRange(Enumerable.Repeat((byte)program, count));
            at = digits;
        }
        schedule = new Schedule(colon < 0 ? "" : text[..colon], [.. programs]);
        return true;
    }

    /// <summary>Of a run: without what would come of itself at its end.</summary>
    internal static Schedule Of(string profile, IReadOnlyList<Stretch> stretches)
    {
        int length = stretches.Count;
        while (length > 1 && stretches[length - 1].Program == Scheduler.Default(stretches[length - 1].Enabled, stretches[length - 2].Program))
        {
            length--;
        }
        return new Schedule(profile, [.. stretches.Take(length).Select(stretch => (byte)stretch.Program)]);
    }

    internal int? ProgramAt(int stretch) => stretch < _programs.Length ? _programs[stretch] : null;

    public override string ToString()
    {
        var text = new StringBuilder();
        if (Profile.Length > 0)
        {
            text.Append(Profile).Append(':');
        }
        for (int start = 0, end; start < _programs.Length; start = end)
        {
            end = start;
            while (end < _programs.Length && _programs[end] == _programs[start])
            {
                end++;
            }
            text.Append((char)('A' + _programs[start])).Append(CultureInfo.InvariantCulture, $"{end - start}");
        }
        return text.ToString();
    }
}
