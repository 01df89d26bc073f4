using System.Runtime.CompilerServices;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// Looks at a host from outside: its VMs by pid and descriptor, its calls as they come and afterwards. Nothing here is a call of the simulation, and nothing changes by it.
/// </summary>
public sealed class HostInspector
{
    private readonly VmmConnection _connection;
    private readonly string _host;

    internal HostInspector(VmmConnection connection, string host)
    {
        _connection = connection;
        _host = host;
    }

    private InspectService.InspectServiceClient Stub => _connection.Stubs.Inspect;

    /// <summary>The VM descriptors of all processes of the host.</summary>
    public async Task<IReadOnlyList<FdReference>> ListVmsAsync(CancellationToken cancellation = default) =>
        (await _connection.Call(Stub.ListVmsAsync(new ListVmsRequest { Host = _host }, cancellationToken: cancellation))).Vms;

    /// <summary>The state of a VM as ranges.</summary>
    public Task<DescribeVmResponse> DescribeVmAsync(uint pid, int fd, CancellationToken cancellation = default) =>
        _connection.Call(Stub.DescribeVmAsync(new DescribeVmRequest { Host = _host, Pid = pid, Fd = fd }, cancellationToken: cancellation));

    /// <summary>The guest physical space of a VM from <paramref name="start"/> up to <paramref name="end"/> (0: all of it), as runs, read page by page.</summary>
    public async IAsyncEnumerable<GpaRun> MapAsync(uint pid, int fd, ulong start = 0, ulong end = 0, [EnumeratorCancellation] CancellationToken cancellation = default)
    {
        ulong? next = start;
        while (next is { } from)
        {
            var request = new GpaMapRequest { Host = _host, Pid = pid, Fd = fd, Start = from, End = end };
            GpaMapResponse page = await _connection.Call(Stub.GpaMapAsync(request, cancellationToken: cancellation));
            foreach (GpaRun run in page.Runs)
                yield return run;

            next = page.HasNextStart ? page.NextStart : null;
        }
    }

    /// <summary>Everything about one guest physical page, and why it is mapped as it is.</summary>
    public Task<ExplainGpaResponse> ExplainGpaAsync(uint pid, int fd, ulong gpa, CancellationToken cancellation = default) =>
        _connection.Call(Stub.ExplainGpaAsync(new ExplainGpaRequest { Host = _host, Pid = pid, Fd = fd, Gpa = gpa }, cancellationToken: cancellation));

    /// <summary>What an earlier call answered, and why, with its steps.</summary>
    /// <param name="revision">Number of the call on its host, Outcome.call.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    /// <exception cref="VmmServiceException">The host has no such revision, or keeps it no longer.</exception>
    public async Task<CallEvent> ExplainAsync(ulong revision, CancellationToken cancellation = default) =>
        (await _connection.Call(Stub.ExplainAsync(new ExplainRequest { Host = _host, Revision = revision }, cancellationToken: cancellation))).Call;

    /// <summary>The calls of the host in order.</summary>
    /// <param name="fromRevision">First one wanted; 0 is the oldest that is kept.</param>
    /// <param name="follow">Go on with calls as they are made, until the enumeration is given up or the host is gone.</param>
    /// <param name="steps">With the steps of each call.</param>
    /// <param name="cancellation">Ends the enumeration.</param>
    public IAsyncEnumerable<WatchResponse> WatchAsync(
        ulong fromRevision = 0, bool follow = false, bool steps = false, CancellationToken cancellation = default) =>
        _connection.Stream(
            () => Stub.Watch(new WatchRequest { Host = _host, FromRevision = fromRevision, Follow = follow, Steps = steps }, cancellationToken: cancellation), cancellation);
}
