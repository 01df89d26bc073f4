using System.Security.Cryptography.X509Certificates;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Support;

/// <summary>A host with a VMM and a SEV or SEV-ES VM of eight pages from gpa 0, with one vCPU: initialised, and not yet started.</summary>
public sealed class SevBench : IAsyncDisposable
{
    private const ulong MemoryPages = 8;

    private SevBench(RemoteHost host, RemoteProcess process) => (Host, Process) = (host, process);

    public RemoteHost Host { get; }

    public RemoteProcess Process { get; }

    public SevDevice Sev { get; private set; } = null!;

    public Client.Vm Vm { get; private set; } = null!;

    public Client.Vcpu Vcpu { get; private set; } = null!;

    public SevLaunch Launch => Vm.SevLaunch(Sev);

    public SevMigration Migration => Vm.SevMigration(Sev);

    /// <summary>User address of the guest's memory.</summary>
    public ulong Memory { get; private set; }

    /// <summary>No debugging; with SEV-ES encrypted state.</summary>
    public uint DefaultPolicy { get; private init; }

    public static async Task<SevBench> CreateAsync(Daemon daemon, VmType type, ulong seed = 0, bool initialise = true, string? profile = null)
    {
        RemoteHost host = await daemon.Connection.CreateHostAsync(profile, seed);
        RemoteProcess process = await host.CreateProcessAsync();
        var bench = new SevBench(host, process) { DefaultPolicy = type == VmType.SevEs ? 5u : 1u };
        bench.Sev = await process.OpenSevAsync();
        Kvm kvm = await process.OpenKvmAsync();
        bench.Vm = await kvm.CreateVmAsync(type);
        bench.Memory = await process.MmapAsync(MemoryPages * GuestBench.Page);
        await bench.Vm.SetUserMemoryRegion2Async(GuestBench.Region(0, 0, 0, MemoryPages, bench.Memory));
        if (initialise)
        {
            // VMs of the default type have the commands without parameters.
            if (type == VmType.Default)
                await bench.Launch.InitAsync(es: false);
            else
                await bench.Vm.SnpLaunch(bench.Sev).Init2Async(ghcbVersion: 0);
            bench.Vcpu = await bench.Vm.CreateVcpuAsync(0);
        }
        return bench;
    }

    /// <summary>The platform's chain with the CEK that the authority signed; it has to hold.</summary>
    public async Task<SevPlatformChain> TrustedChainAsync()
    {
        GetSevCekResponse cek = await Host.GetSevCekAsync();
        SevPlatformChain chain = (await Sev.ExportPdhAsync()).WithCek(SevCertificate.Parse(cek.Cek.Span));
        using X509Certificate2 ask = X509CertificateLoader.LoadCertificate(cek.Ask.Span);
        Assert.Null(chain.Problem(ask));
        return chain;
    }

    /// <summary>API major, API minor and build of the firmware.</summary>
    public async Task<(byte Major, byte Minor, byte Build)> FirmwareAsync()
    {
        SevPlatformStatusResponse status = await Sev.PlatformStatusAsync();
        return ((byte)status.ApiMajor, (byte)status.ApiMinor, (byte)status.Build);
    }

    public async ValueTask DisposeAsync()
    {
        await Process.DisposeAsync();
        await Host.DisposeAsync();
    }
}
