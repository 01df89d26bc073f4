using Grpc.Core;
using VmmService.Server.Scripts;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.ScriptService. The engine is in <c>Scripts/</c>; here is the stream.</summary>
internal sealed class ScriptServiceImpl(HostRegistry hosts, IHostApplicationLifetime lifetime) : ScriptService.ScriptServiceBase
{
    public override async Task RunScript(IAsyncStreamReader<RunScriptRequest> requestStream, IServerStreamWriter<RunScriptResponse> responseStream, ServerCallContext context)
    {
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(context.CancellationToken, lifetime.ApplicationStopping);
        if (!await requestStream.MoveNext(ended.Token) || requestStream.Current.PartCase != RunScriptRequest.PartOneofCase.Header)
        {
            throw Refusals.BadField("header", "the first message of a script must be the header; it may be empty");
        }
        using var session = new ScriptSession(hosts, requestStream.Current.Header, reply => responseStream.WriteAsync(reply, context.CancellationToken));
        try
        {
            bool goesOn = true;
            while (goesOn && await requestStream.MoveNext(ended.Token))
            {
                goesOn = await session.TakeAsync(requestStream.Current, ended.Token);
            }
            await session.EndAsync(ended.Token);
        }
        catch (ScriptException wrong)
        {
            throw Refusals.Of(wrong);
        }
        catch (OperationCanceledException) when (lifetime.ApplicationStopping.IsCancellationRequested)
        {
            throw new RpcException(new Status(StatusCode.Unavailable, "the daemon stops"));
        }
    }

    public override Task<ListStepsResponse> ListSteps(ListStepsRequest request, ServerCallContext context)
    {
        var response = new ListStepsResponse();
        response.Actions.AddRange(StepTable.All.Select(action =>
        {
            ScriptAction message = ToMessage(action);
            message.IsCall = action.IsCall;
            message.Facts.AddRange(action.Facts.Select(ToMessage));
            return message;
        }));
        response.GuestSteps.AddRange(GuestStepTable.All.Select(ToMessage));
        response.Constants.AddRange(ScriptConstants.All.Select(pair => new ScriptConstant { Name = pair.Key, Value = pair.Value }));
        return Task.FromResult(response);
    }

    private static ScriptAction ToMessage(ActionShape shape)
    {
        var message = new ScriptAction { Name = shape.Name, Summary = shape.Summary };
        message.Fields.AddRange(shape.Fields.Select(ToMessage));
        return message;
    }

    private static ScriptField ToMessage(StepField field) => new()
    {
        Name = field.Name,
        Kind = field.Choices.Count > 0 ? string.Join(" | ", field.Choices.Keys) : field.Kind switch
        {
            FieldKind.U64 or FieldKind.U32 or FieldKind.U16 => "number",
            FieldKind.Numbers => "numbers",
            _ => field.Kind.ToString().ToLowerInvariant(),
        },
        Meaning = field.Meaning,
        Required = field.Required,
        Default = field.Default ?? "",
    };
}
