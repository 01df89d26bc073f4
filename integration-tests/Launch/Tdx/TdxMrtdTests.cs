using System.Text.Json;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using Vcpu = VmmService.Client.Vcpu;
using VmType = VmmService.V1.VmType;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>
/// The MRTDs of tdx-vectors.json, each by launching a TD over gRPC: the TDX module measures what KVM_TDX_INIT_MEM_REGION adds. Sequences of single SEAMCALLs, which no ioctl makes,
/// are the module's own tests.
/// </summary>
public sealed class TdxMrtdTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong PageSize = 4096;

    public static TheoryData<string> Vectors => [.. TdxScenarios.Mrtds.Where(IsOfRegions).Select(vector => vector.GetProperty("id").GetString()!)];

    [Theory]
    [MemberData(nameof(Vectors))]
    public async Task Launch_OverGrpc_GivesTheMrtd(string id)
    {
        JsonElement vector = TdxScenarios.Mrtds.Single(each => each.GetProperty("id").GetString() == id);
        JsonElement[] regions = [.. vector.GetProperty("ops").EnumerateArray()];
        bool perRegion = regions.Any(region => region.TryGetProperty("order", out JsonElement order) && order.GetString() == "per_region");
        await using RemoteHost host = await daemon.Connection.CreateHostAsync(perRegion ? "TDX24" : "K72", 1, new MachineConfig { Platform = Platform.IntelTdx });
        await using RemoteProcess process = await host.CreateProcessAsync();
        await using Vm vm = await (await process.OpenKvmAsync()).CreateVmAsync(VmType.Tdx);
        TdxLaunch launch = vm.TdxLaunch();
        Vcpu vcpu = await Prepare(vm, launch);

        var slots = new Dictionary<ulong, (GuestMemfd Memfd, uint Slot)>();
        foreach (JsonElement region in regions)
        {
            await Add(vm, launch, vcpu, region, slots);
        }

        Assert.Equal(vector.GetProperty("mrtd").GetString(), await launch.FinalizeVmAsync());
    }

    private static bool IsOfRegions(JsonElement vector) => vector.GetProperty("ops").EnumerateArray().All(op => op.GetProperty("op").GetString() == "region");

    // 52 bits of guest addresses, so that every vector's gpa is private.
    private static async Task<Vcpu> Prepare(Vm vm, TdxLaunch launch)
    {
        await vm.EnableCapAsync(new KvmEnableCap { Cap = (uint)KernelNumbers.KVM_CAP_SPLIT_IRQCHIP, Args = { 24 } });
        await launch.InitVmAsync(new KvmTdxInitVm { Attributes = 1 << 28, Xfam = 3, Cpuid = { new KvmCpuidEntry2 { Function = 0x8000_0008, Eax = 52 << 16 } } });
        Vcpu vcpu = await vm.CreateVcpuAsync(0);
        await vcpu.SetCpuid2Async(await launch.GetCpuidAsync(vcpu));
        await launch.InitVcpuAsync(vcpu, 0);
        return vcpu;
    }

    private static async Task Add(Vm vm, TdxLaunch launch, Vcpu vcpu, JsonElement region, Dictionary<ulong, (GuestMemfd Memfd, uint Slot)> slots)
    {
        ulong gpa = TdxScenarios.Number(region, "gpa"), pages = TdxScenarios.Number(region, "pages");
        if (slots.TryGetValue(gpa, out (GuestMemfd Memfd, uint Slot) before))
        {
            await before.Memfd.PunchHoleAsync(0, (long)(pages * PageSize));
        }
        else
        {
            GuestMemfd memfd = await vm.CreateGuestMemfdAsync(pages * PageSize);
            slots.Add(gpa, (memfd, (uint)slots.Count));
            await vm.SetUserMemoryRegion2Async(new KvmUserspaceMemoryRegion2
            {
                Slot = slots[gpa].Slot,
                Flags = KernelNumbers.KVM_MEM_GUEST_MEMFD,
                GuestPhysAddr = gpa,
                MemorySize = pages * PageSize,
                GuestMemfd = (uint)memfd.Fd,
            });
            await vm.SetMemoryAttributesAsync(gpa, pages * PageSize, KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE);
        }
        byte[] content = TdxScenarios.Content(region.GetProperty("content"), (int)(pages * PageSize));
        var whole = new KvmTdxInitMemRegion { Gpa = gpa, NrPages = pages };
        await launch.InitMemRegionAsync(vcpu, whole, region.GetProperty("measure").GetBoolean(), new Content { Inline = Google.Protobuf.ByteString.CopyFrom(content) });
    }
}
