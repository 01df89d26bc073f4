using System.Buffers;
using Grpc.Core;
using Xunit;

namespace VmmService.IntegrationTests.Contracts;

/// <summary>
/// The little logic that the contract types have of their own. It must not differ from that of the official package, which these tests hold for too.
/// </summary>
public sealed class ContractTypesTests
{
    [Theory]
    [InlineData("Mixed-Case", "mixed-case")]
    [InlineData("a.b_c-0", "a.b_c-0")]
    public void MetadataKey_IsLowerCase(string key, string expected) => Assert.Equal(expected, new Metadata.Entry(key, "v").Key);

    [Theory]
    [InlineData("a b")]
    [InlineData("a:b")]
    [InlineData("ä")]
    [InlineData("\u212A")]
    [InlineData("key-bin")]
    public void MetadataKey_ThatTextMayNotHave_IsRefused(string key) => Assert.Throws<ArgumentException>(() => new Metadata.Entry(key, "v"));

    [Fact]
    public void MetadataKey_ThatBytesMayNotHave_IsRefused() => Assert.Throws<ArgumentException>(() => new Metadata.Entry("key", [1]));

    [Fact]
    public void MetadataEntry_DoesNotShareItsBytes()
    {
        byte[] bytes = [1, 2];
        var entry = new Metadata.Entry("key-bin", bytes);
        bytes[0] = 9;
        entry.ValueBytes[1] = 9;
        Assert.Equal([1, 2], entry.ValueBytes);
        Assert.Throws<InvalidOperationException>(() => entry.Value);
    }

    [Fact]
    public void MetadataGet_IsTheLastOfItsKey()
    {
        var metadata = new Metadata { { "k", "1" }, { "other", "2" }, { "k", "3" } };
        Assert.Equal("3", metadata.GetValue("K"));
        Assert.Equal(["1", "3"], metadata.GetAll("K").Select(entry => entry.Value));
        Assert.Null(metadata.Get("none"));
    }

    [Fact]
    public void EmptyMetadata_RefusesChanges()
    {
        Assert.True(Metadata.Empty.IsReadOnly);
        Assert.Throws<InvalidOperationException>(() => Metadata.Empty.Add("k", "v"));
    }

    [Fact]
    public void CallOptions_AreCopiedByWith()
    {
        var before = new CallOptions(deadline: DateTime.MaxValue);
        var after = before.WithWaitForReady().WithHeaders([]);
        Assert.False(before.IsWaitForReady);
        Assert.Null(before.Headers);
        Assert.True(after.IsWaitForReady);
        Assert.Equal(DateTime.MaxValue, after.Deadline);
    }

    [Fact]
    public void ContextualMarshaller_WorksOnArraysToo()
    {
        var marshaller = Marshallers.Create<byte[]>(
            (message, context) =>
            {
                context.SetPayloadLength(message.Length);
                context.GetBufferWriter().Write(message);
                context.Complete();
            },
            context => context.PayloadAsReadOnlySequence().ToArray());
        Assert.Equal([1, 2, 3], marshaller.Deserializer(marshaller.Serializer([1, 2, 3])));
    }

    [Fact]
    public void RpcException_CarriesStatusAndTrailers()
    {
        var cause = new IOException("gone");
        var error = new RpcException(new Status(StatusCode.Unavailable, "away", cause), new Metadata { { "k", "v" } });
        Assert.Equal(StatusCode.Unavailable, error.StatusCode);
        Assert.Same(cause, error.InnerException);
        Assert.Equal("v", error.Trailers.GetValue("k"));
        Assert.Contains("away", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ServiceDefinition_RefusesAMethodTwice()
    {
        UnaryServerMethod<string, string> handler = (request, _) => Task.FromResult(request);
        var builder = ServerServiceDefinition.CreateBuilder().AddMethod(Echo.DefinedMethod, handler);
        Assert.Throws<ArgumentException>(() => builder.AddMethod(Echo.DefinedMethod, handler));
    }

    [Fact]
    public void WithHost_GivesTheHostToEveryCall()
    {
        var invoker = new HostRecorder();
        new Client(invoker).WithHost("elsewhere").Call();
        new Client(invoker).Call();
        Assert.Equal(["elsewhere", null], invoker.Hosts);
    }

    [Fact]
    public void ClientWithoutAChannel_CannotCall() => Assert.Throws<NotImplementedException>(() => new Client().Call());

    private sealed class Client : ClientBase<Client>
    {
        internal Client()
        {
        }

        internal Client(CallInvoker invoker) : base(invoker)
        {
        }

        private Client(ClientBaseConfiguration configuration) : base(configuration)
        {
        }

        internal void Call() => CallInvoker.BlockingUnaryCall(Echo.UnaryMethod, null, default, "x");

        protected override Client NewInstance(ClientBaseConfiguration configuration) => new(configuration);
    }

    /// <summary>Answers nothing; remembers the hosts it was called with.</summary>
    private sealed class HostRecorder : CallInvoker
    {
        internal List<string?> Hosts { get; } = [];

        public override TResponse BlockingUnaryCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
        {
            Hosts.Add(host);
            return null!;
        }

        public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) => throw new NotSupportedException();

        public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) => throw new NotSupportedException();

        public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options) => throw new NotSupportedException();

        public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options) => throw new NotSupportedException();
    }
}
