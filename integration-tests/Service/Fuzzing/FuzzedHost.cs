using Microsoft.Extensions.DependencyInjection;
using VmmService.IntegrationTests.Support;
using VmmService.Server.Sessions;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Service.Fuzzing;

/// <summary>A host to be fuzzed: a process with every kind of descriptor, a slot, private pages, mapped memory, a launch under way.</summary>
internal sealed class FuzzedHost
{
    private readonly Daemon _daemon;

    private FuzzedHost(Daemon daemon, Targets targets, ulong memory)
    {
        _daemon = daemon;
        Targets = targets;
        Memory = memory;
    }

    public Targets Targets { get; }

    /// <summary>Address of mapped memory.</summary>
    public ulong Memory { get; }

    public static async Task<FuzzedHost> Start(Daemon daemon, string profile)
    {
        BareProcess process = await BareProcess.Start(daemon.Stubs, profile, new MachineConfig { MemoryBytes = 64 << 20 });
        bool hasPrivate = await process.CreateVm(VmType.SwProtected) > 0;
        Assert.True(hasPrivate);
        const int vm = 4;
        int gmem = await process.CreateGuestMemfd(vm, 64 << 12);
        await process.SetRegion(vm, new KvmUserspaceMemoryRegion2 { Flags = 4, MemorySize = 64 << 12, GuestMemfd = (uint)gmem });
        await process.SetAttributes(vm, 0, 64 << 12, 8);
        int plain = await process.CreateVm(VmType.Default);
        foreach (int owner in new[] { vm, plain })
        {
            await daemon.Stubs.Vm.CreateVcpuAsync(new CreateVcpuRequest { Host = process.Host, Pid = process.Pid, Fd = owner });
        }
        MmapResponse mapped = await daemon.Stubs.Processes.MmapAsync(
            new MmapRequest { Host = process.Host, Pid = process.Pid, Length = 16 << 12, Prot = 3, Flags = 0x22, Fd = -1 });
        if (profile != "K68")
        {
            await process.StartSnpVm();
        }
        return new FuzzedHost(daemon, new Targets(process.Host, process.Pid, [-1, 0, .. Enumerable.Range(3, 12), 1000, int.MaxValue]), mapped.Addr);
    }

    /// <summary>
    /// Whatever was done to the host and its neighbours, they hang together; and when processes exit, nothing is left. Says what findings there were.
    /// </summary>
    public async Task CheckAndDelete()
    {
        if (_daemon.App is { } app)
        {
            foreach (ServedHost host in app.Services.GetRequiredService<HostRegistry>().All)
            {
                host.Run(sim =>
                {
                    sim.CheckInvariants();
                    foreach (SimKvm.Userspace.Process process in sim.Processes.ToArray())
                    {
                        process.Exit();
                        sim.CheckInvariants();
                    }
                    Assert.Equal(0, sim.LiveVms);
                    Assert.InRange(sim.Machine.AllocatedPages, 0, 1);
                    foreach (SimMachine.Stepping.Finding finding in sim.Machine.Findings.All)
                    {
                        Assert.False(finding.Kind is "lock-inversion" or "lock-recursion" or "sleep-in-atomic", $"{finding.Kind}: {finding.Text}");
                    }
                    return true;
                });
            }
        }
        foreach (Host host in (await _daemon.Stubs.Hosts.ListHostsAsync(new ListHostsRequest())).Hosts)
        {
            await _daemon.Stubs.Hosts.DeleteHostAsync(new DeleteHostRequest { Host = host.Host_ });
        }
    }
}
