using SimKvm.Exploration;
using SimKvm.Profiles;
using VmmService.V1;

namespace VmmService.Server.Scripts.Scenarios;

/// <summary>
/// A scenario as it was written: what is booted, the steps that set it up, the programs that then run at once, and what must hold when they are done. Steps are those of scripts.
/// </summary>
internal sealed class ScenarioDocument
{
    private const string NoFinding = "none";

    private static readonly string[] Keys =
        ["title", "about", "profile", "seed", "machine", "kernel", "vars", "setup", "programs", "must_hold", "serializable", "explore", "expect"];

    public string Title { get; private init; } = "";

    /// <summary>The host that it asks for; the profile is set for each run.</summary>
    public CreateHostRequest Boot { get; } = new() { Machine = new MachineConfig { MemoryBytes = 64 << 20 } };

    /// <summary>Where the machine is written; null where it is not.</summary>
    public ScriptNode? Machine { get; private set; }

    public IReadOnlyList<KeyValuePair<ScalarNode, ScriptNode>> Variables { get; private init; } = [];

    public ListNode Setup { get; private init; } = Nothing;

    public IReadOnlyList<ScenarioProgram> Programs { get; private init; } = [];

    public ListNode MustHold { get; private init; } = Nothing;

    public bool Serializable { get; private init; }

    public ExploreOptions Options { get; private init; } = new();

    /// <summary>Kinds of findings that are expected, by profile, in the order in which they were written; none for an empty list.</summary>
    public IReadOnlyList<(string Profile, IReadOnlyList<string> Kinds)> Expected { get; private init; } = [];

    private static ListNode Nothing => new([], new ScriptPlace(1, 1));

    /// <summary>The profiles that it is about.</summary>
    public IEnumerable<string> Profiles => Expected.Count > 0 ? Expected.Select(each => each.Profile)
        : [Boot.Profile.Length > 0 ? Boot.Profile : KernelProfiles.Default.Id];

    /// <exception cref="ScriptException">It is no scenario.</exception>
    public static ScenarioDocument Read(string yaml)
    {
        ScriptNode root = ScriptReader.Read(yaml);
        MapNode map = root as MapNode ?? throw root.Problem($"a scenario is a map with `programs`; this is {root.Kind}", "begin with `programs:`");
        foreach (ScalarNode key in map.Entries.Select(entry => entry.Key))
        {
            if (!Keys.Contains(key.Text))
            {
                throw key.Problem($"a scenario has no `{key.Text}`", Nearest.Advice(key.Text, Keys, $"it has {string.Join(", ", Keys)}"));
            }
        }
        var scope = new ScriptScope(0);
        var document = new ScenarioDocument
        {
            Title = map.Find("title") is { } title ? title.AsScalar().Text : "a scenario without title",
            Variables = map.Find("vars") is { } variables ? ScriptDocument.MapOf("vars", variables).Entries : [],
            Setup = Steps(map, "setup"),
            Programs = ReadPrograms(map.Find("programs") ?? throw map.Problem("the scenario has no `programs`", "add `programs:` with a name and steps for each")),
            MustHold = Steps(map, "must_hold"),
            Serializable = map.Find("serializable") is { } serializable && scope.Number(serializable, 0, 1) != 0,
            Options = map.Find("explore") is { } explore ? ScenarioOptions.Read(ScriptDocument.MapOf("explore", explore), scope) : new ExploreOptions(),
            Expected = map.Find("expect") is { } expect ? ReadExpected(ScriptDocument.MapOf("expect", expect)) : [],
        };
        document.Boot.Profile = map.Find("profile") is { } profile ? Known(profile.AsScalar()) : "";
        document.Boot.Seed = map.Find("seed") is { } seed ? (ulong)scope.Number(seed, 0, ulong.MaxValue) : 1;
        document.Boot.Kernel = map.Find("kernel") is { } kernel ? ScriptDocument.Fill(new KernelConfig(), ScriptDocument.MapOf("kernel", kernel), scope) : null;
        if (map.Find("machine") is { } machine)
        {
            ScriptDocument.Fill(document.Boot.Machine, ScriptDocument.MapOf("machine", machine), scope);
            document.Machine = machine;
        }
        return document;
    }

    private static ListNode Steps(MapNode map, string key) => map.Find(key) switch
    {
        null => Nothing,
        ListNode steps => steps,
        { } other => throw other.Problem($"`{key}` is {other.Kind}", "write a list of steps, each behind a `- `"),
    };

    private static ScenarioProgram[] ReadPrograms(ScriptNode node)
    {
        MapNode map = ScriptDocument.MapOf("programs", node);
        if (map.Entries.Count is 0 or > PreparedScenario.MaxPrograms)
        {
            throw node.Problem($"there are {map.Entries.Count} programs", $"write 1 to {PreparedScenario.MaxPrograms}");
        }
        return [.. map.Entries.Select(entry => entry.Value switch
        {
            ListNode steps => new ScenarioProgram(entry.Key.Text, null, steps),
            MapNode program when program.Find("steps") is ListNode steps && program.Entries.All(field => field.Key.Text is "in" or "steps") =>
                new ScenarioProgram(entry.Key.Text, program.Find("in"), steps),
            { } other => throw other.Problem($"the program `{entry.Key.Text}` is {other.Kind}", "write a list of steps, or {in: $process, steps: [...]}"),
        })];
    }

    private static (string Profile, IReadOnlyList<string> Kinds)[] ReadExpected(MapNode map) => [.. map.Entries.Select(entry => (Known(entry.Key), (IReadOnlyList<string>)(entry.Value switch
    {
        ScalarNode { Text: NoFinding } => [],
        ScalarNode { IsEmpty: false } kind => [KnownKind(kind)],
        ListNode kinds => [.. kinds.Items.Select(kind => KnownKind(kind.AsScalar()))],
        { } other => throw other.Problem("a kind of finding is missing", $"write a kind, a list of kinds, or {NoFinding}"),
    })))];

    private static string KnownKind(ScalarNode node) => FindingKinds.All.Contains(node.Text) ? node.Text
        : throw node.Problem($"there is no kind of finding `{node.Text}`", Nearest.Advice(node.Text, FindingKinds.All, $"the kinds are {string.Join(", ", FindingKinds.All)}, or {NoFinding}"));

    private static string Known(ScalarNode node) => KernelProfiles.Find(node.Text)?.Id ?? throw node.Problem($"there is no profile `{node.Text}`", ProfileAdvice(node.Text));

    /// <summary>What somebody could have meant who wrote that.</summary>
    public static string ProfileAdvice(string text)
    {
        int plus = text.LastIndexOf('+'), dot = text.LastIndexOf('.');
        if (plus < 0)
        {
            return Nearest.Advice(text, KernelProfiles.All.Select(profile => profile.Id), "`vmm profiles` lists them");
        }
        string from = dot > plus ? text[(plus + 1)..dot] : text[(plus + 1)..], behaviour = dot > plus ? text[(dot + 1)..] : "";
        return KernelProfiles.Find(text[..plus]) is null ? $"`{text[..plus]}` is none; `vmm profiles` lists them"
            : KernelProfiles.Find(from) is null ? $"`{from}` is none to take a behaviour from; write PROFILE+OTHER.Behaviour"
            : Nearest.Advice(behaviour, KernelProfiles.Behaviours, $"write {text[..plus]}+{from}.Behaviour; `vmm profiles diff` has the behaviours by name");
    }
}

/// <summary>One of the programs.</summary>
/// <param name="In">The process that it is a thread of; null for the first.</param>
internal sealed record ScenarioProgram(string Name, ScriptNode? In, ListNode Steps);

/// <summary>How a scenario wants to be explored.</summary>
internal static class ScenarioOptions
{
    private static readonly string[] Keys = ["scheduler", "schedules", "preemptions", "depth", "seed", "seconds"];

    /// <summary>Words for schedulers, as the command line has them too.</summary>
    public static string[] Schedulers { get; } = ["exhaustive", "bounded", "pct", "random"];

    public static ExploreOptions Read(MapNode map, ScriptScope scope)
    {
        var options = new ExploreOptions();
        foreach ((ScalarNode key, ScriptNode value) in map.Entries.Select(entry => (entry.Key, entry.Value)))
        {
            switch (key.Text)
            {
                case "scheduler":
                    string word = value.AsScalar().Text;
                    int index = Array.IndexOf(Schedulers, word);
                    options.Scheduler = index >= 0 ? (ExploreScheduler)(index + 1) : throw value.Problem($"there is no scheduler `{word}`", $"use one of {string.Join(", ", Schedulers)}");
                    break;
                case "schedules":
                    options.MaxSchedules = (uint)scope.Number(value, 1, int.MaxValue);
                    break;
                case "preemptions":
                    options.Preemptions = (uint)scope.Number(value, 0, 64);
                    break;
                case "depth":
                    options.Depth = (uint)scope.Number(value, 1, 64);
                    break;
                case "seed":
                    options.Seed = (ulong)scope.Number(value, 0, ulong.MaxValue);
                    break;
                case "seconds":
                    options.TimeLimitSeconds = (uint)scope.Number(value, 1, int.MaxValue);
                    break;
                default:
                    throw key.Problem($"`explore` has no `{key.Text}`", Nearest.Advice(key.Text, Keys, $"it has {string.Join(", ", Keys)}"));
            }
        }
        return options;
    }
}
