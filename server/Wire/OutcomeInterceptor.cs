using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
using Grpc.Core.Interceptors;
using VmmService.Server.Sessions;
using VmmService.V1;

namespace VmmService.Server.Wire;

/// <summary>
/// What is the same for every RPC: request metadata <c>vmm-errno-as</c> (<c>outcome</c>, the default, or <c>status</c>, which turns any errno into
/// FAILED_PRECONDITION with the outcome as its detail), the log line, and the last catch for what is our bug.
/// </summary>
internal sealed class OutcomeInterceptor(HostRegistry hosts, ILogger<OutcomeInterceptor> logger) : Interceptor
{
    public const string ErrnoAs = "vmm-errno-as";
    public const string AsOutcome = "outcome";
    public const string AsStatus = "status";

    public override async Task<TResponse> UnaryServerHandler<TRequest, TResponse>(
        TRequest request, ServerCallContext context, UnaryServerMethod<TRequest, TResponse> continuation)
    {
        bool asStatus = WantsStatus(context);
        return Finish(context, await Guarded(context, () => continuation(request, context)), asStatus);
    }

    public override async Task<TResponse> ClientStreamingServerHandler<TRequest, TResponse>(
        IAsyncStreamReader<TRequest> requestStream, ServerCallContext context, ClientStreamingServerMethod<TRequest, TResponse> continuation)
    {
        bool asStatus = WantsStatus(context);
        return Finish(context, await Guarded(context, () => continuation(requestStream, context)), asStatus);
    }

    public override Task ServerStreamingServerHandler<TRequest, TResponse>(
        TRequest request, IServerStreamWriter<TResponse> responseStream, ServerCallContext context, ServerStreamingServerMethod<TRequest, TResponse> continuation) =>
        Guarded(context, async () =>
        {
            await continuation(request, responseStream, context);
            return true;
        });

    public override Task DuplexStreamingServerHandler<TRequest, TResponse>(
        IAsyncStreamReader<TRequest> requestStream, IServerStreamWriter<TResponse> responseStream, ServerCallContext context,
        DuplexStreamingServerMethod<TRequest, TResponse> continuation) =>
        Guarded(context, async () =>
        {
            await continuation(requestStream, responseStream, context);
            return true;
        });

    private static bool WantsStatus(ServerCallContext context) => context.RequestHeaders.GetValue(ErrnoAs) switch
    {
        null or AsOutcome => false,
        AsStatus => true,
        string other => throw Refusals.BadField(ErrnoAs, $"metadata value '{other}' is not known; use '{AsOutcome}' or '{AsStatus}'"),
    };

    private TResponse Finish<TResponse>(ServerCallContext context, TResponse response, bool asStatus)
    {
        if (OutcomeOf(response) is { } outcome)
        {
            Log.CallAnswered(logger, context.Method, outcome.Text);
            foreach (Finding finding in outcome.Findings)
            {
                Log.FindingReported(logger, finding.Kind, finding.Text);
            }
            if (asStatus && outcome.Errno != 0)
            {
                throw Refusals.With(StatusCode.FailedPrecondition, outcome.Text, outcome);
            }
        }
        return response;
    }

    private async Task<T> Guarded<T>(ServerCallContext context, Func<Task<T>> body)
    {
        hosts.CalledBy(context.CancellationToken);
        try
        {
            return await body();
        }
        catch (RpcException)
        {
            throw;
        }
        catch (OperationCanceledException) when (context.CancellationToken.IsCancellationRequested)
        {
            throw new RpcException(new Status(StatusCode.Cancelled, "the client went away"));
        }
        catch (IOException) when (context.CancellationToken.IsCancellationRequested)
        {
            throw new RpcException(new Status(StatusCode.Cancelled, "the client went away"));
        }
        catch (Exception exception)
        {
            Log.Unhandled(logger, context.Method, exception);
            throw new RpcException(new Status(StatusCode.Internal, "the daemon failed; its log says how, and it is a bug of ours"));
        }
    }

    private static Outcome? OutcomeOf(object? response) => response is IMessage message
        && message.Descriptor.FindFieldByName("outcome") is FieldDescriptor field
            ? field.Accessor.GetValue(message) as Outcome
            : null;
}
