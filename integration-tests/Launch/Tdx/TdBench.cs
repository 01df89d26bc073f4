using System.Runtime.InteropServices;
using SimKvm.Abi;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using Vcpu = VmmService.Client.Vcpu;
using VmType = VmmService.V1.VmType;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>The setup of a scenario over gRPC: a VM on an Intel host, and what the scenario's words make of it (scenario_macros of the vectors).</summary>
internal sealed class TdBench : IAsyncDisposable
{
    private const ulong Unmapped = 0x1234_5000;

    private TdBench(RemoteHost host, RemoteProcess process)
    {
        Host = host;
        Process = process;
    }

    public RemoteHost Host { get; }

    public RemoteProcess Process { get; }

    public Vm Vm { get; private set; } = null!;

    public TdxLaunch Launch => Vm.TdxLaunch();

    public List<Vcpu> Vcpus { get; } = [];

    /// <summary>Addresses and formulas of the sources, by name.</summary>
    public Dictionary<string, (ulong Address, string Formula, int Pages)> Sources { get; } = [];

    public static async Task<TdBench> Start(Daemon daemon, string profile, IEnumerable<string> setup)
    {
        RemoteHost host = await daemon.Connection.CreateHostAsync(profile, 1, new MachineConfig { Platform = Platform.IntelTdx });
        var bench = new TdBench(host, await host.CreateProcessAsync());
        foreach (string word in setup)
        {
            await bench.Do(word);
        }
        return bench;
    }

    public async Task Do(string words)
    {
        string[] word = words.Split(' ');
        switch (word[0])
        {
            case "td_vm":
                await CreateVm(VmType.Tdx);
                await Vm.EnableCapAsync(Cap(KernelNumbers.KVM_CAP_SPLIT_IRQCHIP, 24));
                break;
            case "td_vm_no_irqchip":
                await CreateVm(VmType.Tdx);
                break;
            case "KVM_CREATE_VM":
                await CreateVm(VmType.Default);
                break;
            case "init_vm":
                Success(await InitVm());
                break;
            case "init_vm_ve":
                Success(await InitVm(attributes: 0));
                break;
            case "KVM_CREATE_VCPU":
                Vcpus.Add(await Vm.CreateVcpuAsync(TdxScenarios.Number(word[2])));
                break;
            case "vcpu0" or "vcpu1":
                await AddVcpu(x2apic: true);
                break;
            case "vcpu0_no_x2apic":
                await AddVcpu(x2apic: false);
                break;
            case "init_vcpu0" or "init_vcpu1":
                await Launch.InitVcpuAsync(Vcpus[word[0][^1] - '0'], 0x80_9000);
                break;
            case "gmem":
                await AddMemory(TdxScenarios.Number(word[1]), TdxScenarios.Number(word[2]));
                break;
            case "private":
                await Vm.SetMemoryAttributesAsync(TdxScenarios.Number(word[1]), TdxScenarios.Number(word[2]) * 4096, KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE);
                break;
            case "source":
                await AddSource(word);
                break;
            case "signal":
                await Process.RaiseSignalAsync();
                break;
            case "KVM_SET_TSC_KHZ":
                await Vm.SetTscKhzAsync(TdxScenarios.Number(word[1]));
                break;
            case "KVM_ENABLE_CAP":
                await Vm.EnableCapAsync(Cap(KernelNumbers.KVM_CAP_EXIT_HYPERCALL, TdxScenarios.Number(word[2])));
                break;
            case "KVM_TDX_FINALIZE_VM":
                await Launch.FinalizeVmAsync();
                break;
            default:
                throw new InvalidOperationException($"no setup '{words}'");
        }
    }

    /// <summary>KVM_TDX_INIT_VM by the bytes of its structure, so that every field can be wrong.</summary>
    public async Task<(Outcome Outcome, kvm_tdx_cmd Cmd)> InitVm(
        ulong attributes = 0x1000_0000, ulong xfam = 3, kvm_cpuid_entry2[]? cpuid = null, uint flags = 0, uint? nent = null, uint padding = 0, bool reserved = false)
    {
        cpuid ??= [new kvm_cpuid_entry2 { function = 0x8000_0008, eax = 0x30_0000 }];
        var init = new kvm_tdx_init_vm { attributes = attributes, xfam = xfam, cpuid = new kvm_cpuid2 { nent = nent ?? (uint)cpuid.Length, padding = padding } };
        SetReserved(ref init, reserved ? 1UL : 0);
        byte[] bytes = [.. MemoryMarshal.AsBytes(new ReadOnlySpan<kvm_tdx_init_vm>(in init)), .. MemoryMarshal.AsBytes(cpuid.AsSpan())];
        ulong address = await Process.MmapAsync(5 * 4096);
        await Process.WriteAsync(address, bytes);
        (Outcome outcome, kvm_tdx_cmd cmd) = await Command(Vm, TdxCmdId.KVM_TDX_INIT_VM, flags, address);
        await Process.MunmapAsync(address, 5 * 4096);
        return (outcome, cmd);
    }

    /// <summary>KVM_MEMORY_ENCRYPT_OP by number.</summary>
    public static async Task<(Outcome Outcome, kvm_tdx_cmd Cmd)> Command(RemoteFd fd, TdxCmdId id, uint flags, ulong? data = null, ulong hwError = 0)
    {
        var cmd = new kvm_tdx_cmd { id = (uint)id, flags = flags, data = data ?? Unmapped, hw_error = hwError };
        RawIoctlResponse reply = await fd.RawIoctlAsync(KvmIoctl.KVM_MEMORY_ENCRYPT_OP, MemoryMarshal.AsBytes([cmd]).ToArray()).Reply;
        return (reply.Outcome, MemoryMarshal.Read<kvm_tdx_cmd>(reply.Data.Span));
    }

    /// <summary>"S+0x1000", or a number.</summary>
    public ulong Address(string text)
    {
        string[] parts = text.Split('+');
        return Sources.TryGetValue(parts[0], out var source) ? source.Address + (parts.Length > 1 ? TdxScenarios.Number(parts[1]) : 0) : TdxScenarios.Number(text);
    }

    public async Task MapPage(string name, int page)
    {
        (ulong address, string formula, int pages) = Sources[name];
        ulong at = address + ((ulong)page * 4096);
        await Process.MmapAsync(new MmapRequest
        {
            Addr = at,
            Length = 4096,
            Prot = KernelNumbers.PROT_READ | KernelNumbers.PROT_WRITE,
            Flags = KernelNumbers.MAP_PRIVATE | KernelNumbers.MAP_ANONYMOUS | KernelNumbers.MAP_FIXED,
            Fd = -1,
        });
        await Process.WriteAsync(at, TdxScenarios.Affine(formula, pages * 4096).AsMemory(page * 4096, 4096));
    }

    public async ValueTask DisposeAsync()
    {
        await Process.DisposeAsync();
        await Host.DisposeAsync();
    }

    private static unsafe void SetReserved(ref kvm_tdx_init_vm init, ulong value) => init.reserved[11] = value;

    private static KvmEnableCap Cap(ulong cap, ulong arg) => new() { Cap = (uint)cap, Args = { arg } };

    private static void Success((Outcome Outcome, kvm_tdx_cmd) answer) => Assert.True(answer.Outcome.Errno == 0, answer.Outcome.Text);

    private async Task CreateVm(VmType type) => Vm = await (await Process.OpenKvmAsync()).CreateVmAsync(type);

    private async Task AddVcpu(bool x2apic)
    {
        Vcpu vcpu = await Vm.CreateVcpuAsync((ulong)Vcpus.Count);
        Vcpus.Add(vcpu);
        await vcpu.SetCpuid2Async(
        [
            new KvmCpuidEntry2 { Function = 1, Ecx = x2apic ? 1u << 21 : 0 }, new KvmCpuidEntry2 { Function = 0x8000_0000, Eax = 0x8000_0008 },
            new KvmCpuidEntry2 { Function = 0x8000_0008, Eax = 0x3034 },
        ]);
    }

    private async Task AddMemory(ulong gpa, ulong pages)
    {
        GuestMemfd memfd = await Vm.CreateGuestMemfdAsync(pages * 4096);
        await Vm.SetUserMemoryRegion2Async(new KvmUserspaceMemoryRegion2
        {
            Flags = KernelNumbers.KVM_MEM_GUEST_MEMFD,
            GuestPhysAddr = gpa,
            MemorySize = pages * 4096,
            UserspaceAddr = await Process.MmapAsync(pages * 4096),
            GuestMemfd = (uint)memfd.Fd,
        });
    }

    // source NAME PAGES FORMULA [with page K unmapped]
    private async Task AddSource(string[] word)
    {
        int pages = (int)TdxScenarios.Number(word[2]);
        ulong address = await Process.MmapAsync((ulong)pages * 4096);
        await Process.WriteAsync(address, TdxScenarios.Affine(word[3], pages * 4096));
        Sources.Add(word[1], (address, word[3], pages));
        if (word.Length > 4)
        {
            await Process.MunmapAsync(address + (TdxScenarios.Number(word[6]) * 4096), 4096);
        }
    }
}
