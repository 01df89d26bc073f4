using System.Text;
using VmmService.Server.Services;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Scripts;

/// <summary>
/// One stream of a script: takes in what the client sends and answers step by step. The host is chosen when the first thing to execute is there, because a document may say
/// what it is to be.
/// </summary>
internal sealed class ScriptSession(HostRegistry hosts, ScriptHeader header, Func<RunScriptResponse, Task> send) : IDisposable
{
    private const int MaxDocument = 4 << 20;

    private readonly ScriptScope _scope = new(hosts.Options.MaxMessageBytes);
    private readonly StringBuilder _document = new();
    private ScriptRun? _run;
    private bool _stopped;

    // Steps were executed of which no summary was sent yet.
    private bool _owesSummary;

    /// <summary>Takes in one message after the header.</summary>
    /// <returns>False when the script is at its end and nothing more is wanted.</returns>
    /// <exception cref="ScriptException">What came is no script.</exception>
    public async Task<bool> TakeAsync(RunScriptRequest request, CancellationToken cancellation)
    {
        switch (request.PartCase)
        {
            case RunScriptRequest.PartOneofCase.File:
                if (!_scope.AddFile(request.File.Name, request.File.Data.Span))
                {
                    throw Refusals.OverQuota("files", $"the files of a script have at most {_scope.MaxContent} bytes together");
                }
                return true;
            case RunScriptRequest.PartOneofCase.Document:
                return await TakeAsync(request.Document, cancellation);
            case RunScriptRequest.PartOneofCase.Step:
                int line = (int)Math.Clamp(request.Step.FirstLine, 1u, 1u << 30);
                if (request.Step.Yaml.Length > MaxDocument)
                {
                    throw TooLong();
                }
                ScriptNode steps = ScriptReader.Read(request.Step.Yaml, line);
                await StartAsync(null);
                return await ExecuteAsync(steps, cancellation);
            default:
                throw Refusals.BadField("part", "after the header come files, steps and parts of a document");
        }
    }

    /// <summary>The end of the stream: what was sent of a document is all of it.</summary>
    public async Task EndAsync(CancellationToken cancellation)
    {
        if (_document.Length > 0)
        {
            await TakeAsync(new ScriptDocumentChunk { Last = true }, cancellation);
        }
        else if (_owesSummary)
        {
            await SummariseAsync();
        }
    }

    public void Dispose() => _run?.Dispose();

    private async Task<bool> TakeAsync(ScriptDocumentChunk chunk, CancellationToken cancellation)
    {
        if (_document.Length + chunk.Yaml.Length > MaxDocument)
        {
            throw TooLong();
        }
        _document.Append(chunk.Yaml);
        if (!chunk.Last)
        {
            return true;
        }
        ScriptDocument document = ScriptDocument.Read(ScriptReader.Read(_document.ToString()));
        _document.Clear();
        await StartAsync(document);
        bool goesOn = await ExecuteAsync(document.Steps, cancellation);
        await SummariseAsync();
        return goesOn;
    }

    private async Task<bool> ExecuteAsync(ScriptNode steps, CancellationToken cancellation)
    {
        _owesSummary = true;
        _stopped = !await _run!.ExecuteAsync(steps, cancellation);
        return !_stopped;
    }

    private Task SummariseAsync()
    {
        _owesSummary = false;
        return send(new RunScriptResponse { Summary = _run!.Summary.Clone() });
    }

    private async Task StartAsync(ScriptDocument? document)
    {
        SetVariables(document);
        if (_run is not null)
        {
            return;
        }
        bool owns = header.Host.Length == 0;
        ServedHost host = owns ? HostServiceImpl.Boot(hosts, BootOf(document)) : hosts.Get(header.Host);
        try
        {
            _run = new ScriptRun(hosts, host, owns, _scope, header.KeepGoing || document is { KeepGoing: true }, reply => send(new RunScriptResponse { Step = reply }));
        }
        catch when (owns)
        {
            hosts.Remove(host, "its script could not start");
            throw;
        }
        var started = new ScriptStarted { Host = host.Id, Pid = _run.FirstPid, Profile = host.Sim.Profile.Id, Seed = host.Sim.Machine.Seed };
        await send(new RunScriptResponse { Started = started });
    }

    // What the header sets wins over the document.
    private CreateHostRequest BootOf(ScriptDocument? document)
    {
        CreateHostRequest boot = document?.Boot(_scope) ?? new CreateHostRequest();
        if (header.Boot is { } wanted)
        {
            boot.Profile = wanted.Profile.Length > 0 ? wanted.Profile : boot.Profile;
            boot.Seed = header.SeedSet || wanted.Seed != 0 ? wanted.Seed : boot.Seed;
            boot.Machine = Merge(boot.Machine, wanted.Machine);
            boot.Kernel = Merge(boot.Kernel, wanted.Kernel);
            boot.Borrowed.AddRange(wanted.Borrowed);
        }
        boot.DeleteWhenEmpty = false;
        return boot;
    }

    private static T? Merge<T>(T? document, T? wanted)
        where T : class, Google.Protobuf.IMessage<T>
    {
        if (document is null || wanted is null)
        {
            return wanted ?? document;
        }
        document.MergeFrom(wanted);
        return document;
    }

    // Those of the header are there before the document's, which may use them, and win over them.
    private void SetVariables(ScriptDocument? document)
    {
        foreach ((string name, string value) in _run is null ? header.Variables.OrderBy(pair => pair.Key, StringComparer.Ordinal).Select(pair => (pair.Key, pair.Value)) : [])
        {
            var place = new ScriptPlace(0, 0);
            _scope.Set(new ScalarNode(name, false, place), _scope.Value(new ScalarNode(value, false, place)));
        }
        foreach ((ScalarNode name, ScriptNode value) in document?.Variables.Select(entry => (entry.Key, entry.Value)) ?? [])
        {
            if (!header.Variables.ContainsKey(name.Text))
            {
                _scope.Set(name, _scope.Value(value));
            }
        }
    }

    private static Grpc.Core.RpcException TooLong() => Refusals.OverQuota("document", $"a script has at most {MaxDocument} characters; upload contents as files");
}
