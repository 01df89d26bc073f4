using System.Text.Json.Nodes;
using Google.Protobuf.Collections;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>
/// A script under several kernel generations: where the first step comes out differently, and which behaviour makes the difference. The latter is found by trying: the script
/// is run under the first generation with one behaviour after the other borrowed from the second.
/// </summary>
internal sealed class ProfileComparison(VmmConnection connection, ScriptInput input, ScriptHeader header, CancellationToken cancellation)
{
    private sealed record Difference(int Index, ScriptStepReply? Left, ScriptStepReply? Right);

    private sealed record Responsible(IReadOnlyList<Behaviour> Behaviours, int Tried);

    /// <returns>The exit code: 1 when two of the profiles part.</returns>
    public async Task<int> RunAsync(VmmConsole console, IReadOnlyList<string> profiles, bool json)
    {
        IReadOnlyList<ScriptStepReply> first = await ExecuteAsync(profiles[0], []);
        var report = new JsonArray();
        bool differ = false;
        foreach (string profile in profiles.Skip(1))
        {
            IReadOnlyList<ScriptStepReply> second = await ExecuteAsync(profile, []);
            Difference? difference = FirstDifference(first, second);
            Responsible? responsible = difference is null ? null : await FindResponsibleAsync(profiles[0], profile, first, second, difference);
            differ |= difference is not null;
            if (json)
                report.Add(ToJson(profiles[0], profile, difference, responsible));
            else
                Write(console.Output, profiles[0], profile, first.Count, difference, responsible);
        }
        if (json)
            await console.Output.WriteLineAsync(ScriptPrinter.Show(new JsonObject { ["comparisons"] = report }));
        return differ ? ExitCode.KernelRefused : ExitCode.Ok;
    }

    // Unmet expectations do not end it: what is met in one profile may not be in another, and that is what is looked for.
    private async Task<IReadOnlyList<ScriptStepReply>> ExecuteAsync(string profile, IEnumerable<BorrowedBehaviour> borrowed)
    {
        ScriptHeader own = header.Clone();
        own.KeepGoing = true;
        own.Boot.Profile = profile;
        own.Boot.Borrowed.AddRange(borrowed);
        List<ScriptStepReply> steps = [];
        try
        {
            await using RemoteScript script = await input.StartAsync(connection, own, cancellation);
            await script.CompleteAsync();
            await foreach (RunScriptResponse reply in script.RepliesAsync(cancellation))
            {
                if (reply.Step is not null)
                    steps.Add(reply.Step);
            }
        }
        catch (VmmServiceException failure)
        {
            throw input.Explain(failure);
        }
        return steps;
    }

    private static Difference? FirstDifference(IReadOnlyList<ScriptStepReply> left, IReadOnlyList<ScriptStepReply> right)
    {
        for (int i = 0; i < Math.Max(left.Count, right.Count); i++)
        {
            ScriptStepReply? one = i < left.Count ? left[i] : null, other = i < right.Count ? right[i] : null;
            if (one is null || other is null || !Alike(one, other))
                return new Difference(i, one, other);
        }
        return null;
    }

    // The same in everything that an expectation can name; texts may word it differently.
    private static bool Alike(ScriptStepReply one, ScriptStepReply other) => one.Line == other.Line && one.Facts.Equals(other.Facts);

    private async Task<Responsible> FindResponsibleAsync(
        string from, string to, IReadOnlyList<ScriptStepReply> first, IReadOnlyList<ScriptStepReply> second, Difference difference)
    {
        IReadOnlyList<Behaviour> behaviours = await connection.CompareProfilesAsync(from, to, cancellation);
        List<Behaviour> responsible = [];
        foreach (Behaviour behaviour in behaviours)
        {
            IReadOnlyList<ScriptStepReply> mixed;
            try
            {
                mixed = await ExecuteAsync(from, [new BorrowedBehaviour { Name = behaviour.Name, FromProfile = to }]);
            }
            catch (Exception refused) when (refused is VmmServiceException or UsageException)
            {
                // Some mixtures make no sense, and then they explain nothing.
                continue;
            }
            bool sameBefore = mixed.Count > difference.Index && Enumerable.Range(0, difference.Index).All(i => Alike(mixed[i], first[i]));
            if (sameBefore && difference.Index < second.Count && Alike(mixed[difference.Index], second[difference.Index]))
                responsible.Add(behaviour);
        }
        return new Responsible(responsible, behaviours.Count);
    }

    private static void Write(TextWriter output, string from, string to, int steps, Difference? difference, Responsible? responsible)
    {
        if (difference is null)
        {
            output.WriteLine($"{from} and {to}: no difference in {steps} steps");
            return;
        }
        ScriptStepReply step = (difference.Left ?? difference.Right)!;
        output.WriteLine($"{from} and {to} part at line {step.Line}: {step.Action}{(step.Name.Length > 0 ? $" ({step.Name})" : "")}");
        output.WriteLine();
        var table = new TextTable("", from, to);
        table.Add("outcome", Outcome(difference.Left), Outcome(difference.Right));
        table.Add("rule", Rule(difference.Left), Rule(difference.Right));
        foreach (string name in Facts(difference.Left).Concat(Facts(difference.Right)).Select(fact => fact.Name).Distinct().Where(name => name is not ("errno" or "rule" or "findings")))
        {
            (string left, string right) = (Fact(difference.Left, name), Fact(difference.Right, name));
            if (left != right)
                table.Add(name, left, right);
        }
        table.WriteTo(output);
        output.WriteLine();
        if (responsible!.Behaviours.Count == 0)
            output.WriteLine($"None of the {responsible.Tried} behaviours in which they differ does it alone; `vmm profiles {from} {to}` lists them.");

        foreach (Behaviour behaviour in responsible.Behaviours)
            output.WriteLine($"Behaviour {behaviour.Name}: {behaviour.ParentValue} in {from}, {behaviour.Value} in {to} [{behaviour.Source}]");
    }

    private static JsonObject ToJson(string from, string to, Difference? difference, Responsible? responsible)
    {
        var json = new JsonObject { ["from"] = from, ["to"] = to, ["differ"] = difference is not null };
        if (difference is not null)
        {
            json["fromStep"] = difference.Left is null ? null : ScriptPrinter.Node(difference.Left);
            json["toStep"] = difference.Right is null ? null : ScriptPrinter.Node(difference.Right);
            json["behaviours"] = new JsonArray([.. responsible!.Behaviours.Select(ScriptPrinter.Node)]);
        }
        return json;
    }

    private static string Outcome(ScriptStepReply? step) => step is null ? "not reached" : step.Outcome is { } outcome ? outcome.Errno == 0 ? "OK" : outcome.ErrnoName : step.Text;

    private static string Rule(ScriptStepReply? step) => step?.Outcome?.Causes.Select(cause => cause.Rule).FirstOrDefault() ?? "-";

    private static RepeatedField<ScriptFact> Facts(ScriptStepReply? step) => step?.Facts ?? [];

    private static string Fact(ScriptStepReply? step, string name) => Facts(step).FirstOrDefault(fact => fact.Name == name) is { } fact ? ScriptPrinter.Show(fact) : "-";
}
