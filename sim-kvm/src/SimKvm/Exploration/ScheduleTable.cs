using System.Text;

namespace SimKvm.Exploration;

/// <summary>
/// A schedule for a mail: a column for each program, one line for each step, in the order in which things happened. What is said of a call that nobody came into is one line.
/// Locks that are held stand in brackets where they change. Where locks are what went wrong, such a call is told by the steps at which it takes and gives them.
/// </summary>
internal static class ScheduleTable
{
    private const int MinWidth = 24;
    private const int MaxWidth = 58;

    public static IReadOnlyList<string> Of(
        IReadOnlyList<string> programs, IReadOnlyList<ReplayedStretch> stretches, IReadOnlyDictionary<ulong, string> answers, IReadOnlyList<string> stuck, bool aboutLocks)
    {
        List<(int Program, string Text)> cells = [.. Cells(stretches, answers, aboutLocks)];
        int[] widths = [.. programs.Select((name, program) => Math.Clamp(
            cells.Where(cell => cell.Program == program).Select(cell => cell.Text.Length).Append(name.Length + 3).Max(), MinWidth, MaxWidth))];
        var lines = new List<string> { Line(widths, [.. programs.Select((name, program) => $"{(char)('A' + program)}: {name}")]) };
        lines.Add(string.Join("-+-", widths.Select(width => new string('-', width))));
        foreach ((int program, string text) in cells)
        {
            string[] columns = [.. programs.Select(_ => "")];
            foreach (string part in Wrap(text, widths[program]))
            {
                columns[program] = part;
                lines.Add(Line(widths, columns));
            }
        }
        lines.AddRange(stuck);
        return lines;
    }

    private static IEnumerable<(int Program, string Text)> Cells(IReadOnlyList<ReplayedStretch> stretches, IReadOnlyDictionary<ulong, string> answers, bool aboutLocks)
    {
        for (int i = 0; i < stretches.Count; i++)
        {
            ReplayedStretch stretch = stretches[i];
            int last = LastOf(stretches, stretch.Call);
            string answer = answers.GetValueOrDefault(stretch.Call, "");
            if (stretch.BeginsCall && AllOneProgram(stretches, i, last))
            {
                string[] taken = aboutLocks ? [.. Enumerable.Range(i + 1, last - i).Select(at => Held(stretches, at)).Where(each => each.Length > 0)] : [];
                yield return (stretch.Program, taken.Length > 0 ? stretch.What : $"{stretch.What} {answer}");
                foreach (string each in taken)
                {
                    yield return (stretch.Program, each);
                }
                if (taken.Length > 0)
                {
                    yield return (stretch.Program, $"  {answer}");
                }
                i = last;
                continue;
            }
            string held = Held(stretches, i);
            yield return (stretch.Program, (stretch.BeginsCall ? stretch.What : "  " + stretch.Step) + held);
            if (i == last && answer.Length > 0)
            {
                yield return (stretch.Program, $"  {answer}");
            }
        }
    }

    private static int LastOf(IReadOnlyList<ReplayedStretch> stretches, ulong call)
    {
        int last = stretches.Count - 1;
        while (stretches[last].Call != call)
        {
            last--;
        }
        return last;
    }

    private static bool AllOneProgram(IReadOnlyList<ReplayedStretch> stretches, int first, int last)
    {
        for (int i = first; i <= last; i++)
        {
            if (stretches[i].Program != stretches[first].Program)
            {
                return false;
            }
        }
        return true;
    }

    // The locks held, where the program had others before.
    private static string Held(IReadOnlyList<ReplayedStretch> stretches, int at)
    {
        IReadOnlyList<string> now = stretches[at].Holds;
        IReadOnlyList<string> before = [];
        for (int i = at - 1; i >= 0; i--)
        {
            if (stretches[i].Program == stretches[at].Program)
            {
                before = stretches[i].Holds;
                break;
            }
        }
        return now.SequenceEqual(before) ? "" : now.Count == 0 ? "  []" : $"  [{string.Join(", ", now)}]";
    }

    private static IEnumerable<string> Wrap(string text, int width)
    {
        for (int start = 0; start < text.Length;)
        {
            int length = Math.Min(width - (start > 0 ? 4 : 0), text.Length - start);
            int space = start + length < text.Length ? text.LastIndexOf(' ', start + length, length) : -1;
            int end = space > start ? space : start + length;
            yield return start > 0 ? "    " + text[start..end].TrimStart() : text[start..end];
            start = end;
            while (start < text.Length && text[start] == ' ')
            {
                start++;
            }
        }
    }

    private static string Line(int[] widths, string[] columns)
    {
        var line = new StringBuilder();
        for (int i = 0; i < widths.Length; i++)
        {
            line.Append(i > 0 ? " | " : "").Append(columns[i].PadRight(widths[i]));
        }
        return line.ToString().TrimEnd();
    }
}
