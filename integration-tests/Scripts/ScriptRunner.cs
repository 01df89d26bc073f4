using VmmService.Client;
using VmmService.V1;

namespace VmmService.IntegrationTests.Scripts;

/// <summary>A script that was executed to its end, with all that was answered.</summary>
internal sealed record ScriptOutcome(ScriptStarted? Started, IReadOnlyList<ScriptStepReply> Steps, ScriptSummary? Summary, ScriptError? Error)
{
    public IEnumerable<UnmetExpectation> Unmet => Steps.SelectMany(step => step.Unmet);

    /// <summary>Executes a document.</summary>
    public static async Task<ScriptOutcome> Run(VmmConnection connection, string yaml, ScriptHeader? header = null, params (string Name, byte[] Data)[] files)
    {
        await using RemoteScript script = await connection.StartScriptAsync(header ?? new ScriptHeader());
        foreach ((string name, byte[] data) in files)
        {
            await script.SendFileAsync(name, data);
        }
        await script.SendDocumentAsync(yaml);
        await script.CompleteAsync();
        return await ReadAll(script);
    }

    /// <summary>What a script answers until it ends, or until its next summary.</summary>
    public static async Task<ScriptOutcome> ReadAll(RemoteScript script, bool toSummary = false)
    {
        ScriptStarted? started = null;
        ScriptSummary? summary = null;
        ScriptError? error = null;
        var steps = new List<ScriptStepReply>();
        try
        {
            await foreach (RunScriptResponse reply in script.RepliesAsync())
            {
                started = reply.Started ?? started;
                summary = reply.Summary ?? summary;
                if (reply.Step is not null)
                {
                    steps.Add(reply.Step);
                }
                if (toSummary && reply.Summary is not null)
                {
                    break;
                }
            }
        }
        catch (VmmServiceException failure) when (failure.ScriptError is not null)
        {
            error = failure.ScriptError;
        }
        return new ScriptOutcome(started, steps, summary, error);
    }
}
