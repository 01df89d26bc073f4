using System.Security.Cryptography;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Seeds;

/// <summary>
/// Seed 004, "Re: [RFC V1 PATCH 0/5] selftests: KVM: selftests for fd-based approach of supporting private memory", Michael Roth and Chao Peng, April 2022: how SEV puts its initial
/// payload into guest memory, and why a file that nobody may access gets in the way. First the flow of the mail on an ordinary SEV guest, then on the file of v5 and on what was
/// proposed instead.
/// </summary>
public sealed class Seed004SevInPlaceTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = GuestBench.Page;
    private const uint Inaccessible = 8;

    private static readonly byte[] Bios = GuestBench.Filled(4, 0xb1);

    // "allocate shared memory to back the guest and map it into guest address space; initialize shared memory with initialize memory contents (namely the BIOS); ask KVM to encrypt
    // these pages in-place and measure them to generate the initial measured payload for attestation".
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AnSevGuest_IsInitialisedInSharedMemory_ThenEncryptedAndMeasuredInPlace(bool es)
    {
        await using GuestBench bench = await GuestBench.CreateAsync(daemon, VmType.Default);
        await using Client.Vm vm = await bench.Kvm.CreateVmAsync(VmType.Default);
        SevLaunch launch = vm.SevLaunch(await bench.Process.OpenSevAsync());
        await launch.InitAsync(es);
        Client.Vcpu vcpu = await vm.CreateVcpuAsync(0);
        ulong uaddr = await bench.Process.MmapAsync(8 * Page);
        await vm.SetUserMemoryRegion2Async(GuestBench.Region(0, 0, 0, 8, uaddr));
        await bench.Process.WriteAsync(uaddr, Bios);

        await launch.StartAsync(policy: es ? 5u : 1u);
        await launch.UpdateDataAsync(uaddr, (uint)Bios.Length);

        // The host page is source and destination at once: what was the BIOS reads as ciphertext now, and the next page is as it was.
        Assert.NotEqual(Bios[..64], (await bench.Process.ReadAsync(uaddr, 64)).ToArray());
        Assert.Equal(new byte[64], (await bench.Process.ReadAsync(uaddr + (ulong)Bios.Length, 64)).ToArray());
        SevGuestStatusResponse status = await launch.GuestStatusAsync();
        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(Bios)), status.LaunchDigest);

        if (es)
            await launch.UpdateVmsaAsync();
        SevLaunchMeasureResponse measured = await launch.MeasureAsync();
        Assert.Equal((32, 16), (measured.Measure.Length, measured.Mnonce.Length));
        await launch.FinishAsync();

        // The guest sees its BIOS through the C-bit; through a shared mapping it sees what the host sees.
        await vcpu.LoadProgramAsync([Guest.Compare(0, Bios, access: GuestAccess.Private), Guest.Read(0, 64, GuestAccess.Shared), Guest.Halt()]);
        RunResponse run = await vcpu.RunAsync();
        Assert.False(run.Results[0].HasMismatchAt);
        Assert.Equal((await bench.Process.ReadAsync(uaddr, 64)).ToArray(), run.Results[1].Data.ToByteArray());
    }

    // "if VMM does it after we'd destroy the initial guest payload, since they'd be replaced by newly-allocated pages"
    [Fact]
    public async Task FallocateAfterTheLaunchUpdate_DestroysThePayload()
    {
        await using InaccessibleGuest guest = await InaccessibleGuest.Create(daemon, "UPM22");
        await guest.Process.WriteAsync(guest.Uaddr, Bios);
        await guest.Launch();
        Assert.Equal(HashOf(Bios[..(int)Page]), await guest.MeasuredContent());

        await guest.Fallocate();
        await guest.Finish();
        RunResponse run = await guest.Run(GhcbGuest.Pvalidate(0), Guest.Read(0, 16, GuestAccess.Private), Guest.Halt());
        Assert.NotEqual(Bios[..16], run.Results.Count > 1 ? run.Results[1].Data.ToByteArray() : []);
    }

    // "But if VMM does it before, VMM has no way to initialize the guest memory contents, since mmap()/pwrite() are disallowed due to MFD_INACCESSIBLE."
    [Fact]
    public async Task FallocateBeforeTheLaunchUpdate_LeavesNoWayToInitialiseTheContents()
    {
        await using InaccessibleGuest guest = await InaccessibleGuest.Create(daemon, "UPM22");
        await guest.Process.WriteAsync(guest.Uaddr, Bios);
        await guest.Fallocate();
        Assert.Equal("EPERM", await guest.Pwrite(Bios));
        Assert.Equal("EPERM", await guest.MmapFile());

        await guest.Launch();
        Assert.Equal(HashOf(new byte[Page]), await guest.MeasuredContent());
    }

    // "Maybe something like SHM_LOCK should be used instead of the aggressive MFD_INACCESSIBLE. Before VMM calling SHM_LOCK on the memfd, the content can be changed but after that
    // it's not visible to userspace VMM."
    [Fact]
    public async Task WithShmLock_TheContentCanBeChangedBefore_AndIsNotVisibleAfter()
    {
        await using InaccessibleGuest guest = await InaccessibleGuest.Create(daemon, "UPM22-shm_lock");
        Assert.Equal("", await guest.Pwrite(Bios));
        MemfdShmLockResponse locked = await daemon.Stubs.Processes.MemfdShmLockAsync(new MemfdShmLockRequest { Host = guest.Process.Host.Id, Pid = guest.Process.Pid, Fd = guest.File });
        Assert.Equal(0, locked.Outcome.Errno);
        Assert.Equal("EPERM", await guest.Pwrite(Bios));

        await guest.Launch();
        Assert.Equal(HashOf(Bios[..(int)Page]), await guest.MeasuredContent());
    }

    // "making pread()/pwrite() possible for private-fd-backed memory that's been flagged as "shareable" would work for this case. Although here the "shareable" flag could be removed
    // immediately upon successful completion of the SEV_LAUNCH_UPDATE firmware command."
    [Fact]
    public async Task WithShareablePages_TheContentIsWritten_AndTheFlagGoesWithTheLaunchUpdate()
    {
        await using InaccessibleGuest guest = await InaccessibleGuest.Create(daemon, "UPM22-shareable");
        Assert.Equal("EPERM", await guest.Pwrite(Bios));
        var shareable = new MemfdSetShareableRequest { Host = guest.Process.Host.Id, Pid = guest.Process.Pid, Fd = guest.File, Len = 2 * Page, Shareable = true };
        Assert.Equal(0, (await daemon.Stubs.Processes.MemfdSetShareableAsync(shareable)).Outcome.Errno);
        Assert.Equal("", await guest.Pwrite(Bios[..(int)(2 * Page)]));

        await guest.Launch();
        Assert.Equal(HashOf(Bios[..(int)Page]), await guest.MeasuredContent());
        Assert.Equal("EPERM", await guest.Pwrite(Bios[..16]));
    }

    // In place means that the VMM still maps the page. On SNP a store to it is the crash that seed 001 is about.
    [Fact]
    public async Task AStoreOfTheHostToALaunchedPage_IsAFinding_ThatNamesWhoAssignedIt()
    {
        await using InaccessibleGuest guest = await InaccessibleGuest.Create(daemon, "UPM22");
        await guest.Process.WriteAsync(guest.Uaddr, Bios);
        SnpLaunchUpdateResponse launched = await guest.Launch();

        WriteMemoryResponse stored = await guest.Process.WriteAsync(guest.Uaddr, new byte[] { 1 }).Reply;

        Finding finding = Assert.Single(stored.Outcome.Findings);
        Assert.Equal(("host-rmp-fault", stored.Outcome.Call), (finding.Kind, finding.Call));
        Assert.Contains(FormattableString.Invariant($"call {launched.Outcome.Call} "), finding.Blame[0], StringComparison.Ordinal);
        Assert.Contains(FormattableString.Invariant($"call {stored.Outcome.Call}, step {finding.Step}"), finding.Blame[1], StringComparison.Ordinal);
    }

    // "At any given time, a physical address can be private, shared, or invalid": and private to one guest only. Another guest with the same memory in a slot cannot use the page.
    [Fact]
    public async Task APageOfOneGuest_InASlotOfAnother_IsAFindingOfTheWrongAsid()
    {
        await using InaccessibleGuest guest = await InaccessibleGuest.Create(daemon, "UPM22");
        await guest.Process.WriteAsync(guest.Uaddr, Bios);
        SnpLaunchUpdateResponse launched = await guest.Launch();

        Client.Vm other = await guest.Kvm.CreateVmAsync(VmType.Snp);
        SnpLaunch launch = other.SnpLaunch(guest.Sev);
        await launch.Init2Async();
        await other.SetUserMemoryRegionAsync(new KvmUserspaceMemoryRegion { Slot = 0, GuestPhysAddr = 0, MemorySize = 2 * Page, UserspaceAddr = guest.Uaddr });
        Client.Vcpu vcpu = await other.CreateVcpuAsync(0);
        await launch.StartAsync();
        await launch.FinishAsync();
        await vcpu.LoadProgramAsync([Guest.Write(0, "mine"u8, GuestAccess.Shared), Guest.Halt()]);
        RunResponse run = await vcpu.RunAsync().Reply;

        Assert.Equal("EINTR", run.Outcome.ErrnoName);
        Finding finding = run.Outcome.Findings.Single(each => each.Kind == "rmp-wrong-owner");
        Assert.NotEqual(Operand(finding, "asid"), Operand(finding, "owner_asid"));
        Assert.Contains(FormattableString.Invariant($"call {launched.Outcome.Call} "), finding.Blame[0], StringComparison.Ordinal);
        Assert.Contains(FormattableString.Invariant($"call {run.Outcome.Call}, step {finding.Step}"), finding.Blame[1], StringComparison.Ordinal);
    }

    private static ulong Operand(Finding finding, string name) => finding.Operands.Single(operand => operand.Name == name).Value;

    private static string HashOf(byte[] content) => Convert.ToHexStringLower(SHA384.HashData(content));

    /// <summary>An SNP VM of v5's time whose private memory is an inaccessible memfd of two pages, with the launch started.</summary>
    private sealed class InaccessibleGuest(RemoteHost host, RemoteProcess process, Client.Kvm kvm, Client.Vm vm, SevDevice sev, SnpLaunch launch, Client.Vcpu vcpu, int file, ulong uaddr) : IAsyncDisposable
    {
        public RemoteProcess Process => process;

        public Client.Kvm Kvm => kvm;

        public SevDevice Sev => sev;

        public int File => file;

        public ulong Uaddr => uaddr;

        public static async Task<InaccessibleGuest> Create(Daemon daemon, string profile)
        {
            RemoteHost host = await daemon.Connection.CreateHostAsync(profile);
            RemoteProcess process = await host.CreateProcessAsync();
            Client.Kvm kvm = await process.OpenKvmAsync();
            SevDevice sev = await process.OpenSevAsync();
            Client.Vm vm = await kvm.CreateVmAsync(VmType.Snp);
            SnpLaunch launch = vm.SnpLaunch(sev);
            await launch.Init2Async();
            Outcome created = (await daemon.Stubs.Files.MemfdCreateAsync(new MemfdCreateRequest { Host = host.Id, Pid = process.Pid, Name = "guest", Flags = Inaccessible })).Outcome;
            int file = (int)created.Value;
            await daemon.Stubs.Files.FtruncateAsync(new FtruncateRequest { Host = host.Id, Pid = process.Pid, Fd = file, Length = (long)(2 * Page) });
            ulong uaddr = await process.MmapAsync(8 * Page);
            await vm.SetUserMemoryRegionAsync(
                new KvmUserspaceMemoryRegion { Slot = 0, Flags = 4, GuestPhysAddr = 0, MemorySize = 2 * Page, UserspaceAddr = uaddr, PrivateFd = (uint)file });
            Client.Vcpu vcpu = await vm.CreateVcpuAsync(0);
            await launch.StartAsync();
            return new InaccessibleGuest(host, process, kvm, vm, sev, launch, vcpu, file, uaddr);
        }

        public Task<SnpLaunchUpdateResponse> Launch() =>
            launch.UpdateOnceAsync(new KvmSevSnpLaunchUpdate { GfnStart = 0, Len = Page, Type = SnpPageType.Normal }).Reply;

        public async Task Finish() => await launch.FinishAsync();

        public async Task<RunResponse> Run(params GuestStep[] program)
        {
            await process.Connection.Stubs.SevLegacy.EncryptRegionAsync(new EncryptRegionRequest { Host = host.Id, Pid = process.Pid, Fd = vm.Fd, Addr = 0, Size = 2 * Page });
            await vcpu.LoadProgramAsync(program);
            return await vcpu.RunAsync().Reply;
        }

        public async Task<string> MeasuredContent()
        {
            await foreach (TranscriptRecord record in launch.Transcript())
                return record.ContentHash;
            return "";
        }

        public async Task Fallocate() => Assert.Equal(
            0, (await process.Connection.Stubs.GuestMemfd.FallocateAsync(new FallocateRequest { Host = host.Id, Pid = process.Pid, Fd = file, Len = (long)(2 * Page) })).Outcome.Errno);

        public async Task<string> Pwrite(byte[] content) => (await process.Connection.Stubs.Files.WriteAsync(
            new WriteRequest { Host = host.Id, Pid = process.Pid, Fd = file, Data = Google.Protobuf.ByteString.CopyFrom(content), Offset = 0 })).Outcome.ErrnoName;

        public async Task<string> MmapFile() => (await process.Connection.Stubs.Processes.MmapAsync(
            new MmapRequest { Host = host.Id, Pid = process.Pid, Length = Page, Prot = 3, Flags = KernelNumbers.MAP_SHARED, Fd = file })).Outcome.ErrnoName;

        public async ValueTask DisposeAsync()
        {
            await process.DisposeAsync();
            await host.DisposeAsync();
        }
    }
}
