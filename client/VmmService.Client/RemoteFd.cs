using Grpc.Core;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// A file descriptor of a <see cref="RemoteProcess"/>. Disposing closes it, as leaving a scope would in a VMM; what the file keeps alive inside the kernel is
/// the kernel's business (a guest_memfd keeps its VM).
/// </summary>
public abstract partial class RemoteFd : IAsyncDisposable
{
    private bool _closed;

    private protected RemoteFd(RemoteProcess process, int fd)
    {
        Process = process;
        Fd = fd;
    }

    public RemoteProcess Process { get; }

    /// <summary>The number of the descriptor in its process.</summary>
    public int Fd { get; }

    private protected string HostId => Process.Host.Id;

    private protected uint Pid => Process.Pid;

    private protected VmmStubs Stubs => Process.Connection.Stubs;

    /// <summary>close(2).</summary>
    public KvmCall<CloseResponse, long> CloseAsync(CancellationToken cancellation = default)
    {
        _closed = true;
        return Process.CloseAsync(Fd, cancellation);
    }

    /// <summary>ioctl(2) by number, the argument being a number or a user address.</summary>
    public KvmCall<RawIoctlResponse, long> RawIoctlAsync(uint request, ulong arg, CancellationToken cancellation = default) =>
        Process.RawIoctlAsync(Fd, request, arg, cancellation);

    /// <summary>ioctl(2) by number; <paramref name="data"/> is what the argument points to. The result is the bytes after the call.</summary>
    public KvmCall<RawIoctlResponse, ReadOnlyMemory<byte>> RawIoctlAsync(
        uint request, ReadOnlyMemory<byte> data, CancellationToken cancellation = default) =>
        Process.RawIoctlAsync(Fd, request, data, cancellation);

    public async ValueTask DisposeAsync()
    {
        GC.SuppressFinalize(this);
        if (_closed || Process.IsDisposed)
            return;

        try
        {
            await CloseAsync().Reply;
        }
        catch (VmmServiceException exception) when (exception.StatusCode is StatusCode.NotFound or StatusCode.Unavailable)
        {
            // The process or the daemon went first, and the descriptor with it.
        }
    }

    private protected KvmCall<TReply, TResult> Call<TReply, TResult>(
        string operation,
        AsyncUnaryCall<TReply> call,
        Func<TReply, Outcome> outcome,
        Func<TReply, TResult> result,
        Func<TReply, SevStatus?>? firmwareStatus = null)
        where TReply : class =>
        new(operation, Process.Connection.Call(call), outcome, result, firmwareStatus);

    // A call whose result is the kernel's return value.
    private protected KvmCall<TReply, long> Call<TReply>(string operation, AsyncUnaryCall<TReply> call, Func<TReply, Outcome> outcome)
        where TReply : class =>
        Call(operation, call, outcome, reply => outcome(reply).Value);
}
