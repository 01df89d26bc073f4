namespace VmmService.Server.Scripts;

/// <summary>Which files a script uses as content, so that a client knows what to send with it.</summary>
public static class ScriptFiles
{
    /// <summary>The names behind <c>file:</c> with their lines, in order and once each. A script that cannot be read uses none; the daemon says what is wrong with it.</summary>
    public static IReadOnlyList<(string Name, int Line)> UsedBy(string yaml)
    {
        try
        {
            return [.. Names(ScriptReader.Read(yaml)).DistinctBy(each => each.Name)];
        }
        catch (ScriptException)
        {
            return [];
        }
    }

    private static IEnumerable<(string Name, int Line)> Names(ScriptNode node) => node switch
    {
        ListNode list => list.Items.SelectMany(Names),
        MapNode map => map.Entries.SelectMany(entry => entry is { Key.Text: "file", Value: ScalarNode name } ? [(name.Text, name.Place.Line)] : Names(entry.Value)),
        _ => [],
    };
}
