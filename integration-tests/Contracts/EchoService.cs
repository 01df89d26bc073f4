using System.Text;
using Grpc.Core;
using Grpc.Core.Interceptors;

namespace VmmService.IntegrationTests.Contracts;

/// <summary>
/// A service written by hand, in the form that generated code has, with strings for messages: one method of each kind, so that the contracts are
/// tested
/// by themselves. Next door is its implementation, <see cref="EchoService"/>.
/// </summary>
internal static class Echo
{
    internal static readonly Method<string, string> UnaryMethod = New(MethodType.Unary, nameof(EchoBase.Unary));
    internal static readonly Method<string, string> CollectMethod = New(MethodType.ClientStreaming, nameof(EchoBase.Collect));
    internal static readonly Method<string, string> RepeatMethod = New(MethodType.ServerStreaming, nameof(EchoBase.Repeat));
    internal static readonly Method<string, string> ChatMethod = New(MethodType.DuplexStreaming, nameof(EchoBase.Chat));

    internal static readonly Method<string, string> DefinedMethod =
        new(MethodType.Unary, "contracts.Defined", "Unary", Marshallers.StringMarshaller, Marshallers.StringMarshaller);

    /// <summary>What the server calls, with null for the service: it wants the methods only, and finds the handlers by name.</summary>
    public static void Bind(ServiceBinderBase binder, EchoBase? service)
    {
        binder.AddMethod(UnaryMethod, service is null ? null : new UnaryServerMethod<string, string>(service.Unary));
        binder.AddMethod(CollectMethod, service is null ? null : new ClientStreamingServerMethod<string, string>(service.Collect));
        binder.AddMethod(RepeatMethod, service is null ? null : new ServerStreamingServerMethod<string, string>(service.Repeat));
        binder.AddMethod(ChatMethod, service is null ? null : new DuplexStreamingServerMethod<string, string>(service.Chat));
    }

    /// <summary>A second service, given to the server as a value instead of a class.</summary>
    internal static ServerServiceDefinition Definition() => ServerServiceDefinition.CreateBuilder()
        .AddMethod(DefinedMethod, new UnaryServerMethod<string, string>((request, _) => Task.FromResult($"defined {request}")))
        .Build();

    private static Method<string, string> New(MethodType type, string name)
    {
        // By arrays one way and by contexts the other, so that both ways of a marshaller are on the wire.
        var contextual = new Marshaller<string>(
            (message, context) =>
            {
                var bytes = Encoding.UTF8.GetBytes(message);
                context.SetPayloadLength(bytes.Length);
                bytes.CopyTo(context.GetBufferWriter().GetSpan(bytes.Length));
                context.GetBufferWriter().Advance(bytes.Length);
                context.Complete();
            },
            context => Encoding.UTF8.GetString(context.PayloadAsReadOnlySequence()));
        return new Method<string, string>(type, "contracts.Echo", name, Marshallers.StringMarshaller, contextual);
    }

    [BindServiceMethod(typeof(Echo), nameof(Bind))]
    internal abstract class EchoBase
    {
        public abstract Task<string> Unary(string request, ServerCallContext context);

        public abstract Task<string> Collect(IAsyncStreamReader<string> requests, ServerCallContext context);

        public abstract Task Repeat(string request, IServerStreamWriter<string> responses, ServerCallContext context);

        public abstract Task Chat(IAsyncStreamReader<string> requests, IServerStreamWriter<string> responses, ServerCallContext context);
    }
}

/// <summary>Answers with what arrived; its trailers repeat the rest of what arrived, for the tests to compare with what was sent.</summary>
internal sealed class EchoService(EchoService.Signals signals) : Echo.EchoBase
{
    /// <summary>
    /// A request that fails with FAILED_PRECONDITION and the words below, in which every kind of character needs its own care on the wire.
    /// </summary>
    internal const string Fail = "fail";

    internal const string FailDetail = "100 % no: ä € 𝄞\nsecond line";

    /// <summary>A request that is never answered.</summary>
    internal const string Wait = "wait";

    public override async Task<string> Unary(string request, ServerCallContext context)
    {
        Repeat(context);
        if (request == Fail)
        {
            var trailers = new Metadata { { "rule", "x.y" }, { "cause-bin", [0, 255, 10] } };
            throw new RpcException(new Status(StatusCode.FailedPrecondition, FailDetail), trailers);
        }

        if (request == Wait) await UntilCancelled(context);
        await context.WriteResponseHeadersAsync(new Metadata { { "first", "header" } });
        return request;
    }

    public override async Task<string> Collect(IAsyncStreamReader<string> requests, ServerCallContext context)
    {
        Repeat(context);
        List<string> all = [];
        while (await requests.MoveNext()) all.Add(requests.Current);
        return string.Join(',', all);
    }

    public override async Task Repeat(string request, IServerStreamWriter<string> responses, ServerCallContext context)
    {
        Repeat(context);
        foreach (var word in request.Split(' ')) await responses.WriteAsync(word);
        if (request == Wait) await UntilCancelled(context);
    }

    public override async Task Chat(IAsyncStreamReader<string> requests, IServerStreamWriter<string> responses, ServerCallContext context)
    {
        Repeat(context);
        await foreach (var request in requests.ReadAllAsync()) await responses.WriteAsync($"{request}!", context.CancellationToken);
    }

    private static void Repeat(ServerCallContext context)
    {
        foreach (var entry in context.RequestHeaders.Where(entry => entry.Key.StartsWith("test-", StringComparison.Ordinal)))
            context.ResponseTrailers.Add(entry);
        foreach (var authorization in context.RequestHeaders.GetAll("authorization"))
            context.ResponseTrailers.Add("saw-authorization", authorization.Value);
        context.ResponseTrailers.Add("saw-encoding", context.GetHttpContext().Request.Headers["grpc-encoding"].ToString());
        context.ResponseTrailers.Add("saw-deadline", context.Deadline == DateTime.MaxValue ? "none" : "some");
    }

    private async Task UntilCancelled(ServerCallContext context)
    {
        signals.Waiting.TrySetResult();
        try
        {
            await Task.Delay(Timeout.Infinite, context.CancellationToken);
        }
        finally
        {
            signals.Cancelled.TrySetResult();
        }
    }

    /// <summary>What a test can wait for on the server's side.</summary>
    internal sealed class Signals
    {
        internal TaskCompletionSource Waiting { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

        internal TaskCompletionSource Cancelled { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);
    }

    /// <summary>Marks every call that passes through it, of whichever kind.</summary>
    internal sealed class Marker : Interceptor
    {
        public override Task<TResponse> UnaryServerHandler<TRequest, TResponse>(
            TRequest request, ServerCallContext context, UnaryServerMethod<TRequest, TResponse> continuation) => continuation(request, Marked(context));

        public override Task<TResponse> ClientStreamingServerHandler<TRequest, TResponse>(
            IAsyncStreamReader<TRequest> requestStream, ServerCallContext context, ClientStreamingServerMethod<TRequest, TResponse> continuation) =>
            continuation(requestStream, Marked(context));

        public override Task ServerStreamingServerHandler<TRequest, TResponse>(
            TRequest request,
            IServerStreamWriter<TResponse> responseStream,
            ServerCallContext context,
            ServerStreamingServerMethod<TRequest, TResponse> continuation) => continuation(request, responseStream, Marked(context));

        public override Task DuplexStreamingServerHandler<TRequest, TResponse>(
            IAsyncStreamReader<TRequest> requestStream,
            IServerStreamWriter<TResponse> responseStream,
            ServerCallContext context,
            DuplexStreamingServerMethod<TRequest, TResponse> continuation) => continuation(requestStream, responseStream, Marked(context));

        private static ServerCallContext Marked(ServerCallContext context)
        {
            context.ResponseTrailers.Add("server-interceptor", context.Method);
            return context;
        }
    }
}
