using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>A recorded call, with its messages.</summary>
/// <param name="Method">Which RPC.</param>
/// <param name="Requests">One, or those of a stream.</param>
/// <param name="Responses">What it was answered: one, or those of a stream.</param>
public sealed record ReplayableCall(MethodDescriptor Method, IReadOnlyList<IMessage> Requests, IReadOnlyList<IMessage> Responses);

/// <summary>Where a replay came to another answer than the recording.</summary>
/// <param name="Number">Number of the call in the recording, from 1.</param>
/// <param name="Method">The RPC.</param>
/// <param name="Field">The field of the answer, dotted.</param>
/// <param name="Recorded">What it was.</param>
/// <param name="Now">What it is.</param>
public sealed record ReplayDifference(int Number, string Method, string Field, string Recorded, string Now);

/// <summary>The calls that were made on a host, to be made again: with the same answers on a host of the same kind, or up to the first that differs on another.</summary>
public sealed class Recording(IReadOnlyList<ReplayableCall> calls)
{
    // Where they differ, what follows is only a consequence; people want to read these first.
    private static readonly string[] First = ["outcome.errno_name", "outcome.value", "step.outcome.errno_name", "step.outcome.value"];

    // The kernel that a script is told it runs on is what the replay asked for.
    private const string AskedFor = "started.profile";

    private static readonly Marshaller<byte[]> Bytes = Marshallers.Create(bytes => bytes, bytes => bytes);

    private static readonly SortedDictionary<string, MethodDescriptor> Methods = new(
        typeof(HostService).Assembly.GetTypes()
            .Where(type => type.IsAbstract && type.IsSealed && type.Name.EndsWith("Reflection", StringComparison.Ordinal))
            .Select(type => type.GetProperty("Descriptor")?.GetValue(null)).OfType<FileDescriptor>()
            .SelectMany(file => file.Services).SelectMany(service => service.Methods)
            .ToDictionary(method => $"{method.Service.FullName}/{method.Name}"), StringComparer.Ordinal);

    public IReadOnlyList<ReplayableCall> Calls { get; } = calls;

    /// <summary>The RPC of a name as <c>vmmservice.v1.VmService/CreateVcpu</c>, or null.</summary>
    public static MethodDescriptor? FindMethod(string name) => Methods.GetValueOrDefault(name);

    /// <exception cref="ArgumentException">The method is not known here.</exception>
    public static ReplayableCall Read(RecordedCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        MethodDescriptor method = FindMethod(call.Method) ?? throw new ArgumentException($"there is no RPC {call.Method}", nameof(call));
        return new ReplayableCall(method, [.. call.Requests.Select(method.InputType.Parser.ParseFrom)], [.. call.FurtherResponses.Prepend(call.Response).Select(method.OutputType.Parser.ParseFrom)]);
    }

    /// <summary>Makes the calls again on a host that is created for it and deleted at the end.</summary>
    /// <param name="connection">Where.</param>
    /// <param name="profile">Kernel generation; null for the recorded one.</param>
    /// <param name="cancellation">Gives up.</param>
    /// <returns>The first difference, or null where everything was answered as recorded.</returns>
    /// <exception cref="ArgumentException">The recording does not begin with the creation of a host.</exception>
    /// <exception cref="VmmServiceException">The daemon could not do what was asked.</exception>
    public async Task<ReplayDifference?> ReplayAsync(VmmConnection connection, string? profile = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(connection);
        if (Calls is not [{ Requests: [CreateHostRequest create] }, ..])
            throw new ArgumentException("a recording begins with the creation of its host");

        CreateHostRequest boot = create.Clone();
        boot.Profile = profile ?? boot.Profile;
        // The replay deletes it; what was to become of it when it was empty is no part of the answers.
        boot.DeleteWhenEmpty = false;
        CreateHostResponse created = await connection.Call(connection.Stubs.Hosts.CreateHostAsync(boot, cancellationToken: cancellation));
        string host = created.Host.Host_;
        try
        {
            for (int i = 1; i < Calls.Count; i++)
            {
                ReplayableCall call = Calls[i];
                if (call.Requests is [DeleteHostRequest])
                    break;

                List<IMessage> answers = await CallAsync(connection, call, host, cancellation);
                if (FirstDifference(call.Responses, answers, host) is var (field, recorded, now))
                    return new ReplayDifference(i + 1, $"{call.Method.Service.Name}.{call.Method.Name}", field, recorded, now);
            }
            return null;
        }
        finally
        {
            await connection.Call(connection.Stubs.Hosts.DeleteHostAsync(new DeleteHostRequest { Host = host }, cancellationToken: CancellationToken.None));
        }
    }

    private static async Task<List<IMessage>> CallAsync(VmmConnection connection, ReplayableCall call, string host, CancellationToken cancellation)
    {
        byte[][] requests = [.. call.Requests.Select(request => OnHost(request, host).ToByteArray())];
        var method = new Method<byte[], byte[]>(
            (call.Method.IsClientStreaming, call.Method.IsServerStreaming) switch { (true, true) => MethodType.DuplexStreaming, (true, false) => MethodType.ClientStreaming, _ => MethodType.Unary }, call.Method.Service.FullName, call.Method.Name, Bytes, Bytes);
        var options = new CallOptions(cancellationToken: cancellation);
        try
        {
            if (!call.Method.IsClientStreaming)
                return [call.Method.OutputType.Parser.ParseFrom(await connection.Stubs.Invoker.AsyncUnaryCall(method, null, options, requests[0]).ResponseAsync)];

            if (call.Method.IsServerStreaming)
                return await StreamAsync(connection, call, method, options, requests);

            using AsyncClientStreamingCall<byte[], byte[]> stream = connection.Stubs.Invoker.AsyncClientStreamingCall(method, null, options);
            foreach (byte[] request in requests)
                await stream.RequestStream.WriteAsync(request, cancellation);

            await stream.RequestStream.CompleteAsync();
            return [call.Method.OutputType.Parser.ParseFrom(await stream.ResponseAsync)];
        }
        catch (RpcException failure)
        {
            throw new VmmServiceException(failure, connection.Address);
        }
    }

    // Answers are read while requests are written: a script's steps are answered one by one.
    private static async Task<List<IMessage>> StreamAsync(
        VmmConnection connection, ReplayableCall call, Method<byte[], byte[]> method, CallOptions options, byte[][] requests)
    {
        using AsyncDuplexStreamingCall<byte[], byte[]> stream = connection.Stubs.Invoker.AsyncDuplexStreamingCall(method, null, options);
        Task<List<IMessage>> reading = ReadAsync();
        foreach (byte[] request in requests)
            await stream.RequestStream.WriteAsync(request, options.CancellationToken);

        await stream.RequestStream.CompleteAsync();
        return await reading;

        async Task<List<IMessage>> ReadAsync()
        {
            List<IMessage> answers = [];
            while (await stream.ResponseStream.MoveNext(options.CancellationToken))
                answers.Add(call.Method.OutputType.Parser.ParseFrom(stream.ResponseStream.Current));

            return answers;
        }
    }

    // The request with every field `host` in it set to the new one.
    private static IMessage OnHost(IMessage request, string host)
    {
        IMessage copy = request.Descriptor.Parser.ParseFrom(request.ToByteString());
        SetHost(copy, host);
        return copy;
    }

    private static void SetHost(IMessage message, string host)
    {
        foreach (FieldDescriptor field in message.Descriptor.Fields.InDeclarationOrder())
        {
            if (field is { Name: "host", FieldType: FieldType.String, IsRepeated: false } && (string)field.Accessor.GetValue(message) != "")
                field.Accessor.SetValue(message, host);
            else if (field is { FieldType: FieldType.Message, IsRepeated: false, IsMap: false } && field.Accessor.GetValue(message) is IMessage inner)
                SetHost(inner, host);
        }
    }

    private static (string Field, string Recorded, string Now)? FirstDifference(IReadOnlyList<IMessage> recorded, List<IMessage> now, string host)
    {
        for (int i = 0; i < Math.Min(recorded.Count, now.Count); i++)
        {
            if (FirstDifference(recorded[i], now[i], host) is { } difference)
                return recorded.Count == 1 ? difference : difference with { Field = $"answer {i + 1}, {difference.Field}" };
        }
        return recorded.Count == now.Count ? null : ("answers", $"{recorded.Count}", $"{now.Count}");
    }

    private static (string Field, string Recorded, string Now)? FirstDifference(IMessage recorded, IMessage now, string host)
    {
        SetHost(recorded, host);
        var differences = new List<(string Field, string Recorded, string Now)>();
        Compare("", recorded, now, differences);
        return differences.Count == 0 ? null : differences.OrderBy(each => Array.IndexOf(First, each.Field) is >= 0 and var rank ? rank : First.Length).First();
    }

    private static void Compare(string path, IMessage recorded, IMessage now, List<(string, string, string)> differences)
    {
        foreach (FieldDescriptor field in recorded.Descriptor.Fields.InDeclarationOrder())
        {
            object? was = field.Accessor.GetValue(recorded), isNow = field.Accessor.GetValue(now);
            string name = path.Length == 0 ? field.Name : $"{path}.{field.Name}";
            if (field is { FieldType: FieldType.Message, IsRepeated: false, IsMap: false } && was is IMessage left && isNow is IMessage right)
                Compare(name, left, right, differences);
            else if (name != AskedFor && !Equals(was, isNow))
                differences.Add((name, Show(was), Show(isNow)));
        }
    }

    private static string Show(object? value) => value switch
    {
        null => "nothing",
        "" => "nothing",
        ByteString bytes => bytes.Length <= 32 ? Convert.ToHexStringLower(bytes.Span) : $"{Convert.ToHexStringLower(bytes.Span[..32])}... ({bytes.Length} bytes)",
        _ => value.ToString() ?? "",
    };
}
