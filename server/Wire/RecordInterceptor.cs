using Google.Protobuf;
using Grpc.Core;
using Grpc.Core.Interceptors;
using VmmService.Server.Sessions;
using VmmService.V1;

namespace VmmService.Server.Wire;

/// <summary>Writes the calls of clients into the recording of their host. A call that the daemon refused changed nothing, so it is not written.</summary>
internal sealed class RecordInterceptor(HostRegistry hosts) : Interceptor
{
    // They look, and change nothing; or they are about other hosts than clients have.
    private static readonly string[] Unrecorded =
        [InspectService.Descriptor.FullName, RecordService.Descriptor.FullName, ExploreService.Descriptor.FullName, CapabilitiesService.Descriptor.FullName];

    public override async Task<TResponse> UnaryServerHandler<TRequest, TResponse>(
        TRequest request, ServerCallContext context, UnaryServerMethod<TRequest, TResponse> continuation)
    {
        TResponse response = await continuation(request, context);
        if (request is IMessage question && response is IMessage answer && !Unrecorded.Any(service => context.Method.StartsWith($"/{service}/", StringComparison.Ordinal)))
        {
            // Who creates a host is told its id; everybody else says it.
            Record(answer is CreateHostResponse created ? created.Host.Host_ : CallRecording.HostOf(question), context.Method, [question.ToByteString()], answer);
        }
        return response;
    }

    public override async Task<TResponse> ClientStreamingServerHandler<TRequest, TResponse>(
        IAsyncStreamReader<TRequest> requestStream, ServerCallContext context, ClientStreamingServerMethod<TRequest, TResponse> continuation)
    {
        var kept = new KeptStream<TRequest>(requestStream, hosts.Options.MaxRecordedBytes);
        TResponse response = await continuation(kept, context);
        if (kept.Host.Length > 0 && hosts.TryGet(kept.Host) is { } host)
        {
            if (kept.Messages is { } messages && response is IMessage answer)
            {
                Record(kept.Host, context.Method, messages, answer);
            }
            else
            {
                host.Recording.Miss();
            }
        }
        return response;
    }

    // Scripts. One that booted a host of its own leaves nothing behind to record; one that broke off in the middle has changed its host, and cannot be told by its answers.
    public override async Task DuplexStreamingServerHandler<TRequest, TResponse>(
        IAsyncStreamReader<TRequest> requestStream, IServerStreamWriter<TResponse> responseStream, ServerCallContext context, DuplexStreamingServerMethod<TRequest, TResponse> continuation)
    {
        var kept = new KeptStream<TRequest>(requestStream, hosts.Options.MaxRecordedBytes);
        var answers = new KeptAnswers<TResponse>(responseStream, hosts.Options.MaxRecordedBytes);
        bool ended = false;
        try
        {
            await continuation(kept, answers, context);
            ended = true;
        }
        finally
        {
            if (kept.Host.Length > 0 && hosts.TryGet(kept.Host) is { } host)
            {
                if (ended && kept.Messages is { } messages && answers.Messages is [var first, .. var further])
                {
                    var call = new RecordedCall { Method = context.Method.TrimStart('/'), Response = first };
                    call.Requests.AddRange(messages);
                    call.FurtherResponses.AddRange(further);
                    host.Recording.Add(call);
                }
                else
                {
                    host.Recording.Miss();
                }
            }
        }
    }

    private void Record(string host, string method, IEnumerable<ByteString> requests, IMessage response)
    {
        if (host.Length > 0 && hosts.TryGet(host) is { } served)
        {
            var call = new RecordedCall { Method = method.TrimStart('/'), Response = response.ToByteString() };
            call.Requests.AddRange(requests);
            served.Recording.Add(call);
        }
    }

    /// <summary>What a stream answers, kept while it is written.</summary>
    private sealed class KeptAnswers<T>(IServerStreamWriter<T> stream, long maxBytes) : IServerStreamWriter<T>
    {
        private long _bytes;

        public WriteOptions? WriteOptions
        {
            get => stream.WriteOptions;
            set => stream.WriteOptions = value;
        }

        public List<ByteString>? Messages { get; private set; } = [];

        public Task WriteAsync(T message) => WriteAsync(message, CancellationToken.None);

        public Task WriteAsync(T message, CancellationToken cancellationToken)
        {
            if (message is IMessage answer)
            {
                _bytes += answer.CalculateSize();
                Messages = _bytes <= maxBytes ? Messages : null;
                Messages?.Add(answer.ToByteString());
            }
            return stream.WriteAsync(message, cancellationToken);
        }
    }

    /// <summary>What a client streams, kept while it is read; given up where it is longer than a recording may be.</summary>
    private sealed class KeptStream<T>(IAsyncStreamReader<T> stream, long maxBytes) : IAsyncStreamReader<T>
    {
        private long _bytes;

        public T Current => stream.Current;

        public string Host { get; private set; } = "";

        public List<ByteString>? Messages { get; private set; } = [];

        public async Task<bool> MoveNext(CancellationToken cancellationToken)
        {
            bool more = await stream.MoveNext(cancellationToken);
            if (more && stream.Current is IMessage message)
            {
                Host = Host.Length > 0 ? Host : CallRecording.HostOf(message);
                _bytes += message.CalculateSize();
                Messages = _bytes <= maxBytes ? Messages : null;
                Messages?.Add(message.ToByteString());
            }
            return more;
        }
    }
}
