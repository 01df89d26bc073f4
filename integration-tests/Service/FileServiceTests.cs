using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Service;

/// <summary>Files, memory and fork through the client library.</summary>
public sealed class FileServiceTests(Daemon daemon) : IClassFixture<Daemon>
{
    [Fact]
    public async Task LoadThatFaults_IsASignalInTheOutcome()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        Outcome outcome = (await process.ReadAsync(0x5000, 1).Reply).Outcome;
        Assert.Equal(("SIGSEGV", "SEGV_MAPERR", 0x5000ul), (outcome.Signal.Name, outcome.Signal.SiCodeName, outcome.Signal.SiAddr));
        Assert.Contains("SIGSEGV", outcome.Text, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ForkedChild_SharesAMemfd_AndHasMemoryOfItsOwn()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync(deleteWhenEmpty: false);
        await using RemoteProcess parent = await host.CreateProcessAsync();
        Memfd memfd = await parent.MemfdCreateAsync("ram");
        await memfd.FtruncateAsync(4096);
        ulong shared = await memfd.MmapAsync(4096);
        ulong own = await parent.MmapAsync(4096);
        await parent.WriteAsync(own, new byte[] { 1 });

        await using (RemoteProcess child = await parent.ForkAsync())
        {
            await child.WriteAsync(own, new byte[] { 2 });
            await child.WriteAsync(shared, new byte[] { 3 });
        }

        Assert.Equal(1, (await parent.ReadAsync(own, 1)).Span[0]);
        Assert.Equal(3, (await memfd.ReadAsync(1, 0)).Span[0]);
    }

    [Fact]
    public async Task ReadOfAGuestMemfd_IsEinvalWithAReason()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.SwProtected);
        int gmem = await process.CreateGuestMemfd(vm, 4096);
        Outcome outcome = (await daemon.Stubs.Files.ReadAsync(new ReadRequest { Host = process.Host, Pid = process.Pid, Fd = gmem, Count = 64 })).Outcome;
        Assert.Equal(("EINVAL", "vfs.no-method"), (outcome.ErrnoName, outcome.Causes[0].Rule));
    }

    [Fact]
    public async Task InjectedMemoryFailure_TakesThePageFromTheHost()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.SwProtected);
        int gmem = await process.CreateGuestMemfd(vm, 8192);
        var inject = new InjectMemoryFailureRequest { Host = process.Host, Pid = process.Pid, Fd = gmem, Index = 1 };
        Assert.Equal("ENXIO", (await daemon.Stubs.Inspect.InjectMemoryFailureAsync(inject)).Outcome.ErrnoName);
        await daemon.Stubs.GuestMemfd.FallocateAsync(new FallocateRequest { Host = process.Host, Pid = process.Pid, Fd = gmem, Mode = 1, Len = 8192 });
        Assert.Equal("", (await daemon.Stubs.Inspect.InjectMemoryFailureAsync(inject)).Outcome.ErrnoName);
        Assert.Equal("EHWPOISON", (await daemon.Stubs.Inspect.InjectMemoryFailureAsync(inject)).Outcome.ErrnoName);
    }
}
