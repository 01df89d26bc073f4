using VmmService.IntegrationTests.Scripts;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm record and vmm replay: what a session called can be called again, there and under another kernel.</summary>
public sealed class RecordCommandTests(Daemon daemon) : IClassFixture<Daemon>
{
    [Fact]
    public async Task ARecording_IsAnsweredTheSame_ElsewhereAndUnderTheSameKernel()
    {
        string file = await RecordAsync();
        VmmRun replay = await VmmRun.Invoke("replay", file);
        Assert.True(replay is { ExitCode: 0, Error: "" }, replay.Output + replay.Error);
        Assert.Contains("all answered as recorded", replay.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task UnderAnotherKernel_TheFirstDifferenceIsNamed()
    {
        // Binding a page twice is EEXIST in K72, EINVAL before.
        VmmRun replay = await VmmRun.Invoke("replay", await RecordAsync(), "--profile", "K70");
        Assert.Equal(1, replay.ExitCode);
        Assert.Contains("outcome.errno_name was EEXIST, it is EINVAL", replay.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AScriptOnTheHost_IsRecordedToo_AndItsStepsAreCompared()
    {
        string file = await RecordAsync(async host =>
        {
            ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, """
                - open: /dev/kvm
                  as: kvm
                - create_vm: SW_PROTECTED
                  as: vm
                - create_guest_memfd: {size: 12KiB}
                  as: gmem
                - set_user_memory_region2: {slot: 5, flags: KVM_MEM_GUEST_MEMFD, guest_phys_addr: 1MiB, memory_size: 8KiB, guest_memfd: $gmem}
                - set_user_memory_region2: {slot: 6, flags: KVM_MEM_GUEST_MEMFD, guest_phys_addr: 2MiB, memory_size: 8KiB, guest_memfd: $gmem, guest_memfd_offset: 4KiB}
                  expect: EEXIST
                """, new ScriptHeader { Host = host, KeepGoing = true });
            Assert.Null(outcome.Error);
        }, bindTwice: false);
        Assert.Contains("ScriptService/RunScript", await File.ReadAllTextAsync(file), StringComparison.Ordinal);

        VmmRun same = await VmmRun.Invoke("replay", file), other = await VmmRun.Invoke("replay", file, "--profile", "K70");
        Assert.True(same is { ExitCode: 0, Error: "" }, same.Output + same.Error);
        Assert.Equal(1, other.ExitCode);
        Assert.Contains("ScriptService.RunScript: answer 6, step.outcome.errno_name was EEXIST, it is EINVAL", other.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("")]
    [InlineData("{}")]
    [InlineData("not json")]
    [InlineData("{\"method\":\"vmmservice.v1.VmService/Nothing\",\"requests\":[],\"response\":{}}")]
    [InlineData("{\"method\":\"vmmservice.v1.HostService/GetHost\",\"requests\":[{\"host\":\"h1\"}],\"response\":{}}")]
    [InlineData("{\"method\":\"vmmservice.v1.HostService/CreateHost\",\"requests\":[{\"nothing\":1}],\"response\":{}}")]
    public async Task AFileThatIsNoRecording_IsRefused(string text)
    {
        string file = Path.GetTempFileName();
        await File.WriteAllTextAsync(file, text);
        VmmRun replay = await VmmRun.Invoke("replay", file);
        File.Delete(file);
        Assert.Equal(2, replay.ExitCode);
        Assert.Contains(file, replay.Error, StringComparison.Ordinal);
    }

    private async Task<string> RecordAsync(Func<string, Task>? also = null, bool bindTwice = true)
    {
        BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.SwProtected);
        int gmem = await process.CreateGuestMemfd(vm, 4096);
        await process.SetAttributes(vm, 0, 4096, 8);
        for (uint slot = 0; slot < (bindTwice ? 2 : 1); slot++)
        {
            await process.SetRegion(vm, new KvmUserspaceMemoryRegion2 { Slot = slot, Flags = 4, GuestPhysAddr = slot * 4096, MemorySize = 4096, GuestMemfd = (uint)gmem });
        }
        if (also is not null)
        {
            await also(process.Host);
        }
        VmmRun recorded = await VmmRun.Invoke("record", process.Host, "--server", daemon.Address);
        Assert.True(recorded is { ExitCode: 0, Error: "" }, recorded.Error);
        string file = Path.Combine(Path.GetTempPath(), $"{Guid.NewGuid():n}.jsonl");
        await File.WriteAllTextAsync(file, recorded.Output);
        return file;
    }
}
