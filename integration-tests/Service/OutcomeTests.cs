using Grpc.Core;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Service;

/// <summary>An errno is an outcome: what a refused call says, and how it says it.</summary>
public sealed class OutcomeTests(Daemon daemon) : IClassFixture<Daemon>
{
    [Fact]
    public async Task LaunchUpdate_PageNotPrivate_IsEinvalInsideEioOutside()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await process.StartSnpVm();
        await process.SetAttributes(vm.Fd, 0x10000, 0x1000, 0);

        SnpLaunchUpdateResponse refused = await vm.Update(0x10, 4096, SnpPageType.Normal, SnpVm.Page(1));

        Assert.Equal("EIO", refused.Outcome.ErrnoName);
        Assert.Equal(0u, refused.Sev.Error);
        Cause root = refused.Outcome.Causes[0];
        Assert.Equal(("kvm.gmem.populate.gfn-not-private", "EINVAL"), (root.Rule, root.Code));
        Assert.Equal(["gpa=0x10000", "gfn=0x10", "slot=0", "attributes=0x0"], root.Operands.Select(operand => $"{operand.Name}={operand.Text}"));
        Assert.Contains("KVM_SET_MEMORY_ATTRIBUTES", root.Advice, StringComparison.Ordinal);
        Assert.Equal(("sev.snp.update.populate", "EIO"), (refused.Outcome.Causes[^1].Rule, refused.Outcome.Causes[^1].Code));
        Assert.Contains("0x10000", refused.Outcome.Text, StringComparison.Ordinal);
        Assert.Equal(4096ul, refused.Update.Len);
    }

    [Fact]
    public async Task LaunchUpdate_SamePageTwice_IsEexistInsideAndChangesNoDigest()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await process.StartSnpVm();
        await vm.Update(0, 4096, SnpPageType.Normal, SnpVm.Page(1));
        string digest = (await vm.Describe()).Sev.LaunchDigest;

        SnpLaunchUpdateResponse refused = await vm.Update(0, 4096, SnpPageType.Normal, SnpVm.Page(1));

        Assert.Equal(("EIO", "EEXIST"), (refused.Outcome.ErrnoName, refused.Outcome.Causes[0].Code));
        Assert.Equal(digest, (await vm.Describe()).Sev.LaunchDigest);
    }

    [Fact]
    public async Task LaunchUpdate_SourceNotMapped_IsEfaultInside()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await process.StartSnpVm();
        SnpLaunchUpdateResponse refused = await vm.Update(0, 4096, SnpPageType.Normal, uaddr: 0x5000);
        Assert.Equal(("EIO", "EFAULT", "mm.not-mapped"), (refused.Outcome.ErrnoName, refused.Outcome.Causes[0].Code, refused.Outcome.Causes[0].Rule));
    }

    [Fact]
    public async Task LaunchUpdate_SourceNotAligned_IsRefusedByK72AndTakenByK616()
    {
        await using BareProcess newer = await BareProcess.Start(daemon.Stubs);
        SnpLaunchUpdateResponse refused = await (await newer.StartSnpVm()).Update(0, 4096, SnpPageType.Normal, uaddr: 0x7f00_0000_0008);
        Assert.Equal(("EINVAL", "sev.snp.update.source-alignment"), (refused.Outcome.ErrnoName, refused.Outcome.Causes[0].Rule));

        await using BareProcess older = await BareProcess.Start(daemon.Stubs, "K616");
        SnpVm vm = await older.StartSnpVm();
        ulong address = (await daemon.Stubs.Processes.MmapAsync(new MmapRequest { Host = older.Host, Pid = older.Pid, Length = 8192, Prot = 3, Flags = 0x22 })).Addr;
        Assert.Equal(0, (await vm.Update(0, 4096, SnpPageType.Normal, uaddr: address + 8)).Outcome.Errno);
    }

    [Fact]
    public async Task LaunchUpdate_AfterFinish_SaysTheFirmwaresStatus()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await process.StartSnpVm();
        SnpLaunchFinishResponse finished = await daemon.Stubs.Sev.SnpLaunchFinishAsync(new SnpLaunchFinishRequest
        {
            Host = process.Host,
            Pid = process.Pid,
            Fd = vm.Fd,
            SevFd = vm.SevFd,
        });
        Assert.Equal(0, finished.Outcome.Errno);
        SnpLaunchUpdateResponse refused = await vm.Update(0, 4096, SnpPageType.Zero);
        Assert.Equal(("EIO", 2u, "INVALID_GUEST_STATE"), (refused.Outcome.ErrnoName, refused.Sev.Error, refused.Sev.ErrorName));
        Assert.Equal("psp.guest-state", refused.Outcome.Causes[0].Rule);
    }

    [Fact]
    public async Task ErrnoAsStatus_TurnsAnErrnoIntoFailedPreconditionWithTheOutcome()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        var metadata = new Metadata { { "vmm-errno-as", "status" } };
        var request = new CheckExtensionRequest { Host = process.Host, Pid = process.Pid, Fd = 99, Cap = 3 };

        RpcException thrown = await Assert.ThrowsAsync<RpcException>(async () => await daemon.Stubs.Kvm.CheckExtensionAsync(request, metadata));

        Assert.Equal(StatusCode.FailedPrecondition, thrown.StatusCode);
        Google.Rpc.Status details = Google.Rpc.Status.Parser.ParseFrom(thrown.Trailers.GetValueBytes("grpc-status-details-bin"));
        Outcome outcome = details.Details.Single().Unpack<Outcome>();
        Assert.Equal("EBADF", outcome.ErrnoName);
        Assert.Equal(thrown.Status.Detail, outcome.Text);
    }

    [Fact]
    public async Task ErrnoAsStatus_UnknownValue_IsRefusedWithTheKnownOnes()
    {
        RpcException thrown = await Assert.ThrowsAsync<RpcException>(async () =>
            await daemon.Stubs.Hosts.ListHostsAsync(new ListHostsRequest(), new Metadata { { "vmm-errno-as", "exception" } }));
        Assert.Equal(StatusCode.InvalidArgument, thrown.StatusCode);
        Assert.Contains("'outcome' or 'status'", thrown.Status.Detail, StringComparison.Ordinal);
    }

    [Fact]
    public async Task RawIoctl_GivesWhatTheTypedRpcGives()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.SwProtected);
        byte[] region = new byte[160];
        region[0] = 1;
        BitConverter.GetBytes(0x1001ul).CopyTo(region, 8);
        BitConverter.GetBytes(0x1000ul).CopyTo(region, 16);

        RawIoctlResponse raw = await daemon.Stubs.Processes.RawIoctlAsync(new RawIoctlRequest
        {
            Host = process.Host,
            Pid = process.Pid,
            Fd = vm,
            Request = 0x40A0AE49,
            Data = Google.Protobuf.ByteString.CopyFrom(region),
        });
        Outcome typed = await process.SetRegion(vm, new KvmUserspaceMemoryRegion2 { Slot = 1, GuestPhysAddr = 0x1001, MemorySize = 0x1000 });

        Assert.Equal(typed.Text, raw.Outcome.Text);
        Assert.Equal(typed.Causes[0].Rule, raw.Outcome.Causes[0].Rule);
        Assert.Equal("kvm.memslot.gpa-alignment", typed.Causes[0].Rule);
    }

    [Fact]
    public async Task RawIoctl_ShorterThanTheStructure_FaultsAsAtTheEndOfAMapping()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.SwProtected);
        RawIoctlResponse raw = await daemon.Stubs.Processes.RawIoctlAsync(new RawIoctlRequest
        {
            Host = process.Host,
            Pid = process.Pid,
            Fd = vm,
            Request = 0x40A0AE49,
            Data = Google.Protobuf.ByteString.CopyFrom(new byte[159]),
        });
        Assert.Equal(("EFAULT", "uaccess.copy-from-user"), (raw.Outcome.ErrnoName, raw.Outcome.Causes[0].Rule));
    }

    [Theory]
    [InlineData(3, 0xAE99u, "EINVAL")]
    [InlineData(4, 0xAE99u, "ENOTTY")]
    [InlineData(5, 0xAE99u, "EINVAL")]
    [InlineData(6, 0xAE99u, "ENOTTY")]
    [InlineData(4, 0x40A1AE49u, "ENOTTY")]
    public async Task RawIoctl_UnknownNumber_AnswersAsTheKindOfFdDoesAndIsCounted(int fd, uint request, string errno)
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.SwProtected);
        await daemon.Stubs.Vm.CreateVcpuAsync(new CreateVcpuRequest { Host = process.Host, Pid = process.Pid, Fd = vm });
        await process.CreateGuestMemfd(vm, 4096);

        Outcome outcome = (await daemon.Stubs.Processes.RawIoctlAsync(new RawIoctlRequest { Host = process.Host, Pid = process.Pid, Fd = fd, Request = request })).Outcome;

        Assert.Equal((errno, "ioctl.unknown"), (outcome.ErrnoName, outcome.Causes[0].Rule));
        CapabilitiesResponse capabilities = await daemon.Stubs.Capabilities.CapabilitiesAsync(new CapabilitiesRequest());
        Assert.Contains(capabilities.UnknownIoctls, unknown => unknown.Request == request && unknown.Count > 0);
    }

    [Fact]
    public async Task SameCallsOnTwoHosts_GiveTheSameReplies()
    {
        async Task<string> RunAll()
        {
            await using BareProcess process = await BareProcess.Start(daemon.Stubs);
            SnpVm vm = await process.StartSnpVm();
            SnpLaunchUpdateResponse update = await vm.Update(0, 8192, SnpPageType.Unmeasured, SnpVm.Page(7, 2));
            SnpLaunchUpdateResponse refused = await vm.Update(1, 4096, SnpPageType.Secrets, SnpVm.Page(0));
            return $"{update} {refused} {await vm.Describe()}";
        }

        Assert.Equal(await RunAll(), await RunAll());
    }
}
