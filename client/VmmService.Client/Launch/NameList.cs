namespace VmmService.Client.Launch;

/// <summary>What to say when a name is not one of a list: the nearest of them, if one is near, and all of them.</summary>
internal static class NameList
{
    /// <summary>A sentence or two: "Did you mean 'x'? Known names: ...".</summary>
    public static string Hint(string given, IEnumerable<string> names)
    {
        string[] all = [.. names];
        string? nearest = all.MinBy(name => Distance(given, name));
        // A third of the letters wrong is a slip, and so are two swapped ones (which count twice); more is another word.
        string guess = nearest is not null && Distance(given, nearest) <= Math.Max(2, nearest.Length / 3) ? $"Did you mean '{nearest}'? " : "";
        return $"{guess}Known names, in any case: {string.Join(", ", all)}.";
    }

    // Letters to insert, delete or replace, without regard to case. What is given may be long: only its first letters count.
    private static int Distance(string given, string name)
    {
        ReadOnlySpan<char> a = given.AsSpan(0, Math.Min(given.Length, 64));
        int[] row = [.. Enumerable.Range(0, name.Length + 1)];
        for (int i = 0; i < a.Length; i++)
        {
            int diagonal = row[0];
            row[0] = i + 1;
            for (int j = 0; j < name.Length; j++)
            {
                int replaced = diagonal + (char.ToLowerInvariant(a[i]) == char.ToLowerInvariant(name[j]) ? 0 : 1);
                diagonal = row[j + 1];
                row[j + 1] = Math.Min(replaced, Math.Min(row[j], diagonal) + 1);
            }
        }

        return row[^1];
    }
}
