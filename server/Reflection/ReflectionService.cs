using Google.Protobuf;
using Grpc.Core;
using ReflectionV1 = Grpc.Reflection.V1;
using ReflectionV1Alpha = Grpc.Reflection.V1Alpha;

namespace VmmService.Server.Reflection;

/// <summary>grpc.reflection.v1: hands each request of the stream to the index and its answer back, in order.</summary>
public sealed class ReflectionService(ReflectionIndex index) : ReflectionV1.ServerReflection.ServerReflectionBase
{
    public override async Task ServerReflectionInfo(
        IAsyncStreamReader<ReflectionV1.ServerReflectionRequest> requestStream,
        IServerStreamWriter<ReflectionV1.ServerReflectionResponse> responseStream,
        ServerCallContext context)
    {
        await foreach (var request in requestStream.ReadAllAsync(context.CancellationToken))
        {
            await responseStream.WriteAsync(index.Answer(request), context.CancellationToken);
        }
    }
}

/// <summary>
/// grpc.reflection.v1alpha. Its messages are those of v1 byte for byte, so a request is read as the one and its answer written as the other.
/// </summary>
public sealed class ReflectionV1AlphaService(ReflectionIndex index) : ReflectionV1Alpha.ServerReflection.ServerReflectionBase
{
    public override async Task ServerReflectionInfo(
        IAsyncStreamReader<ReflectionV1Alpha.ServerReflectionRequest> requestStream,
        IServerStreamWriter<ReflectionV1Alpha.ServerReflectionResponse> responseStream,
        ServerCallContext context)
    {
        await foreach (var request in requestStream.ReadAllAsync(context.CancellationToken))
        {
            var answer = index.Answer(ReflectionV1.ServerReflectionRequest.Parser.ParseFrom(request.ToByteString()));
            var asV1Alpha = ReflectionV1Alpha.ServerReflectionResponse.Parser.ParseFrom(answer.ToByteString());
            await responseStream.WriteAsync(asV1Alpha, context.CancellationToken);
        }
    }
}
