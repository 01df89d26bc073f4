using SimKvm.Userspace;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Scripts;

/// <summary>What a field of a step takes.</summary>
internal enum FieldKind
{
    /// <summary>A number of 64 bits, signed or unsigned.</summary>
    U64,

    /// <summary>A number of 32 bits, signed or unsigned.</summary>
    U32,

    /// <summary>A number of 16 bits.</summary>
    U16,

    /// <summary>A file descriptor.</summary>
    Fd,
    Bool,
    Text,

    /// <summary>The name of a variable.</summary>
    Name,
    Content,

    /// <summary>A list of numbers of 64 bits.</summary>
    Numbers,

    /// <summary>A list of steps.</summary>
    Steps,

    /// <summary>A list of steps of a guest program.</summary>
    Program,

    /// <summary>A map of names to values.</summary>
    Map,
}

/// <summary>A field of a step.</summary>
/// <param name="Meaning">For people, with units.</param>
internal sealed record StepField(string Name, FieldKind Kind, string Meaning)
{
    /// <summary>As it would be written; null where the field may be left out without anything standing for it.</summary>
    public string? Default { get; init; }

    public bool Required { get; init; }

    /// <summary>Short names for numbers, beside the constants of the language.</summary>
    public IReadOnlyDictionary<string, ulong> Choices { get; init; } = new SortedDictionary<string, ulong>();
}

/// <summary>The shape of something that is written as <c>name: {field: value, ...}</c>.</summary>
/// <param name="Fields">Where the value is no map, it is that of the first field.</param>
internal abstract record ActionShape(string Name, string Summary, IReadOnlyList<StepField> Fields);

/// <summary>A row of the table of steps.</summary>
internal sealed record StepAction(string Name, string Summary, IReadOnlyList<StepField> Fields, Func<ScriptRun, StepArguments, StepResult> Body) : ActionShape(Name, Summary, Fields)
{
    /// <summary>What expectations can name beside that of calls.</summary>
    public IReadOnlyList<StepField> Facts { get; init; } = [];

    /// <summary>The step answers errno, value, rule and findings.</summary>
    public bool IsCall { get; init; } = true;

    /// <summary>Steps that are executed after the body, list by list; what a list needs is set before it is given.</summary>
    public Func<ScriptRun, StepArguments, IEnumerable<ListNode>>? Expand { get; init; }
}

/// <summary>What a step came to.</summary>
internal sealed class StepResult
{
    private readonly List<KeyValuePair<string, ScriptValue>> _facts = [];

    public Outcome? Outcome { get; private init; }

    public KvmRun? Run { get; set; }

    /// <summary>One line; for calls the outcome's.</summary>
    public string Text { get; set; } = "";

    /// <summary>What <c>as</c> keeps.</summary>
    public ScriptValue Kept { get; set; } = ScriptValue.Of(0);

    public IReadOnlyList<KeyValuePair<string, ScriptValue>> Facts => _facts;

    public ScriptValue? Fact(string name) => _facts.FirstOrDefault(fact => fact.Key == name).Value;

    public static StepResult Of(CallReport report, string? what = null) => Of(Outcomes.Of(report, what));

    public static StepResult Of(Outcome outcome)
    {
        var result = new StepResult { Outcome = outcome, Text = outcome.Text, Kept = ScriptValue.Of(outcome.Value) };
        result.Add("errno", outcome.Errno == 0 ? "OK" : outcome.ErrnoName);
        result.Add("value", outcome.Value);
        result.Add("rule", new TextsValue([.. outcome.Causes.Select(cause => cause.Rule)]));
        result.Add("findings", outcome.Findings.Count);
        return result;
    }

    /// <summary>A step that is no call.</summary>
    public static StepResult Done(string text) => new() { Text = text };

    public StepResult Add(string name, ScriptValue value)
    {
        _facts.Add(new(name, value));
        return this;
    }

    public StepResult Add(string name, Int128 number) => Add(name, ScriptValue.Of(number));

    public StepResult Add(string name, string text) => Add(name, ScriptValue.Of(text));

    public StepResult Add(string name, ReadOnlyMemory<byte> bytes) => Add(name, ScriptValue.Of(bytes));
}
