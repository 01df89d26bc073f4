using System.Globalization;

namespace VmmService.Server.Scripts;

/// <summary>A place in a script, both from 1.</summary>
internal readonly record struct ScriptPlace(int Line, int Column)
{
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"line {Line}, column {Column}");
}

/// <summary>A script cannot be executed as it stands: where, what, why, what to try. What the simulated kernel answers is never one of these.</summary>
internal sealed class ScriptException(ScriptPlace place, string problem, string advice) : Exception($"{place}: {problem}. Try: {advice}")
{
    public ScriptPlace Place { get; } = place;

    public string Problem { get; } = problem;

    public string Advice { get; } = advice;
}
