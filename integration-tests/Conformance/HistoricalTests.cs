using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>The designs before guest_memfd, and pKVM, as a client sees them.</summary>
public sealed class HistoricalTests(Daemon daemon) : IClassFixture<Daemon>
{
    // KVM_EXIT_MEMORY_FAULT of UPM v8 to v10 and of the 2023 RFC.
    private const uint MemoryFault = 38;

    [Fact]
    public async Task Upm_PrivateAccessToASharedPage_IsMemoryFaultUntilTheRegionIsRegistered()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs, "UPM22");
        int vm = await process.CreateVm(VmType.SwProtected);
        int fd = (int)(await MemfdCreate(process, 8)).Value;
        Assert.Equal(0, (await AddPrivateSlot(process, vm, fd)).Errno);
        int vcpu = await Vcpu(process, vm, new GuestStep { Read = new GuestRead { Gpa = 0x1000, Length = 1, Access = GuestAccess.Private } });

        RunResponse run = await Run(process, vcpu);
        Assert.Equal((0, MemoryFault, 1ul, 0x1000ul), (run.Outcome.Errno, run.Run.ExitReason, run.Run.MemoryFault.Flags, run.Run.MemoryFault.Gpa));

        EncryptRegionResponse registered = await process.Stubs.SevLegacy.EncryptRegionAsync(
            new EncryptRegionRequest { Host = process.Host, Pid = process.Pid, Fd = vm, Addr = 0x1000, Size = 0x1000 });
        Assert.Equal(0, registered.Outcome.Errno);
        // The state agrees now; the file has no size, so no page either, and these kernels try for ever.
        run = await Run(process, vcpu);
        Assert.Equal(("EINTR", "kvm.private-file.size"), (run.Outcome.ErrnoName, run.Outcome.Causes[0].Rule));
    }

    [Theory]
    [InlineData("UPM22", 10u, "EINVAL")]
    [InlineData("UPM22", 8u, "")]
    [InlineData("K72", 8u, "")]
    public async Task MemfdCreate_Inaccessible(string profile, uint flags, string errno)
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs, profile);
        Assert.Equal(errno, (await MemfdCreate(process, flags)).ErrnoName);
    }

    [Fact]
    public async Task RestrictedMem_AttributesComeBackWithWhatIsLeft()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs, "RM22");
        int vm = await process.CreateVm(VmType.SwProtected);
        MemfdRestrictedResponse file = await process.Stubs.Processes.MemfdRestrictedAsync(new MemfdRestrictedRequest { Host = process.Host, Pid = process.Pid });
        Assert.Equal(0, (await AddPrivateSlot(process, vm, (int)file.Outcome.Value)).Errno);
        GetSupportedMemoryAttributesResponse supported = await process.Stubs.Vm.GetSupportedMemoryAttributesAsync(
            new GetSupportedMemoryAttributesRequest { Host = process.Host, Pid = process.Pid, Fd = vm });
        Assert.Equal(8ul, supported.Attributes);
        SetMemoryAttributesResponse set = await process.Stubs.Vm.SetMemoryAttributesAsync(new SetMemoryAttributesRequest
        {
            Host = process.Host,
            Pid = process.Pid,
            Fd = vm,
            Attributes = new KvmMemoryAttributes { Address = 0x1000, Size = 0x2000, Attributes = 8 },
        });
        Assert.Equal((0, 0x3000ul, 0ul), (set.Outcome.Errno, set.Attributes.Address, set.Attributes.Size));
    }

    [Fact]
    public async Task GuestMemfdRfc_TypedCallsUseTheNumbersOf2023()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs, "GM23");
        int vm = await process.CreateVm(VmType.SwProtected);
        int memfd = await process.CreateGuestMemfd(vm, 1 << 20);
        Assert.Equal(0, (await process.SetRegion(vm, new KvmUserspaceMemoryRegion2 { Flags = 4, MemorySize = 1 << 20, GuestMemfd = (uint)memfd })).Errno);
        Assert.Equal(0, (await process.SetAttributes(vm, 0, 0x1000, 8)).Errno);
        int vcpu = await Vcpu(process, vm, new GuestStep { Write = new GuestWrite { Gpa = 0, Data = Google.Protobuf.ByteString.CopyFrom(1) } }, new GuestStep { Halt = new GuestHalt() });
        Assert.Equal("KVM_EXIT_HLT", (await Run(process, vcpu)).Run.ExitReasonName);
    }

    [Fact]
    public async Task Pkvm_TheGuestsPageIsNotTheHosts_UntilItIsShared()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs, "K72", new MachineConfig { Platform = Platform.ArmPkvm });
        int vm = await process.CreateVm(VmType.ArmProtected);
        ulong addr = (await daemon.Stubs.Processes.MmapAsync(new MmapRequest { Host = process.Host, Pid = process.Pid, Length = 8192, Prot = 3, Flags = 0x22 })).Addr;
        Assert.Equal(0, (await process.SetRegion(vm, new KvmUserspaceMemoryRegion2 { MemorySize = 8192, UserspaceAddr = addr })).Errno);
        int vcpu = await Vcpu(
            process, vm,
            new GuestStep { Write = new GuestWrite { Gpa = 0, Data = Google.Protobuf.ByteString.CopyFrom(0x5a) } },
            new GuestStep { Halt = new GuestHalt() },
            new GuestStep { Hypercall = new GuestHypercall { Nr = 0xC6000003 } },
            new GuestStep { Halt = new GuestHalt() });

        Assert.Equal("KVM_EXIT_HLT", (await Run(process, vcpu)).Run.ExitReasonName);
        ReadMemoryResponse read = await Read(process, addr);
        Assert.Equal(("EFAULT", "mm.owned-by-guest"), (read.Outcome.ErrnoName, read.Outcome.Causes[0].Rule));

        RunResponse shared = await Run(process, vcpu);
        Assert.Equal(0ul, shared.Results[0].Rax);
        Assert.Equal(0x5a, (await Read(process, addr)).Data[0]);
        DescribeVmResponse described = await process.Stubs.Inspect.DescribeVmAsync(new DescribeVmRequest { Host = process.Host, Pid = process.Pid, Fd = vm });
        Assert.Equal(VmType.ArmProtected, described.Type);
    }

    private static async Task<Outcome> MemfdCreate(BareProcess process, uint flags) =>
        (await process.Stubs.Files.MemfdCreateAsync(new MemfdCreateRequest { Host = process.Host, Pid = process.Pid, Name = "guest", Flags = flags })).Outcome;

    private static async Task<Outcome> AddPrivateSlot(BareProcess process, int vm, int fd) => (await process.Stubs.Vm.SetUserMemoryRegionAsync(new SetUserMemoryRegionRequest
    {
        Host = process.Host,
        Pid = process.Pid,
        Fd = vm,
        Region = new KvmUserspaceMemoryRegion { Flags = 4, MemorySize = 1 << 20, PrivateFd = (uint)fd },
    })).Outcome;

    private static async Task<int> Vcpu(BareProcess process, int vm, params GuestStep[] program)
    {
        int vcpu = (int)(await process.Stubs.Vm.CreateVcpuAsync(new CreateVcpuRequest { Host = process.Host, Pid = process.Pid, Fd = vm })).Outcome.Value;
        var load = new LoadGuestProgramRequest { Host = process.Host, Pid = process.Pid, Fd = vcpu };
        load.Steps.AddRange(program);
        await process.Stubs.Vcpu.LoadGuestProgramAsync(load);
        return vcpu;
    }

    private static async Task<RunResponse> Run(BareProcess process, int vcpu) =>
        await process.Stubs.Vcpu.RunAsync(new RunRequest { Host = process.Host, Pid = process.Pid, Fd = vcpu });

    private static async Task<ReadMemoryResponse> Read(BareProcess process, ulong addr) =>
        await process.Stubs.Processes.ReadMemoryAsync(new ReadMemoryRequest { Host = process.Host, Pid = process.Pid, Addr = addr, Length = 1 });
}
