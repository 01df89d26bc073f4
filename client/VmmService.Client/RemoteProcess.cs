using Google.Protobuf;
using Grpc.Core;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// A VMM process on a simulated host: user memory and a table of descriptors. The object holds the Attach stream, so the process dies with the client however
/// the client ends, and with it what only it kept alive.
/// </summary>
public sealed partial class RemoteProcess : IAsyncDisposable
{
    // Large enough that the cost of a message vanishes, small enough that several are in flight in one window.
    private const int ChunkBytes = 1 << 20;

    private readonly AsyncServerStreamingCall<AttachProcessResponse> _attached;

    private RemoteProcess(RemoteHost host, uint pid, AsyncServerStreamingCall<AttachProcessResponse> attached)
    {
        Host = host;
        Pid = pid;
        _attached = attached;
    }

    public RemoteHost Host { get; }

    public uint Pid { get; }

    public VmmConnection Connection => Host.Connection;

    internal bool IsDisposed { get; private set; }

    /// <summary>open("/dev/kvm").</summary>
    public KvmCall<OpenResponse, Kvm> OpenKvmAsync(CancellationToken cancellation = default) =>
        Open("/dev/kvm", reply => new Kvm(this, (int)reply.Outcome.Value), cancellation);

    /// <summary>open("/dev/sev").</summary>
    public KvmCall<OpenResponse, SevDevice> OpenSevAsync(CancellationToken cancellation = default) =>
        Open("/dev/sev", reply => new SevDevice(this, (int)reply.Outcome.Value), cancellation);

    /// <summary>Opens the TDX module, to issue SEAMCALLs by hand. ENODEV where the machine has none.</summary>
    public KvmCall<OpenTdxModuleResponse, TdxModule> OpenTdxModuleAsync(CancellationToken cancellation = default) =>
        new(
            "open the TDX module",
            Connection.Call(Connection.Stubs.TdxModule.OpenTdxModuleAsync(new OpenTdxModuleRequest { Host = Host.Id, Pid = Pid }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => new TdxModule(this, (int)reply.Outcome.Value));

    /// <summary>open(2) of any path; the result is the descriptor's number.</summary>
    public KvmCall<OpenResponse, int> OpenAsync(string path, CancellationToken cancellation = default) =>
        Open(path, reply => (int)reply.Outcome.Value, cancellation);

    /// <summary>close(2) of a descriptor by number.</summary>
    public KvmCall<CloseResponse, long> CloseAsync(int fd, CancellationToken cancellation = default) =>
        new(
            "close",
            Connection.Call(Connection.Stubs.Processes.CloseAsync(
                new CloseRequest { Host = Host.Id, Pid = Pid, Fd = fd }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value);

    /// <summary>mmap(2) of anonymous memory, readable and writable, where the kernel likes.</summary>
    /// <param name="length">Bytes.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<MmapResponse, ulong> MmapAsync(ulong length, CancellationToken cancellation = default) =>
        MmapAsync(
            new MmapRequest
            {
                Length = length,
                Prot = KernelNumbers.PROT_READ | KernelNumbers.PROT_WRITE,
                Flags = KernelNumbers.MAP_PRIVATE | KernelNumbers.MAP_ANONYMOUS,
                Fd = -1,
            },
            cancellation);

    /// <summary>mmap(2); host and pid of the request are filled in.</summary>
    public KvmCall<MmapResponse, ulong> MmapAsync(MmapRequest request, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        request.Host = Host.Id;
        request.Pid = Pid;
        return new(
            "mmap", Connection.Call(Connection.Stubs.Processes.MmapAsync(request, cancellationToken: cancellation)), reply => reply.Outcome, reply => reply.Addr);
    }

    /// <summary>munmap(2).</summary>
    public KvmCall<MunmapResponse, long> MunmapAsync(ulong addr, ulong length, CancellationToken cancellation = default) =>
        new(
            "munmap",
            Connection.Call(Connection.Stubs.Processes.MunmapAsync(
                new MunmapRequest { Host = Host.Id, Pid = Pid, Addr = addr, Length = length }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value);

    /// <summary>Loads bytes from the process's memory. EFAULT where nothing is mapped; the bytes before that are in the raw reply.</summary>
    /// <param name="addr">User address.</param>
    /// <param name="length">Bytes, at most the daemon's limit for one read.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<ReadMemoryResponse, ReadOnlyMemory<byte>> ReadAsync(ulong addr, ulong length, CancellationToken cancellation = default) =>
        new(
            "load",
            Connection.Call(Connection.Stubs.Processes.ReadMemoryAsync(
                new ReadMemoryRequest { Host = Host.Id, Pid = Pid, Addr = addr, Length = length }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Data.Memory);

    /// <summary>Stores bytes to the process's memory in one message; see <see cref="UploadAsync(ulong, ReadOnlyMemory{byte}, IProgress{long}?, CancellationToken)"/> for many.</summary>
    public KvmCall<WriteMemoryResponse, long> WriteAsync(ulong addr, ReadOnlyMemory<byte> bytes, CancellationToken cancellation = default) =>
        Write(addr, new Content { Inline = UnsafeByteOperations.UnsafeWrap(bytes) }, cancellation);

    /// <summary>Stores <paramref name="pattern"/>, repeated and cut to <paramref name="length"/> bytes.</summary>
    public KvmCall<WriteMemoryResponse, long> FillAsync(ulong addr, ReadOnlyMemory<byte> pattern, ulong length, CancellationToken cancellation = default) =>
        Write(addr, new Content { Pattern = new Pattern { Bytes = UnsafeByteOperations.UnsafeWrap(pattern), Length = length } }, cancellation);

    /// <summary>Stores a large content in chunks, without copying it.</summary>
    /// <param name="addr">User address of the first byte.</param>
    /// <param name="content">The bytes.</param>
    /// <param name="progress">Bytes sent so far.</param>
    /// <param name="cancellation">Stops; what was sent stays written.</param>
    /// <exception cref="KvmException">EFAULT: not all of the target is mapped and writable.</exception>
    public Task<long> UploadAsync(ulong addr, ReadOnlyMemory<byte> content, IProgress<long>? progress = null, CancellationToken cancellation = default) =>
        UploadAsync(
            addr,
            async send =>
            {
                for (int sent = 0; sent < content.Length;)
                {
                    int size = Math.Min(ChunkBytes, content.Length - sent);
                    await send(content.Slice(sent, size));
                    sent += size;
                    progress?.Report(sent);
                }
            },
            cancellation);

    /// <inheritdoc cref="UploadAsync(ulong, ReadOnlyMemory{byte}, IProgress{long}?, CancellationToken)"/>
    public Task<long> UploadAsync(ulong addr, Stream content, IProgress<long>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(content);
        return UploadAsync(
            addr,
            async send =>
            {
                byte[] chunk = new byte[ChunkBytes];
                long sent = 0;
                for (int size; (size = await content.ReadAtLeastAsync(chunk, chunk.Length, throwOnEndOfStream: false, cancellation)) > 0;)
                {
                    await send(chunk.AsMemory(0, size));
                    progress?.Report(sent += size);
                }
            },
            cancellation);
    }

    /// <summary>ioctl(2) by number, the argument being a number or a user address. The result is the return value.</summary>
    public KvmCall<RawIoctlResponse, long> RawIoctlAsync(int fd, uint request, ulong arg, CancellationToken cancellation = default) =>
        RawIoctl(new RawIoctlRequest { Fd = fd, Request = request, Arg = arg }, reply => reply.Outcome.Value, cancellation);

    /// <summary>ioctl(2) by number; <paramref name="data"/> is what the argument points to. The result is the bytes after the call.</summary>
    public KvmCall<RawIoctlResponse, ReadOnlyMemory<byte>> RawIoctlAsync(
        int fd, uint request, ReadOnlyMemory<byte> data, CancellationToken cancellation = default) =>
        RawIoctl(
            new RawIoctlRequest { Fd = fd, Request = request, Data = UnsafeByteOperations.UnsafeWrap(data) }, reply => reply.Data.Memory, cancellation);

    /// <summary>A signal arrives when the process's calls have looked for one so many times in vain; the call that notices it answers EINTR, or what it did so far.</summary>
    public Task RaiseSignalAsync(int afterChecks = 0, CancellationToken cancellation = default) =>
        Connection.Call(Connection.Stubs.Processes.RaiseSignalAsync(
            new RaiseSignalRequest { Host = Host.Id, Pid = Pid, AfterChecks = (uint)afterChecks }, cancellationToken: cancellation));

    /// <summary>Pins pages for long, as a device does. The result is the pin's id, for <see cref="UnpinPagesAsync"/>.</summary>
    public KvmCall<PinPagesResponse, ulong> PinPagesAsync(ulong addr, ulong length, bool write, CancellationToken cancellation = default) =>
        new(
            "pin pages",
            Connection.Call(Connection.Stubs.Processes.PinPagesAsync(
                new PinPagesRequest { Host = Host.Id, Pid = Pid, Addr = addr, Length = length, Write = write }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => (ulong)reply.Outcome.Value);

    public KvmCall<UnpinPagesResponse, long> UnpinPagesAsync(ulong pin, CancellationToken cancellation = default) =>
        new(
            "unpin pages",
            Connection.Call(Connection.Stubs.Processes.UnpinPagesAsync(
                new UnpinPagesRequest { Host = Host.Id, Pid = Pid, Pin = pin }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value);

    /// <summary>The process exits and its descriptors close. A process or a daemon that is gone already is no error here.</summary>
    public async ValueTask DisposeAsync()
    {
        if (IsDisposed)
            return;

        IsDisposed = true;
        try
        {
            // Asking gives an answer when the process is gone; ending the stream alone would not.
            await Connection.Call(Connection.Stubs.Processes.ExitProcessAsync(new ExitProcessRequest { Host = Host.Id, Pid = Pid }));
        }
        catch (VmmServiceException exception) when (exception.StatusCode is StatusCode.NotFound or StatusCode.Unavailable)
        {
        }
        finally
        {
            _attached.Dispose();
        }
    }

    internal static async Task<RemoteProcess> AttachAsync(RemoteHost host, uint pid, CancellationToken cancellation)
    {
        // The token must not end up in the call: it would kill the process long after this method returned.
        AsyncServerStreamingCall<AttachProcessResponse> attached =
            host.Connection.Stubs.Processes.AttachProcess(new AttachProcessRequest { Host = host.Id, Pid = pid }, cancellationToken: CancellationToken.None);
        try
        {
            if (!await attached.ResponseStream.MoveNext(cancellation))
                throw new VmmServiceException(new RpcException(new Status(StatusCode.Aborted, $"process {pid} exited while this client attached to it")), host.Connection.Address);

            return new RemoteProcess(host, pid, attached);
        }
        catch (RpcException exception)
        {
            attached.Dispose();
            throw new VmmServiceException(exception, host.Connection.Address);
        }
        catch
        {
            attached.Dispose();
            throw;
        }
    }

    private KvmCall<OpenResponse, T> Open<T>(string path, Func<OpenResponse, T> result, CancellationToken cancellation) =>
        new(
            $"open {path}",
            Connection.Call(Connection.Stubs.Processes.OpenAsync(
                new OpenRequest { Host = Host.Id, Pid = Pid, Path = path }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            result);

    private KvmCall<WriteMemoryResponse, long> Write(ulong addr, Content content, CancellationToken cancellation) =>
        new(
            "store",
            Connection.Call(Connection.Stubs.Processes.WriteMemoryAsync(
                new WriteMemoryRequest { Host = Host.Id, Pid = Pid, Addr = addr, Content = content }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => reply.Outcome.Value);

    private KvmCall<RawIoctlResponse, T> RawIoctl<T>(RawIoctlRequest request, Func<RawIoctlResponse, T> result, CancellationToken cancellation)
    {
        request.Host = Host.Id;
        request.Pid = Pid;
        return new(
            $"ioctl 0x{request.Request:x8}",
            Connection.Call(Connection.Stubs.Processes.RawIoctlAsync(request, cancellationToken: cancellation)),
            reply => reply.Outcome,
            result);
    }

    private async Task<long> UploadAsync(ulong addr, Func<Func<ReadOnlyMemory<byte>, Task>, Task> sendAll, CancellationToken cancellation)
    {
        using AsyncClientStreamingCall<UploadMemoryRequest, UploadMemoryResponse> call =
            Connection.Stubs.Processes.UploadMemory(cancellationToken: cancellation);
        try
        {
            try
            {
                await call.RequestStream.WriteAsync(
                    new UploadMemoryRequest { Header = new UploadHeader { Host = Host.Id, Pid = Pid, Addr = addr } }, cancellation);
                await sendAll(bytes => call.RequestStream.WriteAsync(
                    new UploadMemoryRequest { Chunk = UnsafeByteOperations.UnsafeWrap(bytes) }, cancellation));
                await call.RequestStream.CompleteAsync();
            }
            catch (Exception exception) when (exception is RpcException or InvalidOperationException && !cancellation.IsCancellationRequested)
            {
                // The daemon may answer before it has read everything (EFAULT at the first hole); its answer below says why sending failed.
            }

            UploadMemoryResponse reply = await call.ResponseAsync;
            return reply.Outcome.Errno == 0 ? reply.Outcome.Value : throw new KvmException("upload", reply.Outcome);
        }
        catch (RpcException exception)
        {
            throw new VmmServiceException(exception, Connection.Address);
        }
    }
}
