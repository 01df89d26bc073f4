using Grpc.Core;
using VmmService.Client;
using VmmService.IntegrationTests.Scripts;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Inspect;

/// <summary>The guest physical space as InspectService tells it.</summary>
public sealed class GpaMapTests(Daemon daemon) : IClassFixture<Daemon>
{
    // Slot 0 at 0 with a guest_memfd, private from 16 KiB to 32 KiB; slot 1 without one at 1 MiB; private without a slot at 1 GiB.
    private const string Guest = """
        - open: /dev/kvm
          as: kvm
        - create_vm: SW_PROTECTED
          as: vm
        - create_guest_memfd: {size: 64KiB}
          as: gmem
        - mmap: {length: 128KiB}
          as: ram
        - set_user_memory_region2: {flags: KVM_MEM_GUEST_MEMFD, memory_size: 64KiB, userspace_addr: $ram, guest_memfd: $gmem}
        - set_user_memory_region2: {slot: 1, guest_phys_addr: 1MiB, memory_size: 64KiB, userspace_addr: $ram + 64KiB}
        - set_memory_attributes: {address: 16KiB, size: 16KiB, attributes: 8}
        - set_memory_attributes: {address: 1GiB, size: 1GiB, attributes: 8}
        - create_vcpu:
          as: vcpu
        - program: [{write: {gpa: 0, data: "01"}}, {fill: {gpa: 16KiB, length: 8KiB}}, halt]
        - run:
        """;

    [Fact]
    public async Task Map_PutsSlotBackingSideAndMappingSideBySide()
    {
        await using RemoteScript script = await Start(Guest);
        (HostInspector host, FdReference vm, _) = await Vm(script);

        List<GpaRun> map = await Map(host, vm);

        Assert.Equal(
            [
                "0x0-0x1000 slot 0 shared user 0x7f0000000000 guest_memfd+0x0 absent 4K rw",
                "0x1000-0x4000 slot 0 shared user 0x7f0000001000 guest_memfd+0x1000 absent unmapped",
                "0x4000-0x6000 slot 0 private user 0x7f0000004000 guest_memfd+0x4000 uptodate 4K rw",
                "0x6000-0x8000 slot 0 private user 0x7f0000006000 guest_memfd+0x6000 absent unmapped",
                "0x8000-0x10000 slot 0 shared user 0x7f0000008000 guest_memfd+0x8000 absent unmapped",
                "0x100000-0x110000 slot 1 shared user 0x7f0000010000 unmapped",
                "0x40000000-0x80000000 no slot private unmapped",
            ],
            map.Select(run => run.Text));
    }

    [Fact]
    public async Task Map_PageByPage_IsTheWholeMap()
    {
        await using RemoteScript script = await Start(Guest);
        (HostInspector host, FdReference vm, string id) = await Vm(script);

        var pages = new List<GpaRun>();
        ulong? start = 0;
        while (start is { } from)
        {
            GpaMapResponse page = await daemon.Stubs.Inspect.GpaMapAsync(new GpaMapRequest { Host = id, Pid = vm.Pid, Fd = vm.Fd, Start = from, MaxRuns = 2 });
            Assert.InRange(page.Runs.Count, 1, 2);
            pages.AddRange(page.Runs);
            start = page.HasNextStart ? page.NextStart : null;
        }
        Assert.Equal(await Map(host, vm), pages);
    }

    [Fact]
    public async Task Map_OfARange_IsCutAtItsEnds()
    {
        await using RemoteScript script = await Start(Guest);
        (HostInspector host, FdReference vm, _) = await Vm(script);
        var runs = new List<GpaRun>();
        await foreach (GpaRun run in host.MapAsync(vm.Pid, vm.Fd, 0x5000, 0x7001))
        {
            runs.Add(run);
        }
        Assert.Equal([(0x5000ul, 0x1000ul), (0x6000, 0x2000)], runs.Select(run => (run.Gpa, run.Size)));
    }

    [Fact]
    public async Task Map_OfATebibyteOfAttributes_IsOneRunAndScatteredPagesArePages()
    {
        await using RemoteScript script = await Start(
            """
            - open: /dev/kvm
              as: kvm
            - create_vm: SW_PROTECTED
              as: vm
            - set_memory_attributes: {address: 0, size: 0x10000000000000000 - 4KiB, attributes: 8}
            """);
        (HostInspector host, FdReference vm, _) = await Vm(script);
        GpaRun run = Assert.Single(await Map(host, vm));
        Assert.Equal((0ul, ulong.MaxValue - 4095), (run.Gpa, run.Size));
    }

    [Fact]
    public async Task Describe_HasStage2FoliosAndReferences()
    {
        await using RemoteScript script = await Start(Guest);
        (HostInspector host, FdReference vm, _) = await Vm(script);

        DescribeVmResponse state = await host.DescribeVmAsync(vm.Pid, vm.Fd);

        Assert.Equal([(0ul, 1ul, false), (4, 6, true)], state.Stage2.Select(run => (run.GfnStart, run.GfnEnd, run.Private)));
        GuestMemfdState file = Assert.Single(state.GuestMemfds);
        Assert.Equal((65536ul, 1u, 5), (file.Size, file.FileReferences, file.Fds.Single().Fd));
        Assert.Equal([0u], file.Slots);
        FolioRun folios = Assert.Single(file.Folios);
        Assert.Equal((4ul, 6ul, true, 0u), (folios.Start, folios.End, folios.Uptodate, folios.Order));
        Assert.Equal(state.Stage2[1].Pfn, folios.Pfn);
        Assert.Equal(["anon_inode:kvm-vm", "[kvm-gmem]", "anon_inode:kvm-vcpu:0"], state.References.Select(each => each.Name));
        Assert.Equal((3u, 0u), (state.Users, state.MmuInvalidateInProgress));
        Assert.False(state.Cut);
    }

    [Fact]
    public async Task ExplainGpa_SaysWhatAnAccessWouldDoAndWhyTheLevel()
    {
        await using RemoteScript script = await Start(Guest);
        (HostInspector host, FdReference vm, _) = await Vm(script);

        ExplainGpaResponse page = await host.ExplainGpaAsync(vm.Pid, vm.Fd, 0x4123);

        Assert.Equal((8ul, 4ul, 1u), (page.Attributes, page.GuestMemfdIndex, page.Level));
        Stage2Leaf leaf = Assert.Single(page.Leaves);
        Assert.Equal((0x4000ul, page.FolioPfn, 1u, true), (leaf.Gpa, leaf.Pfn, leaf.Level, leaf.Writable));
        Assert.Equal([2u, 3], page.Lpages.Select(each => each.Level));
        Assert.All(page.Lpages, each => Assert.True(each.Count > 0));
        Assert.Contains(page.Text, line => line.Contains("the page is private", StringComparison.Ordinal));
        Assert.Contains(page.Limits, each => each.What == "max_order" && each.Level == 1);
    }

    [Fact]
    public async Task ExplainGpa_WithoutASlot_SaysSo()
    {
        await using RemoteScript script = await Start(Guest);
        (HostInspector host, FdReference vm, _) = await Vm(script);
        Assert.Contains("KVM_EXIT_MMIO", string.Join(' ', (await host.ExplainGpaAsync(vm.Pid, vm.Fd, 0x7000_0000_0000)).Text), StringComparison.Ordinal);
        Assert.Contains("KVM_EXIT_MEMORY_FAULT", string.Join(' ', (await host.ExplainGpaAsync(vm.Pid, vm.Fd, 1 << 30)).Text), StringComparison.Ordinal);
    }

    [Fact]
    public async Task LpageInfo_SaysWherePrivateAndSharedAreMixed()
    {
        await using RemoteScript script = await Start(
            """
            - open: /dev/kvm
              as: kvm
            - create_vm: SW_PROTECTED
              as: vm
            - create_guest_memfd: {size: 8MiB}
              as: gmem
            - set_user_memory_region2: {flags: KVM_MEM_GUEST_MEMFD, memory_size: 8MiB, userspace_addr: 0x7f0000000000, guest_memfd: $gmem}
            - set_memory_attributes: {address: 2MiB + 4KiB, size: 4MiB - 4KiB, attributes: 8}
            - explain_gpa: 2MiB
              expect: {mixed: true, private: false}
            - explain_gpa: 4MiB
              expect: {mixed: false, private: true}
            """);
        (HostInspector host, FdReference vm, _) = await Vm(script);
        ExplainGpaResponse mixed = await host.ExplainGpaAsync(vm.Pid, vm.Fd, 2 << 20);
        Assert.Equal((0u, true), (mixed.Lpages[0].Count, mixed.Lpages[0].Mixed));
        Assert.Contains(mixed.Limits, each => each.What == "disallow_lpage 2M" && each.Why.Contains("mixed", StringComparison.Ordinal));
    }

    [Fact]
    public async Task BadRequests_AreRefused()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.Default);
        await Refused(() => daemon.Stubs.Inspect.GpaMapAsync(new GpaMapRequest { Host = process.Host, Pid = process.Pid, Fd = 3 }), "not a VM");
        await Refused(() => daemon.Stubs.Inspect.GpaMapAsync(new GpaMapRequest { Host = process.Host, Pid = process.Pid, Fd = vm, Start = 8192, End = 4096 }), "is not behind start");
        await Refused(() => daemon.Stubs.Inspect.ExplainGpaAsync(new ExplainGpaRequest { Host = process.Host, Pid = process.Pid, Fd = 77 }), "not a VM");
    }

    private static async Task Refused<T>(Func<AsyncUnaryCall<T>> call, string told)
    {
        RpcException refused = await Assert.ThrowsAsync<RpcException>(async () => await call());
        Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
        Assert.Contains(told, refused.Status.Detail, StringComparison.Ordinal);
    }

    private async Task<RemoteScript> Start(string yaml)
    {
        RemoteScript script = await daemon.Connection.StartScriptAsync(new ScriptHeader());
        await script.SendDocumentAsync(yaml);
        return script;
    }

    private async Task<(HostInspector Host, FdReference Vm, string Id)> Vm(RemoteScript script)
    {
        ScriptOutcome outcome = await ScriptOutcome.ReadAll(script, toSummary: true);
        Assert.Empty(outcome.Unmet);
        RemoteHost host = await daemon.Connection.GetHostAsync(outcome.Started!.Host);
        return (host.Inspect, (await host.Inspect.ListVmsAsync()).Single(), host.Id);
    }

    private static async Task<List<GpaRun>> Map(HostInspector host, FdReference vm)
    {
        var runs = new List<GpaRun>();
        await foreach (GpaRun run in host.MapAsync(vm.Pid, vm.Fd))
        {
            runs.Add(run);
        }
        return runs;
    }
}
