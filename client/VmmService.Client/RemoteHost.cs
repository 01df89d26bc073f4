using Grpc.Core;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// A simulated computer with a kernel booted on it: the unit of isolation and determinism. It runs one call at a time, so calls that are to be compared should
/// not be issued in parallel. Next door: <see cref="RemoteProcess"/>, through which all calls into the kernel go.
/// </summary>
public sealed class RemoteHost : IAsyncDisposable
{
    private readonly bool _owned;
    private bool _disposed;

    internal RemoteHost(VmmConnection connection, Host host, bool owned)
    {
        Connection = connection;
        Id = host.Host_;
        Profile = host.Profile;
        Seed = host.Seed;
        Machine = host.Machine;
        _owned = owned;
    }

    public VmmConnection Connection { get; }

    /// <summary>Id of the host on its daemon.</summary>
    public string Id { get; }

    /// <summary>Id of the kernel profile, for example K72.</summary>
    public string Profile { get; }

    public ulong Seed { get; }

    /// <summary>Silicon and firmware, with all defaults filled in.</summary>
    public MachineConfig Machine { get; }

    /// <summary>Looks at the host from outside.</summary>
    public HostInspector Inspect => new(Connection, Id);

    /// <summary>Reports, quotes and collateral of a host with TDX.</summary>
    public RemoteTdxAttestation TdxAttestation => new(this);

    /// <summary>The host as it is now: calls so far, processes, pages.</summary>
    public async Task<Host> GetStateAsync(CancellationToken cancellation = default) =>
        (await Connection.Call(Connection.Stubs.Hosts.GetHostAsync(new GetHostRequest { Host = Id }, cancellationToken: cancellation))).Host;

    /// <summary>What the host suffered so far that a real machine would have suffered from, oldest first.</summary>
    public async Task<IReadOnlyList<Finding>> ListFindingsAsync(CancellationToken cancellation = default) =>
        (await Connection.Call(Connection.Stubs.Inspect.ListFindingsAsync(new ListFindingsRequest { Host = Id }, cancellationToken: cancellation))).Findings;

    /// <summary>A report of a guest on this host, whoever launched it; its own VMM uses <see cref="Vm.Attestation"/>.</summary>
    /// <param name="request">Host is filled in.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public KvmCall<GetReportResponse, SnpReport> GetReportAsync(GetReportRequest request, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        GetReportRequest filled = request.Clone();
        filled.Host = Id;
        return new(
            "MSG_REPORT_REQ",
            Connection.Call(Connection.Stubs.Attestation.GetReportAsync(filled, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => SnpReport.Parse(reply.Report.Memory),
            reply => reply.Sev);
    }

    /// <summary>The certificates of the key that signs this host's reports.</summary>
    /// <exception cref="VmmServiceException">A VLEK was selected and none is loaded.</exception>
    public Task<GetCertificateChainResponse> GetCertificateChainAsync(
        KeySelection key = KeySelection.VlekIfLoaded, CancellationToken cancellation = default) =>
        Connection.Call(Connection.Stubs.Attestation.GetCertificateChainAsync(
            new GetCertificateChainRequest { Host = Id, KeySelection = key }, cancellationToken: cancellation));

    /// <summary>The same certificates as the table that a host gives its guests with an extended report.</summary>
    public async Task<ReadOnlyMemory<byte>> GetCertificateTableAsync(
        KeySelection key = KeySelection.VlekIfLoaded, bool withCrl = false, CancellationToken cancellation = default) =>
        (await Connection.Call(Connection.Stubs.Attestation.GetCertificateTableAsync(
            new GetCertificateTableRequest { Host = Id, KeySelection = key, WithCrl = withCrl }, cancellationToken: cancellation))).Table.Memory;

    /// <summary>The certificate of the chip's key of SEV with the authority's signature, and the authority's own certificates (DER): what a guest's owner asks AMD for by the chip's id.</summary>
    public Task<GetSevCekResponse> GetSevCekAsync(CancellationToken cancellation = default) =>
        Connection.Call(Connection.Stubs.Attestation.GetSevCekAsync(new GetSevCekRequest { Host = Id }, cancellationToken: cancellation));

    /// <summary>The revocation list of the root, DER.</summary>
    public async Task<ReadOnlyMemory<byte>> GetCrlAsync(CancellationToken cancellation = default) =>
        (await Connection.Call(Connection.Stubs.Attestation.GetCrlAsync(new GetCrlRequest { Host = Id }, cancellationToken: cancellation))).Crl.Memory;

    /// <summary>Starts a VMM process, tied to this client: it exits when the object is disposed or the connection breaks.</summary>
    /// <exception cref="VmmServiceException">The host is gone, or has as many processes as it may.</exception>
    public async Task<RemoteProcess> CreateProcessAsync(CancellationToken cancellation = default)
    {
        CreateProcessResponse response = await Connection.Call(
            Connection.Stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = Id }, cancellationToken: cancellation));
        return await RemoteProcess.AttachAsync(this, response.Pid, cancellation);
    }

    /// <summary>Kills the host's processes and frees all it holds.</summary>
    public Task DeleteAsync(CancellationToken cancellation = default) =>
        Connection.Call(Connection.Stubs.Hosts.DeleteHostAsync(new DeleteHostRequest { Host = Id }, cancellationToken: cancellation));

    /// <summary>Deletes the host if this client made it. A host that is gone already, or a daemon that is, is no error here.</summary>
    public async ValueTask DisposeAsync()
    {
        if (_disposed)
            return;

        _disposed = true;
        if (!_owned)
            return;

        try
        {
            await DeleteAsync();
        }
        catch (VmmServiceException exception) when (exception.StatusCode is StatusCode.NotFound or StatusCode.Unavailable)
        {
        }
    }
}
