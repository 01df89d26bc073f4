using Microsoft.Extensions.Logging.Abstractions;
using SimKvm;
using SimKvm.Profiles;
using VmmService.Server;
using VmmService.Server.Sessions;
using Xunit;

namespace VmmService.IntegrationTests.Service;

/// <summary>Processes that nobody calls any more, as of clients that open a connection for each call. Time is the test's.</summary>
public sealed class IdleProcessTests : IDisposable
{
    private readonly ManualTime _time = new();
    private readonly HostRegistry _hosts;
    private readonly ServedHost _host;

    public IdleProcessTests()
    {
        _hosts = new HostRegistry(new VmmServerOptions { ProcessIdleSeconds = 60 }, _time, NullLogger<HostRegistry>.Instance);
        _host = _hosts.Add(() => new SimHost(KernelProfiles.K72, new SimMachine.MachineConfig(), 0), deleteWhenEmpty: false);
    }

    [Fact]
    public void ProcessWithoutACallForTheLimit_Exits()
    {
        uint pid = (uint)_hosts.StartProcess(_host);
        _time.Advance(TimeSpan.FromSeconds(59));
        _hosts.ReapIdle();
        Assert.Single(_host.Sim.Processes);
        _hosts.RunOn(_host.Id, pid, process => process.Open("/dev/kvm"));
        _time.Advance(TimeSpan.FromSeconds(59));
        _hosts.ReapIdle();
        Assert.Single(_host.Sim.Processes);
        _time.Advance(TimeSpan.FromSeconds(1));
        _hosts.ReapIdle();
        Assert.Empty(_host.Sim.Processes);
    }

    [Fact]
    public void AttachedProcess_StaysHoweverIdle()
    {
        uint pid = (uint)_hosts.StartProcess(_host);
        using (_hosts.Attach(_host.Id, pid))
        {
            _time.Advance(TimeSpan.FromDays(1));
            _hosts.ReapIdle();
            Assert.Single(_host.Sim.Processes);
        }
        Assert.Empty(_host.Sim.Processes);
    }

    public void Dispose() => _hosts.Dispose();

    private sealed class ManualTime : TimeProvider
    {
        private long _now;

        public override long TimestampFrequency => TimeSpan.TicksPerSecond;

        public override long GetTimestamp() => _now;

        public void Advance(TimeSpan by) => _now += by.Ticks;
    }
}
