using Grpc.Core;
using VmmService.Client;
using VmmService.Client.Launching;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>The client library's own promises: what throws, what an exception carries, what closes what.</summary>
public sealed class ClientLibraryTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = KernelNumbers.PAGE_SIZE;

    [Fact]
    public async Task Errno_Throws_AndTheReplyDoesNot()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        await using Kvm kvm = await process.OpenKvmAsync();

        KvmException thrown = await Assert.ThrowsAsync<KvmException>(async () => await kvm.CreateVmAsync(rawType: 31));
        CreateVmResponse reply = await kvm.CreateVmAsync(rawType: 31).Reply;

        Assert.Equal((22, "EINVAL", "KVM_CREATE_VM"), (thrown.Errno, thrown.ErrnoName, thrown.Operation));
        Assert.NotEmpty(thrown.Causes);
        Assert.Contains(thrown.Causes[0].Sentence, thrown.Message, StringComparison.Ordinal);
        Assert.Equal((22, thrown.Call + 1), (reply.Outcome.Errno, reply.Outcome.Call));
    }

    [Fact]
    public async Task LaunchUpdate_MaskedErrno_ShowsTheWholeChain()
    {
        await using Bench bench = await Bench.CreateAsync(daemon, pages: 2, pagesPerSlot: 2, isPrivate: false);

        KvmException thrown = await Assert.ThrowsAsync<KvmException>(() => bench.Update(0, 1));

        Assert.Equal("EIO", thrown.ErrnoName);
        Assert.Equal(["EINVAL", "EIO"], thrown.Causes.Select(cause => cause.Code));
        Assert.NotNull(thrown.FirmwareStatus);
        Assert.Contains("EINVAL", thrown.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task LaunchUpdate_AcrossSlots_IsRepeatedUntilAllIsDone()
    {
        await using Bench bench = await Bench.CreateAsync(daemon, pages: 6, pagesPerSlot: 2, isPrivate: true);
        List<ulong> progress = [];

        await bench.Update(0, 6, new Collect(progress));

        // The kernel stops at the end of each slot.
        Assert.Equal([2, 4, 6], progress);
        List<ulong> measured = [];
        await foreach (TranscriptRecord record in bench.Launch.Transcript())
            measured.Add(record.Gpa);
        Assert.Equal([0, Page, 2 * Page, 3 * Page, 4 * Page, 5 * Page], measured);
        Assert.Equal(96, (await bench.Launch.CurrentDigestAsync()).Length);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Upload_BeyondTheMapping_IsEfault(bool fromStream)
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        ulong addr = await process.MmapAsync(Page);
        // Several chunks, so that the daemon answers while there is more to send.
        byte[] content = new byte[5 << 20];

        KvmException thrown = await Assert.ThrowsAsync<KvmException>(
            () => fromStream ? process.UploadAsync(addr, new MemoryStream(content)) : process.UploadAsync(addr, content));

        Assert.Equal("EFAULT", thrown.ErrnoName);
    }

    [Fact]
    public async Task Upload_ThenRead_GivesTheSameBytes()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        byte[] content = TestInputs.Sha256Counter("upload", (3 << 20) + 5);
        ulong addr = await process.MmapAsync(4 << 20);

        long stored = await process.UploadAsync(addr + 1, new MemoryStream(content));
        ReadOnlyMemory<byte> loaded = await process.ReadAsync(addr + 1, (ulong)content.Length);

        Assert.Equal(content.Length, stored);
        Assert.True(loaded.Span.SequenceEqual(content));
    }

    [Fact]
    public async Task RefusedRequest_CarriesItsDetails()
    {
        VmmServiceException badField = await Assert.ThrowsAsync<VmmServiceException>(() => daemon.Connection.CreateHostAsync("K1"));
        VmmServiceException unknown = await Assert.ThrowsAsync<VmmServiceException>(() => daemon.Connection.GetHostAsync("no-such-host"));

        Assert.Equal(StatusCode.InvalidArgument, badField.StatusCode);
        Assert.Equal("profile", Assert.Single(badField.FieldViolations).Field);
        Assert.Equal((StatusCode.NotFound, "no-such-host"), (unknown.StatusCode, unknown.ResourceInfo?.ResourceName));
    }

    [Fact]
    public async Task NobodyListens_IsUnavailable_AndNamesTheAddress()
    {
        await using VmmConnection nobody = VmmConnection.Connect("unix:///nowhere/vmm.sock");

        VmmServiceException thrown = await Assert.ThrowsAsync<VmmServiceException>(() => nobody.GetCapabilitiesAsync());

        Assert.Equal(StatusCode.Unavailable, thrown.StatusCode);
        Assert.Contains("unix:///nowhere/vmm.sock", thrown.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("nonsense")]
    [InlineData("ftp://host/")]
    [InlineData("unix://")]
    public void Address_OfNoKnownKind_IsRefused(string address) => Assert.Throws<ArgumentException>(() => VmmConnection.Connect(address));

    [Fact]
    public async Task DisposedProcess_TakesItsHostAlong()
    {
        RemoteHost host = await daemon.Connection.CreateHostAsync(deleteWhenEmpty: true);
        RemoteProcess process = await host.CreateProcessAsync();

        await process.DisposeAsync();

        VmmServiceException gone = await Assert.ThrowsAsync<VmmServiceException>(() => host.GetStateAsync());
        Assert.Equal(StatusCode.NotFound, gone.StatusCode);
        await host.DisposeAsync();
    }

    [Fact]
    public async Task FailedLaunch_SaysWhichStep_AndClosesWhatItOpened()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        var image = Client.Launch.FirmwareImage.Parse(Client.Launch.SampleFirmware.Create(), Client.Launch.SampleFirmware.Name);
        var plan = Client.Launch.SnpLaunchPlan.Create(image, Client.Launch.VmmFlavor.Qemu, null, 1, Client.Launch.CpuModel.Find("EPYC-v4").Signature);

        LaunchException failed = await Assert.ThrowsAsync<LaunchException>(
            () => SnpLauncher.LaunchAsync(process, plan, new SnpLaunchOptions { Policy = 0 }));
        int next = await process.OpenAsync("/dev/kvm");

        Assert.Equal("start the launch", failed.Step);
        Assert.IsType<KvmException>(failed.InnerException);
        // The lowest descriptor is free again.
        await using RemoteProcess fresh = await host.CreateProcessAsync();
        Assert.Equal(await fresh.OpenAsync("/dev/kvm"), next);
    }

    [Fact]
    public async Task LaunchedGuest_OwnsItsDescriptors()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();
        var image = Client.Launch.FirmwareImage.Parse(Client.Launch.SampleFirmware.Create(), Client.Launch.SampleFirmware.Name);
        var plan = Client.Launch.SnpLaunchPlan.Create(image, Client.Launch.VmmFlavor.Qemu, null, 2, Client.Launch.CpuModel.Find("EPYC-v4").Signature);

        await using (LaunchedSnpGuest guest = await SnpLauncher.LaunchAsync(process, plan))
        {
            Assert.Equal("RUNNING", guest.Description.Sev.GuestState);
            Assert.Equal(plan.MeasuredSteps, (ulong)guest.Transcript.Count);
            Assert.True((await host.GetStateAsync()).AllocatedPages > 0);
        }

        Host after = await host.GetStateAsync();
        Assert.Equal(0ul, after.LeakedPages);
        Assert.Equal(0ul, after.Findings);
        Assert.NotEqual(0, (await process.CloseAsync(0).Reply).Outcome.Errno);
    }

    private sealed class Collect(List<ulong> values) : IProgress<ulong>
    {
        public void Report(ulong value) => values.Add(value);
    }

    // An SNP VM after LAUNCH_START, with slots of equal size side by side.
    private sealed class Bench(RemoteHost host, RemoteProcess process, SnpLaunch launch, ulong user) : IAsyncDisposable
    {
        public SnpLaunch Launch { get; } = launch;

        public static async Task<Bench> CreateAsync(Daemon daemon, ulong pages, ulong pagesPerSlot, bool isPrivate)
        {
            RemoteHost host = await daemon.Connection.CreateHostAsync();
            RemoteProcess process = await host.CreateProcessAsync();
            Kvm kvm = await process.OpenKvmAsync();
            Vm vm = await kvm.CreateVmAsync(VmType.Snp);
            SnpLaunch launch = vm.SnpLaunch(await process.OpenSevAsync());
            await launch.Init2Async();
            ulong user = await process.MmapAsync(pages * Page);
            for (ulong first = 0; first < pages; first += pagesPerSlot)
            {
                GuestMemfd memfd = await vm.CreateGuestMemfdAsync(pagesPerSlot * Page);
                await vm.SetUserMemoryRegion2Async(new KvmUserspaceMemoryRegion2
                {
                    Slot = (uint)(first / pagesPerSlot),
                    Flags = KernelNumbers.KVM_MEM_GUEST_MEMFD,
                    GuestPhysAddr = first * Page,
                    MemorySize = pagesPerSlot * Page,
                    UserspaceAddr = user + (first * Page),
                    GuestMemfd = (uint)memfd.Fd,
                });
            }

            if (isPrivate)
                await vm.SetMemoryAttributesAsync(0, pages * Page, KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE);
            await launch.StartAsync();
            return new Bench(host, process, launch, user);
        }

        public Task Update(ulong gfn, ulong pages, IProgress<ulong>? progress = null) => Launch.UpdateAsync(
            new KvmSevSnpLaunchUpdate { GfnStart = gfn, Uaddr = user + (gfn * Page), Len = pages * Page, Type = SnpPageType.Normal }, progress);

        public async ValueTask DisposeAsync()
        {
            await process.DisposeAsync();
            await host.DisposeAsync();
        }
    }
}
