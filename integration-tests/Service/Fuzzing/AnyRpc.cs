using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;

namespace VmmService.IntegrationTests.Service.Fuzzing;

/// <summary>Calls any RPC by its descriptor. Requests are made one by one; answers are counted, not read.</summary>
internal sealed class AnyRpc(CallInvoker invoker)
{
    // Nothing that is asked here takes long; a call that is not over by then hangs.
    private static readonly TimeSpan s_hang = TimeSpan.FromSeconds(60);

    // A stream may have nothing to say: then it is dropped without a word.
    private static readonly TimeSpan s_patience = TimeSpan.FromMilliseconds(200);

    private static readonly Marshaller<byte[]> s_bytes = Marshallers.Create(bytes => bytes, bytes => bytes);

    /// <summary>Every RPC of every service in the protos' assembly.</summary>
    public static IReadOnlyList<MethodDescriptor> All { get; } =
    [
        .. typeof(V1.HostService).Assembly.GetTypes()
            .Where(type => type.IsAbstract && type.IsSealed && type.Name.EndsWith("Reflection", StringComparison.Ordinal))
            .Select(type => type.GetProperty("Descriptor")?.GetValue(null)).OfType<FileDescriptor>()
            .SelectMany(file => file.Services).SelectMany(service => service.Methods).OrderBy(method => method.FullName, StringComparer.Ordinal),
    ];

    /// <summary>Makes the call; a stream gets up to a few messages and is then ended or dropped.</summary>
    public async Task<Status> Call(MethodDescriptor rpc, Dice dice, Func<IMessage> request)
    {
        MethodType type = (rpc.IsClientStreaming, rpc.IsServerStreaming) switch
        {
            (false, false) => MethodType.Unary,
            (true, false) => MethodType.ClientStreaming,
            (false, true) => MethodType.ServerStreaming,
            (true, true) => MethodType.DuplexStreaming,
        };
        var method = new Method<byte[], byte[]>(type, rpc.Service.FullName, rpc.Name, s_bytes, s_bytes);
        using var dropped = new CancellationTokenSource();
        var options = new CallOptions(deadline: DateTime.UtcNow + s_hang, cancellationToken: dropped.Token);
        try
        {
            switch (type)
            {
                case MethodType.Unary:
                    using (AsyncUnaryCall<byte[]> call = invoker.AsyncUnaryCall(method, null, options, request().ToByteArray()))
                    {
                        await call.ResponseAsync;
                    }
                    break;
                case MethodType.ServerStreaming:
                    using (AsyncServerStreamingCall<byte[]> call = invoker.AsyncServerStreamingCall(method, null, options, request().ToByteArray()))
                    {
                        await ReadSome(call.ResponseStream);
                    }
                    break;
                case MethodType.ClientStreaming:
                    using (AsyncClientStreamingCall<byte[], byte[]> call = invoker.AsyncClientStreamingCall(method, null, options))
                    {
                        await WriteSome(call.RequestStream, dice, request);
                        if (dice.OneIn(4))
                        {
                            await dropped.CancelAsync();
                        }
                        else
                        {
                            await call.RequestStream.CompleteAsync();
                        }
                        await call.ResponseAsync;
                    }
                    break;
                default:
                    using (AsyncDuplexStreamingCall<byte[], byte[]> call = invoker.AsyncDuplexStreamingCall(method, null, options))
                    {
                        await WriteSome(call.RequestStream, dice, request);
                        if (!dice.OneIn(4))
                        {
                            await call.RequestStream.CompleteAsync();
                        }
                        await ReadSome(call.ResponseStream);
                    }
                    break;
            }
            return Status.DefaultSuccess;
        }
        catch (RpcException failed)
        {
            return failed.Status;
        }
        catch (Exception ended) when (ended is InvalidOperationException or OperationCanceledException)
        {
            // We dropped the call, or the server ended it while messages were still being written; what it said is not to be had any more.
            return Status.DefaultCancelled;
        }
    }

    private static async Task ReadSome(IAsyncStreamReader<byte[]> stream)
    {
        for (int i = 0; i < 3; i++)
        {
            Task<bool> next = stream.MoveNext(CancellationToken.None);
            if (await Task.WhenAny(next, Task.Delay(s_patience)) != next)
            {
                _ = next.ContinueWith(failed => failed.Exception, TaskContinuationOptions.OnlyOnFaulted);
                return;
            }
            if (!await next)
            {
                return;
            }
        }
    }

    private static async Task WriteSome(IClientStreamWriter<byte[]> stream, Dice dice, Func<IMessage> request)
    {
        for (int count = dice.Next(5); count > 0; count--)
        {
            try
            {
                await stream.WriteAsync(request().ToByteArray());
            }
            catch (RpcException)
            {
                // The server has heard enough; its status comes with the answer.
                return;
            }
        }
    }
}
