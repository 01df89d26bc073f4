using Google.Protobuf;
using Grpc.Core;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Service;

/// <summary>What the daemon refuses to even try: each a clear error that names field and limit, after which it keeps serving.</summary>
public sealed class BadRequestTests(Daemon daemon) : IClassFixture<Daemon>
{
    public static TheoryData<string, Func<VmmStubs, BareProcess, Task>, StatusCode, string> Requests => new()
    {
        { "unknown host", (stubs, _) => Await(stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = "h999999" })), StatusCode.NotFound, "h999999" },
        { "missing host", (stubs, _) => Await(stubs.Processes.CreateProcessAsync(new CreateProcessRequest())), StatusCode.InvalidArgument, "host" },
        { "unknown process", (stubs, p) => Await(stubs.Processes.OpenAsync(new OpenRequest { Host = p.Host, Pid = 77, Path = "/dev/kvm" })), StatusCode.NotFound, "77" },
        { "unknown profile", (stubs, _) => Await(stubs.Hosts.CreateHostAsync(new CreateHostRequest { Profile = "K2" })), StatusCode.InvalidArgument, "K618, K619" },
        {
            "too much memory", (stubs, _) => Await(stubs.Hosts.CreateHostAsync(new CreateHostRequest { Machine = new MachineConfig { MemoryBytes = 1UL << 60 } })),
            StatusCode.InvalidArgument, "machine.memory_bytes"
        },
        {
            "unaligned memory", (stubs, _) => Await(stubs.Hosts.CreateHostAsync(new CreateHostRequest { Machine = new MachineConfig { MemoryBytes = 4097 } })),
            StatusCode.InvalidArgument, "multiple of 4096"
        },
        { "too many ASIDs", (stubs, _) => Await(stubs.Hosts.CreateHostAsync(new CreateHostRequest { Machine = new MachineConfig { MaxAsid = 5000 } })), StatusCode.InvalidArgument, "1023" },
        { "VM type unset", (stubs, p) => Await(stubs.Kvm.CreateVmAsync(new CreateVmRequest { Host = p.Host, Pid = p.Pid, Fd = p.Kvm })), StatusCode.InvalidArgument, "SwProtected (2)" },
        { "structure missing", (stubs, p) => Await(stubs.Vm.SetMemoryAttributesAsync(new SetMemoryAttributesRequest { Host = p.Host, Pid = p.Pid, Fd = 4 })), StatusCode.InvalidArgument, "attributes" },
        {
            "page type unset", (stubs, p) => Await(stubs.Sev.SnpLaunchUpdateAsync(new SnpLaunchUpdateRequest { Host = p.Host, Pid = p.Pid, Update = new KvmSevSnpLaunchUpdate() })),
            StatusCode.InvalidArgument, "update.type"
        },
        {
            "gosvw too short", (stubs, p) => Await(stubs.Sev.SnpLaunchStartAsync(new SnpLaunchStartRequest { Host = p.Host, Pid = p.Pid, Start = new KvmSevSnpLaunchStart { Gosvw = ByteString.CopyFrom(1) } })),
            StatusCode.InvalidArgument, "16"
        },
        {
            "ID block too short", (stubs, p) => Await(stubs.Sev.SnpLaunchFinishAsync(new SnpLaunchFinishRequest { Host = p.Host, Pid = p.Pid, Finish = new KvmSevSnpLaunchFinish { IdBlock = ByteString.CopyFrom(1) } })),
            StatusCode.InvalidArgument, "96"
        },
        {
            "pattern of nothing", (stubs, p) => Await(stubs.Processes.WriteMemoryAsync(new WriteMemoryRequest { Host = p.Host, Pid = p.Pid, Content = new Content { Pattern = new Pattern { Length = 5 } } })),
            StatusCode.InvalidArgument, "content.pattern"
        },
        {
            "pattern too long", (stubs, p) => Await(stubs.Processes.WriteMemoryAsync(new WriteMemoryRequest { Host = p.Host, Pid = p.Pid, Content = new Content { Pattern = new Pattern { Length = 1UL << 63, Bytes = ByteString.CopyFrom(1) } } })),
            StatusCode.InvalidArgument, "67108864"
        },
        { "content missing", (stubs, p) => Await(stubs.Processes.WriteMemoryAsync(new WriteMemoryRequest { Host = p.Host, Pid = p.Pid })), StatusCode.InvalidArgument, "content" },
        { "read too long", (stubs, p) => Await(stubs.Processes.ReadMemoryAsync(new ReadMemoryRequest { Host = p.Host, Pid = p.Pid, Length = ulong.MaxValue })), StatusCode.InvalidArgument, "16777216" },
        { "inspect no VM", (stubs, p) => Await(stubs.Inspect.DescribeVmAsync(new DescribeVmRequest { Host = p.Host, Pid = p.Pid, Fd = p.Kvm })), StatusCode.InvalidArgument, "not a VM" },
        { "xsave of 4095", (stubs, p) => Await(stubs.Vcpu.SetXsaveAsync(new SetXsaveRequest { Host = p.Host, Pid = p.Pid, Fd = 4, Region = ByteString.CopyFrom(new byte[4095]) })), StatusCode.InvalidArgument, "4096" },
    };

    [Theory]
    [MemberData(nameof(Requests), DisableDiscoveryEnumeration = true)]
    public async Task MalformedRequest_IsRefusedByNameAndTheDaemonServesOn(string what, Func<VmmStubs, BareProcess, Task> call, StatusCode code, string named)
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        RpcException thrown = await Assert.ThrowsAsync<RpcException>(() => call(daemon.Stubs, process));
        Assert.True(thrown.StatusCode == code, $"{what}: {thrown.Status}");
        Assert.Contains(named, thrown.Status.Detail, StringComparison.Ordinal);
        Assert.NotNull(thrown.Trailers.GetValueBytes("grpc-status-details-bin"));
        Assert.Equal(0, (await process.Open("/dev/kvm")).Errno);
    }

    /// <summary>Numbers that the kernel refuses: RPC status OK, an errno, and nothing half changed.</summary>
    public static TheoryData<string, Func<BareProcess, SnpVm, Task<Outcome>>, string, string> Numbers => new()
    {
        { "unknown fd", async (p, _) => await p.SetAttributes(99, 0, 4096, 8), "EBADF", "vfs.fd-not-open" },
        { "negative fd", async (p, _) => await p.SetAttributes(-1, 0, 4096, 8), "EBADF", "vfs.fd-not-open" },
        { "gpa past the limit", async (p, vm) => await p.SetRegion(vm.Fd, new KvmUserspaceMemoryRegion2 { Slot = 3, GuestPhysAddr = 1UL << 48, MemorySize = 4096 }), "EINVAL", "kvm.memslot.max-gfn" },
        { "slot wraps", async (p, vm) => await p.SetRegion(vm.Fd, new KvmUserspaceMemoryRegion2 { Slot = 3, GuestPhysAddr = ulong.MaxValue - 4095, MemorySize = 8192 }), "EINVAL", "kvm.memslot.gpa-wrap" },
        { "2^63 pages in a slot", async (p, vm) => await p.SetRegion(vm.Fd, new KvmUserspaceMemoryRegion2 { Slot = 3, MemorySize = 0xffff_ffff_ffff_f000 }), "EINVAL", "kvm.memslot.userspace-addr" },
        { "2^31 pages in a slot", async (p, vm) => await p.SetRegion(vm.Fd, new KvmUserspaceMemoryRegion2 { Slot = 3, GuestPhysAddr = 1 << 30, MemorySize = 1UL << 43 }), "EINVAL", "kvm.memslot.size" },
        { "launch of 2^63 bytes", async (_, vm) => (await vm.Update(0, 1UL << 63, SnpPageType.Normal, uaddr: 0x10_0000)).Outcome, "EIO", "mm.not-mapped" },
        { "launch at the last gfn", async (_, vm) => (await vm.Update(ulong.MaxValue, 4096, SnpPageType.Zero)).Outcome, "EINVAL", "sev.snp.update.slot" },
        { "source wraps", async (_, vm) => (await vm.Update(0, 4096, SnpPageType.Normal, uaddr: 0xffff_ffff_ffff_f000)).Outcome, "EIO", "mm.not-mapped" },
        { "attributes wrap", async (p, vm) => await p.SetAttributes(vm.Fd, 0xffff_ffff_ffff_f000, 0x2000, 8), "EINVAL", "kvm.attributes.range" },
        { "type of firmware", async (_, vm) => (await vm.Update(0, 4096, SnpPageType.Vmsa, uaddr: 0x7f00_0000_0000)).Outcome, "EINVAL", "sev.snp.update.arguments" },
        { "bad sev_fd", async (_, vm) => (await (vm with { SevFd = 55 }).Update(0, 4096, SnpPageType.Zero)).Outcome, "EIO", "ccp.sev-fd" },
    };

    [Theory]
    [MemberData(nameof(Numbers), DisableDiscoveryEnumeration = true)]
    public async Task HostileNumber_IsAnErrnoAndChangesNothing(string what, Func<BareProcess, SnpVm, Task<Outcome>> call, string errno, string rule)
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await process.StartSnpVm();
        DescribeVmResponse before = await vm.Describe();
        Outcome outcome = await call(process, vm);
        Assert.True((outcome.ErrnoName, outcome.Causes[0].Rule) == (errno, rule), $"{what}: {outcome.Text} [{outcome.Causes[0].Rule}]");
        DescribeVmResponse after = await vm.Describe();
        // A launch update that fails in firmware leaves the pages that it allocated in the page cache, as the kernel does; they are not up to date.
        Assert.DoesNotContain(after.GuestMemfds.Single().Folios, folio => folio.Uptodate);
        after.GuestMemfds.Single().Folios.Clear();
        Assert.Equal(before, after);
    }

    [Fact]
    public async Task MessagePastTheLimit_IsResourceExhaustedAndTheDaemonServesOn()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        await using VmmConnection generous = VmmConnection.Connect(daemon.Address, new VmmConnectionOptions { MaxMessageBytes = 128 << 20 });
        var request = new WriteMemoryRequest { Host = process.Host, Pid = process.Pid, Content = new Content { Inline = ByteString.CopyFrom(new byte[65 << 20]) } };
        RpcException thrown = await Assert.ThrowsAsync<RpcException>(async () => await generous.Stubs.Processes.WriteMemoryAsync(request));
        Assert.Equal(StatusCode.ResourceExhausted, thrown.StatusCode);
        Assert.Equal(0, (await process.Open("/dev/kvm")).Errno);
    }

    private static async Task Await<T>(AsyncUnaryCall<T> call) => await call;
}
