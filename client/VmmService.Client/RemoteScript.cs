using Google.Protobuf;
using Grpc.Core;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// A script that a daemon executes: what is sent is executed in order, and every step is answered. Its processes live as long as this object; so does its host, if it was booted
/// for the script.
/// </summary>
public sealed class RemoteScript : IAsyncDisposable
{
    private const int ChunkCharacters = 1 << 18;
    private const int ChunkBytes = 1 << 20;

    private readonly VmmConnection _connection;
    private readonly AsyncDuplexStreamingCall<RunScriptRequest, RunScriptResponse> _call;
    private bool _completed;

    private RemoteScript(VmmConnection connection, AsyncDuplexStreamingCall<RunScriptRequest, RunScriptResponse> call)
    {
        _connection = connection;
        _call = call;
    }

    internal static async Task<RemoteScript> StartAsync(VmmConnection connection, ScriptHeader header, CancellationToken cancellation)
    {
        var script = new RemoteScript(connection, connection.Stubs.Scripts.RunScript(cancellationToken: cancellation));
        await script.SendAsync(new RunScriptRequest { Header = header });
        return script;
    }

    /// <summary>Sends a file that later steps use as content.</summary>
    /// <param name="name">The name by which they ask for it.</param>
    /// <param name="data">The whole of it.</param>
    public async Task SendFileAsync(string name, ReadOnlyMemory<byte> data)
    {
        // An empty file is a file too.
        for (int at = 0; at == 0 || at < data.Length; at += ChunkBytes)
        {
            ByteString part = UnsafeByteOperations.UnsafeWrap(data[at..Math.Min(data.Length, at + ChunkBytes)]);
            await SendAsync(new RunScriptRequest { File = new ScriptFileChunk { Name = name, Data = part } });
        }
    }

    /// <summary>Sends a whole document, which is executed when all of it is there.</summary>
    public async Task SendDocumentAsync(string yaml)
    {
        ArgumentNullException.ThrowIfNull(yaml);
        for (int at = 0; at == 0 || at < yaml.Length; at += ChunkCharacters)
        {
            string part = yaml[at..Math.Min(yaml.Length, at + ChunkCharacters)];
            await SendAsync(new RunScriptRequest { Document = new ScriptDocumentChunk { Yaml = part, Last = at + ChunkCharacters >= yaml.Length } });
        }
    }

    /// <summary>Sends one step, or a list of steps.</summary>
    /// <param name="yaml">The step.</param>
    /// <param name="firstLine">Line at which it begins in whatever it was taken from.</param>
    public Task SendStepAsync(string yaml, uint firstLine = 1) => SendAsync(new RunScriptRequest { Step = new ScriptText { Yaml = yaml, FirstLine = firstLine } });

    /// <summary>Nothing more comes; the script ends when it has executed what it has.</summary>
    public async Task CompleteAsync()
    {
        if (!_completed)
        {
            _completed = true;
            await _call.RequestStream.CompleteAsync();
        }
    }

    /// <summary>The answers, until the script ends.</summary>
    /// <exception cref="VmmServiceException">InvalidArgument, with a <see cref="ScriptError"/> among the details, where the script is wrong.</exception>
    public IAsyncEnumerable<RunScriptResponse> RepliesAsync(CancellationToken cancellation = default) => _connection.Read(_call.ResponseStream, cancellation);

    /// <summary>Ends the script; its processes exit.</summary>
    public ValueTask DisposeAsync()
    {
        _call.Dispose();
        return ValueTask.CompletedTask;
    }

    private async Task SendAsync(RunScriptRequest request)
    {
        try
        {
            await _call.RequestStream.WriteAsync(request);
        }
        catch (Exception exception) when (exception is RpcException or InvalidOperationException)
        {
            // The script ended before it read everything; its answers say why.
        }
    }
}
