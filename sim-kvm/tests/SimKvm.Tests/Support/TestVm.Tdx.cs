using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimKvm.Vendors.Intel;
using SimMachine;
using SimMachine.Intel;

namespace SimKvm.Tests.Support;

/// <summary>What a TDX command left: its report, kvm_tdx_cmd.hw_error, and the command's structure.</summary>
internal readonly record struct TdxReply<T>(CallReport Report, ulong HwError, T Data);

// The commands of a TDX launch.
internal sealed partial class TestVm
{
    public const ulong TdAttributes = 0x1000_0000;
    private const uint SplitRoutes = 24;

    /// <summary>A machine with the TDX module.</summary>
    public static MachineConfig IntelMachine(TdxModuleConfig? tdx = null) => new() { Platform = Platform.IntelTdx, Sev = false, Tdx = tdx ?? new TdxModuleConfig() };

    public TdxBackend TdxBackend => (TdxBackend)Kernel.Backend;

    public TdxModule TdxModule => Vmm.Host.Machine.Tdx;

    public TdSummary Td => TdxModule.Describe(TdxBackend.Tdr)!;

    /// <summary>MRTD, or what it is so far, in hex.</summary>
    public string Mrtd => Convert.ToHexStringLower(Td.Mrtd);

    public TestVm SplitIrqchip()
    {
        Vmm.Must(TryEnableCap(KvmCap.SPLIT_IRQCHIP, 0, SplitRoutes));
        return this;
    }

    /// <summary>KVM_MEMORY_ENCRYPT_OP of a TD, on its VM fd or a vCPU's.</summary>
    public CallReport TryTdx(int fd, ref kvm_tdx_cmd cmd) => Vmm.Ioctl(fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, ref cmd);

    public TdxReply<T> TryTdx<T>(int fd, TdxCmdId id, T data, uint flags = 0, ulong? dataAddress = null, ulong hwError = 0)
        where T : unmanaged
    {
        ulong address = dataAddress ?? Scratch;
        if (dataAddress is null)
        {
            Vmm.Store(address, data);
        }
        var cmd = new kvm_tdx_cmd { id = (uint)id, flags = flags, data = address, hw_error = hwError };
        CallReport report = TryTdx(fd, ref cmd);
        return new TdxReply<T>(report, cmd.hw_error, dataAddress is null ? Vmm.Load<T>(address) : data);
    }

    public TdxReply<kvm_tdx_init_vm> TryTdxInitVm(ulong attributes = TdAttributes, ulong xfam = 3, uint flags = 0, params kvm_cpuid_entry2[] cpuid)
    {
        cpuid = cpuid.Length > 0 ? cpuid : [new kvm_cpuid_entry2 { function = 0x8000_0008, eax = 0x30_0000 }];
        var init = new kvm_tdx_init_vm { attributes = attributes, xfam = xfam, cpuid = new kvm_cpuid2 { nent = (uint)cpuid.Length } };
        Vmm.Store(Scratch + (ulong)Marshal.SizeOf<kvm_tdx_init_vm>(), MemoryMarshal.AsBytes(cpuid.AsSpan()).ToArray());
        return TryTdx(Fd, TdxCmdId.KVM_TDX_INIT_VM, init, flags);
    }

    public void TdxInitVm(ulong attributes = TdAttributes, params kvm_cpuid_entry2[] cpuid) => Vmm.Must(TryTdxInitVm(attributes, cpuid: cpuid).Report);

    /// <summary>The CPUID that a TD's vCPU needs: x2APIC, and guest addresses of 52 bits.</summary>
    public void SetTdCpuid(int vcpu, bool x2apic = true)
    {
        kvm_cpuid_entry2[] entries =
        [
            new() { function = 1, ecx = x2apic ? 1u << 21 : 0 }, new() { function = 0x8000_0000, eax = 0x8000_0008 }, new() { function = 0x8000_0008, eax = 0x3034 },
        ];
        byte[] bytes = [.. MemoryMarshal.AsBytes([new kvm_cpuid2 { nent = (uint)entries.Length }]), .. MemoryMarshal.AsBytes(entries.AsSpan())];
        Vmm.Must(Vmm.Process.Ioctl(vcpu, KvmIoctl.KVM_SET_CPUID2, bytes));
    }

    public CallReport TryTdxInitVcpu(int vcpu, ulong rcx = 0x80_9000, uint flags = 0)
    {
        var cmd = new kvm_tdx_cmd { id = (uint)TdxCmdId.KVM_TDX_INIT_VCPU, flags = flags, data = rcx };
        return TryTdx(vcpu, ref cmd);
    }

    /// <summary>A vCPU that is ready to run once the TD is.</summary>
    public TestGuest AddTdVcpu(ulong id = 0)
    {
        var guest = new TestGuest(this, id);
        SetTdCpuid(guest.Fd);
        Vmm.Must(TryTdxInitVcpu(guest.Fd));
        return guest;
    }

    public TdxReply<kvm_tdx_init_mem_region> TryTdxRegion(int vcpu, ulong source, ulong gpa, ulong pages, uint flags = kvm_tdx_init_mem_region.MEASURE) =>
        TryTdx(vcpu, TdxCmdId.KVM_TDX_INIT_MEM_REGION, new kvm_tdx_init_mem_region { source_addr = source, gpa = gpa, nr_pages = pages }, flags);

    public void TdxRegion(int vcpu, ulong source, ulong gpa, ulong pages) => Vmm.Must(TryTdxRegion(vcpu, source, gpa, pages).Report);

    public TdxReply<ulong> TryTdxFinalize() => TryTdx(Fd, TdxCmdId.KVM_TDX_FINALIZE_VM, 0UL);

    public void TdxFinalize() => Vmm.Must(TryTdxFinalize().Report);
}

internal static class TdGuests
{
    /// <summary>A TDCALL; its registers after it.</summary>
    public static TdcallRegisters Tdcall(this TestGuest guest, TdcallLeaf leaf, TdcallRegisters registers)
    {
        CallReport run = guest.Run(new GuestTdcall(registers with { Rax = (ulong)leaf }), new GuestHalt());
        return run.Succeeded && guest.Results is [{ Registers: { } after }, ..]
            ? after
            : throw new InvalidOperationException($"{leaf} ended with {run.Errno}, exit {guest.ExitReason} ({string.Join("; ", run.Causes)})");
    }

    public static ulong Accept(this TestGuest guest, ulong gpa) => guest.Tdcall(TdcallLeaf.TDG_MEM_PAGE_ACCEPT, new TdcallRegisters { Rcx = gpa }).Rax;
}
