using System.CommandLine;
using System.Text.Json.Nodes;
using Google.Protobuf;
using Google.Protobuf.Reflection;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm record and vmm replay: the calls of a session, saved and made again.</summary>
internal static class RecordCommands
{
    public static Command CreateRecord(VmmConsole console)
    {
        var host = new Argument<string>("HOST") { Description = "Id of a host of the daemon." };
        Option<string?> server = InfoCommands.ServerOption();
        var command = new Command(
            "record",
            """
            Save the calls that were made on a host since it was created, with what they were answered: one JSON object a line, on standard output.

            A script that was run on the host is one call. Calls that only look are left out.
            """)
        { host, server };
        command.SetAction(async (parsed, cancellation) =>
        {
            string address = parsed.GetValue(server) ?? throw new UsageException("record needs --server: a daemon in this process has no hosts of others");
            await using DaemonSession session = await DaemonSession.OpenAsync(address, cancellation);
            ulong lost = 0;
            await foreach (GetRecordingResponse part in session.Connection.GetRecordingAsync(parsed.GetRequiredValue(host), cancellation))
            {
                lost = part.Header?.Lost ?? lost;
                if (part.Call is not null)
                    await console.Output.WriteLineAsync(ToLine(Recording.Read(part.Call)));
            }
            if (lost > 0)
                await console.Error.WriteLineAsync($"vmm: {lost} calls at the end are missing: they did not fit into the recording, or cannot be recorded");

            return lost == 0 ? ExitCode.Ok : ExitCode.KernelRefused;
        });
        return command;
    }

    public static Command CreateReplay(VmmConsole console)
    {
        var file = new Argument<string>("FILE") { Description = "A recording; - is standard input." };
        var profile = new Option<string?>("--profile") { Description = "Kernel generation to replay under; without it the recorded one.", HelpName = "PROFILE" };
        Option<string?> server = InfoCommands.ServerOption();
        var command = new Command(
            "replay",
            """
            Make the calls of a recording again, on a host of its own, and compare what they are answered.

            The exit code is 0 if everything was answered as recorded, and 1 if something was not; the first difference is named.
            """)
        { file, profile, server };
        command.SetAction(async (parsed, cancellation) =>
        {
            string path = parsed.GetRequiredValue(file);
            ScriptInput input = await ScriptInput.ReadAsync(path, [], cancellation);
            Recording recording = Read(path, input.Yaml);
            await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(server), cancellation);
            ReplayDifference? difference = await recording.ReplayAsync(session.Connection, parsed.GetValue(profile), cancellation);
            if (difference is null)
            {
                await console.Output.WriteLineAsync($"{recording.Calls.Count} calls, all answered as recorded");
                return ExitCode.Ok;
            }
            await console.Output.WriteLineAsync($"call {difference.Number}, {difference.Method}: {difference.Field} was {difference.Recorded}, it is {difference.Now}");
            return ExitCode.Different;
        });
        return command;
    }

    private static string ToLine(ReplayableCall call)
    {
        var line = new JsonObject
        {
            ["method"] = $"{call.Method.Service.FullName}/{call.Method.Name}",
            ["requests"] = new JsonArray([.. call.Requests.Select(Node)]),
        };
        if (call.Method.IsServerStreaming)
            line["responses"] = new JsonArray([.. call.Responses.Select(Node)]);
        else
            line["response"] = Node(call.Responses[0]);

        return line.ToJsonString();
    }

    private static JsonNode Node(IMessage message) => JsonNode.Parse(JsonFormatter.Default.Format(message))!;

    private static Recording Read(string path, string text)
    {
        var calls = new List<ReplayableCall>();
        int line = 0;
        foreach (string each in text.Split('\n'))
        {
            line++;
            if (each.Length == 0)
                continue;

            try
            {
                JsonNode node = JsonNode.Parse(each)!;
                string name = node["method"]!.GetValue<string>();
                MethodDescriptor method = Recording.FindMethod(name) ?? throw new InvalidDataException($"there is no RPC {name}");
                calls.Add(new ReplayableCall(
                    method, [.. node["requests"]!.AsArray().Select(request => JsonParser.Default.Parse(request!.ToJsonString(), method.InputType))],
                    [.. (node["responses"]?.AsArray() ?? [node["response"]!.DeepClone()]).Select(response => JsonParser.Default.Parse(response!.ToJsonString(), method.OutputType))]));
            }
            catch (Exception problem) when (problem is System.Text.Json.JsonException or InvalidJsonException or InvalidProtocolBufferException or InvalidDataException or InvalidOperationException or NullReferenceException)
            {
                throw new UsageException($"{path}:{line}: not a recorded call: {problem.Message}");
            }
        }
        return calls is [{ Requests: [CreateHostRequest] }, ..] ? new Recording(calls) : throw new UsageException($"{path}: not a recording; the first line must be the creation of a host");
    }
}
