using Grpc.Core;
using Grpc.Core.Interceptors;
using Xunit;

namespace VmmService.IntegrationTests.Contracts;

/// <summary>
/// The official client and server work on the contract assemblies: what the wire carries comes out at the other end. Over both transports that the
/// daemon has.
/// </summary>
public sealed class LiveCallTests
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    public static TheoryData<string> Transports { get; } = new("unix", "tcp");

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task Unary_Answers(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        using var call = channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, default, "hällo");
        Assert.Equal("hällo", await call);
        Assert.Equal("header", (await call.ResponseHeadersAsync).GetValue("first"));
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        Assert.Equal("none", call.GetTrailers().GetValue("saw-deadline"));
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task BlockingUnary_Answers(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        var answer = await Task.Run(() => channel.CreateCallInvoker().BlockingUnaryCall(Echo.UnaryMethod, null, default, "x"));
        Assert.Equal("x", answer);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task ServiceDefinition_IsServed(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        Assert.Equal("defined x", await channel.CreateCallInvoker().AsyncUnaryCall(Echo.DefinedMethod, null, default, "x"));
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task ClientStream_ArrivesInOrder(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        using var call = channel.CreateCallInvoker().AsyncClientStreamingCall(Echo.CollectMethod, null, default);
        foreach (var word in new[] { "a", "", "c" }) await call.RequestStream.WriteAsync(word);
        await call.RequestStream.CompleteAsync();
        Assert.Equal("a,,c", await call);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task ServerStream_ArrivesInOrder(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        using var call = channel.CreateCallInvoker().AsyncServerStreamingCall(Echo.RepeatMethod, null, default, "a b c");
        Assert.Equal(["a", "b", "c"], await call.ResponseStream.ReadAllAsync().ToArrayAsync());
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task DuplexStream_AnswersWhileStillOpen(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        using var call = channel.CreateCallInvoker().AsyncDuplexStreamingCall(Echo.ChatMethod, null, default);
        foreach (var word in new[] { "a", "b" })
        {
            await call.RequestStream.WriteAsync(word, CancellationToken.None);
            Assert.True(await call.ResponseStream.MoveNext());
            Assert.Equal($"{word}!", call.ResponseStream.Current);
        }

        await call.RequestStream.CompleteAsync();
        Assert.False(await call.ResponseStream.MoveNext());
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task Deadline_EndsTheCallOnBothSides(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        var options = new CallOptions(deadline: DateTime.UtcNow.AddMilliseconds(200));
        using var call = channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, options, EchoService.Wait);
        var error = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync);
        Assert.Equal(StatusCode.DeadlineExceeded, error.StatusCode);
        // The server may hear of the call only after it is over, in which case nothing was there to be cancelled.
        if (server.Signals.Waiting.Task.IsCompleted) await server.Signals.Cancelled.Task.WaitAsync(Patience);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task Deadline_IsToldToTheServer(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        var options = new CallOptions().WithDeadline(DateTime.UtcNow.AddMinutes(5));
        using var call = channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, options, "x");
        await call;
        Assert.Equal("some", call.GetTrailers().GetValue("saw-deadline"));
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task Cancellation_ReachesTheServer(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        using var cancel = new CancellationTokenSource();
        using var call = channel.CreateCallInvoker().AsyncServerStreamingCall(
            Echo.RepeatMethod, null, new CallOptions(cancellationToken: cancel.Token), EchoService.Wait);
        Assert.True(await call.ResponseStream.MoveNext());
        await server.Signals.Waiting.Task.WaitAsync(Patience);
        await cancel.CancelAsync();
        var error = await Assert.ThrowsAsync<RpcException>(() => call.ResponseStream.MoveNext());
        Assert.Equal(StatusCode.Cancelled, error.StatusCode);
        await server.Signals.Cancelled.Task.WaitAsync(Patience);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task DisposeOfACall_CancelsItOnTheServer(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        var call = channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, default, EchoService.Wait);
        await server.Signals.Waiting.Task.WaitAsync(Patience);
        call.Dispose();
        await server.Signals.Cancelled.Task.WaitAsync(Patience);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task Metadata_ArrivesWithTextAndBytes(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        var headers = new Metadata { { "test-text", "one" }, { "Test-Text", "two" }, { "test-empty-bin", [] }, { "test-blob-bin", [0, 1, 254, 255] } };
        using var call = channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, new CallOptions(headers), "x");
        await call;
        var trailers = call.GetTrailers();
        // Entries of one key are one header to HTTP.
        Assert.Equal("one, two", trailers.GetValue("test-text"));
        Assert.Equal([0, 1, 254, 255], trailers.GetValueBytes("test-blob-bin")!);
        Assert.Equal([], trailers.GetValueBytes("test-empty-bin")!);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task Error_ArrivesWithDetailAndTrailers(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        var error = await Assert.ThrowsAsync<RpcException>(
            async () => await channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, default, EchoService.Fail));
        Assert.Equal(StatusCode.FailedPrecondition, error.StatusCode);
        Assert.Equal(EchoService.FailDetail, error.Status.Detail);
        Assert.Equal("x.y", error.Trailers.GetValue("rule"));
        Assert.Equal([0, 255, 10], error.Trailers.GetValueBytes("cause-bin")!);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task UnknownMethod_IsUnimplemented(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        var method = new Method<string, string>(MethodType.Unary, "contracts.Echo", "Nothing", Marshallers.StringMarshaller, Marshallers.StringMarshaller);
        var error = await Assert.ThrowsAsync<RpcException>(async () => await channel.CreateCallInvoker().AsyncUnaryCall(method, null, default, "x"));
        Assert.Equal(StatusCode.Unimplemented, error.StatusCode);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task Gzip_CompressesRequestAndResponse(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        string? responseEncoding = null;
        using var channel = server.Connect(transport, wrap: inner => new Observer(inner, response =>
            responseEncoding = response.Headers.TryGetValues("grpc-encoding", out var values) ? values.Single() : null));
        var text = new string('a', 100_000);
        var options = new CallOptions(new Metadata { { "grpc-internal-encoding-request", "gzip" } });
        using var call = channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, options, text);
        Assert.Equal(text, await call);
        Assert.Equal("gzip", call.GetTrailers().GetValue("saw-encoding"));
        Assert.Equal("gzip", responseEncoding);
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task LargeMessage_PassesBothWays(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        // Past Kestrel's own limit of 30,000,000 bytes for a request body, which the server lifts.
        var text = new string('b', 32 << 20);
        Assert.Equal(text, await channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, default, text));
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task ServerInterceptor_SeesEveryKindOfCall(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        Assert.Equal(
            ["/contracts.Echo/Unary", "/contracts.Echo/Collect", "/contracts.Echo/Repeat", "/contracts.Echo/Chat"],
            (await TrailersOfEveryKind(channel.CreateCallInvoker())).Select(trailers => trailers.GetValue("server-interceptor")));
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task ClientInterceptors_SeeEveryKindOfCall_OutermostFirst(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        var invoker = channel.Intercept(new Tag("outer"), new Tag("middle")).Intercept(headers => [.. headers, new("test-tag", "outermost")]);
        foreach (var trailers in await TrailersOfEveryKind(invoker))
            Assert.Equal("outermost, outer, middle", trailers.GetValue("test-tag"));
    }

    [Theory]
    [MemberData(nameof(Transports))]
    public async Task CallCredentials_OfChannelAndCall_AreSent(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport, ChannelCredentials.Create(ChannelCredentials.Insecure, Token("channel")));
        var options = new CallOptions(credentials: CallCredentials.Compose(Token("first"), Token("second")));
        using var call = channel.CreateCallInvoker().AsyncUnaryCall(Echo.UnaryMethod, null, options, "x");
        await call;
        var seen = string.Join(", ", call.GetTrailers().GetAll("saw-authorization").Select(entry => entry.Value));
        Assert.All(["channel", "first", "second"], token => Assert.Contains(token, seen, StringComparison.Ordinal));

        static CallCredentials Token(string token) => CallCredentials.FromInterceptor((context, metadata) =>
        {
            metadata.Add("authorization", token);
            return Task.CompletedTask;
        });
    }

    /// <summary>Makes one call of each kind and returns the trailers, in the order of the service's methods.</summary>
    private static async Task<Metadata[]> TrailersOfEveryKind(CallInvoker invoker)
    {
        using var unary = invoker.AsyncUnaryCall(Echo.UnaryMethod, null, default, "x");
        await unary;

        using var collect = invoker.AsyncClientStreamingCall(Echo.CollectMethod, null, default);
        await collect.RequestStream.CompleteAsync();
        await collect;

        using var repeat = invoker.AsyncServerStreamingCall(Echo.RepeatMethod, null, default, "x");
        while (await repeat.ResponseStream.MoveNext()) Assert.Equal("x", repeat.ResponseStream.Current);

        using var chat = invoker.AsyncDuplexStreamingCall(Echo.ChatMethod, null, default);
        await chat.RequestStream.CompleteAsync();
        Assert.False(await chat.ResponseStream.MoveNext());

        return [unary.GetTrailers(), collect.GetTrailers(), repeat.GetTrailers(), chat.GetTrailers()];
    }

    /// <summary>Adds its name to the headers of every call.</summary>
    private sealed class Tag(string name) : Interceptor
    {
        public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(
            TRequest request, ClientInterceptorContext<TRequest, TResponse> context, AsyncUnaryCallContinuation<TRequest, TResponse> continuation) =>
            continuation(request, Tagged(context));

        public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(
            TRequest request,
            ClientInterceptorContext<TRequest, TResponse> context,
            AsyncServerStreamingCallContinuation<TRequest, TResponse> continuation) => continuation(request, Tagged(context));

        public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(
            ClientInterceptorContext<TRequest, TResponse> context, AsyncClientStreamingCallContinuation<TRequest, TResponse> continuation) =>
            continuation(Tagged(context));

        public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
            ClientInterceptorContext<TRequest, TResponse> context, AsyncDuplexStreamingCallContinuation<TRequest, TResponse> continuation) =>
            continuation(Tagged(context));

        private ClientInterceptorContext<TRequest, TResponse> Tagged<TRequest, TResponse>(ClientInterceptorContext<TRequest, TResponse> context)
            where TRequest : class
            where TResponse : class =>
            new(context.Method, context.Host, context.Options.WithHeaders([.. context.Options.Headers ?? [], new("test-tag", name)]));
    }

    /// <summary>Looks at each HTTP response before gRPC does.</summary>
    private sealed class Observer(HttpMessageHandler inner, Action<HttpResponseMessage> look) : DelegatingHandler(inner)
    {
        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            var response = await base.SendAsync(request, cancellationToken);
            look(response);
            return response;
        }
    }
}
