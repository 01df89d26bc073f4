using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Intel;

namespace SimKvm.Tests.Tdx;

/// <summary>The simulated kernel on the other side of <see cref="TdxModel"/>: the same calls as system calls.</summary>
internal sealed class TdxRun
{
    private const ulong Gpa = 0x10_0000;
    private const ulong Page = Vmm.Page;
    private const int SourcePages = 4;

    private readonly TestVm _vm;
    private readonly int _gmem;
    private readonly ulong _source;
    private readonly ulong _scratch;
    private readonly List<TestGuest> _vcpus = [];

    public TdxRun(TestHost host)
    {
        Vmm vmm = host.Vmm;
        _vm = vmm.CreateVm(VmType.KVM_X86_TDX_VM);
        _gmem = _vm.CreateGmem(TdxModel.PagesWithSlot);
        _vm.AddGmemSlot(0, Gpa, TdxModel.PagesWithSlot, _gmem, uaddr: vmm.Map(TdxModel.PagesWithSlot));
        // The page behind the source is not mapped.
        _source = vmm.Map(SourcePages + 1);
        Vmm.Must(vmm.Process.Munmap(_source + (SourcePages * Page), Page));
        for (int i = 0; i < SourcePages; i++)
        {
            vmm.Store(_source + ((ulong)i * Page), Enumerable.Range(0, (int)Page).Select(at => (byte)((at * (i + 3)) + i)).ToArray());
        }
        _scratch = vmm.Map(4);
    }

    public string Mrtd => _vm.Mrtd;

    public static ulong GpaOf(int page) => Gpa + ((ulong)page * Page);

    /// <summary>The page that a region of this operation takes its content from.</summary>
    public byte[] Content(TdxOp op, int place) => _vm.Vmm.Load(SourceOf(op) + ((ulong)place * Page), (int)Page);

    public TdxAnswer Do(TdxOp op)
    {
        switch (op.Do)
        {
            case TdxDo.SplitIrqchip:
                return _vm.TryEnableCap(KvmCap.SPLIT_IRQCHIP, 0, 24).Errno;
            case TdxDo.Capabilities:
                _vm.Vmm.Store(_scratch + 2048, (uint)op.Count);
                return Command(_vm.Fd, TdxCmdId.KVM_TDX_CAPABILITIES, op).Errno;
            case TdxDo.InitVm:
                StoreInitVm(op);
                return Command(_vm.Fd, TdxCmdId.KVM_TDX_INIT_VM, op);
            case TdxDo.UnknownOnVm:
                return Command(_vm.Fd, TdxCmdId.KVM_TDX_INIT_VCPU, op with { HwError = 0 }).Errno;
            case TdxDo.FinalizeVm:
                return Command(_vm.Fd, TdxCmdId.KVM_TDX_FINALIZE_VM, op);
            case TdxDo.CreateVcpu:
                return CreateVcpu(op);
            case TdxDo.SetAttribute:
                return _vm.TrySetAttributes(GpaOf(op.Page), Page, op.IsOn ? TestVm.Private : 0).Errno;
            case TdxDo.PunchHole:
                return _vm.Vmm.Process.Fallocate(_gmem, 3, (long)((ulong)op.Page * Page), (long)Page).Errno;
            default:
                return OnVcpu(op, _vcpus[op.Vcpu]);
        }
    }

    private TdxAnswer OnVcpu(TdxOp op, TestGuest vcpu)
    {
        switch (op.Do)
        {
            case TdxDo.SetCpuid:
                return TrySetCpuid(vcpu.Fd, op.IsOn);
            case TdxDo.InitVcpu:
                return Command(vcpu.Fd, TdxCmdId.KVM_TDX_INIT_VCPU, op with { BadData = false }).Errno;
            case TdxDo.InitMemRegion:
                return InitMemRegion(op, vcpu);
            case TdxDo.GetCpuid:
                _vm.Vmm.Store(_scratch, new kvm_cpuid2 { nent = (uint)op.Count });
                return Command(vcpu.Fd, TdxCmdId.KVM_TDX_GET_CPUID, op).Errno;
            case TdxDo.UnknownOnVcpu:
                return Command(vcpu.Fd, TdxCmdId.KVM_TDX_FINALIZE_VM, op).Errno;
            case TdxDo.BadPointerOnVcpu:
                return _vm.Vmm.Ioctl(vcpu.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, Vmm.Unmapped).Errno;
            case TdxDo.PreFault:
                return vcpu.TryPreFault(GpaOf(op.Page), 1).Errno;
            case TdxDo.GuestRead:
                return vcpu.Run(TestGuest.Fetch(GpaOf(op.Page)), new GuestHalt()).Errno;
            default:
                CallReport run = vcpu.Run(new GuestTdcall(new TdcallRegisters { Rax = (ulong)TdcallLeaf.TDG_MEM_PAGE_ACCEPT, Rcx = GpaOf(op.Page) }), new GuestHalt());
                return new TdxAnswer(run.Errno, Rax: run.Succeeded ? vcpu.Results[0].Rax : null);
        }
    }

    private TdxAnswer InitMemRegion(TdxOp op, TestGuest vcpu)
    {
        var region = new kvm_tdx_init_mem_region { source_addr = SourceOf(op), gpa = GpaOf(op.Page) | op.GpaBits, nr_pages = op.Count };
        _vm.Vmm.Store(_scratch, region);
        Errno errno = Command(vcpu.Fd, TdxCmdId.KVM_TDX_INIT_MEM_REGION, op).Errno;
        kvm_tdx_init_mem_region left = _vm.Vmm.Load<kvm_tdx_init_mem_region>(_scratch);
        ulong done = region.nr_pages - left.nr_pages;
        bool advanced = left.gpa == region.gpa + (done * Page) && left.source_addr == region.source_addr + (done * Page);
        return new TdxAnswer(errno, Left: advanced ? left.nr_pages : ulong.MaxValue);
    }

    private ulong SourceOf(TdxOp op) => op.Source switch
    {
        TdxSource.Mapped => _source,
        TdxSource.MappedThenNot => _source + ((SourcePages - 1) * Page),
        TdxSource.Null => 0,
        TdxSource.Unaligned => _source + 8,
        _ => Vmm.Unmapped,
    };

    private TdxAnswer Command(int fd, TdxCmdId id, TdxOp op)
    {
        var cmd = new kvm_tdx_cmd { id = (uint)id, flags = id == TdxCmdId.KVM_TDX_FINALIZE_VM ? 0 : op.Flags, data = op.BadData ? Vmm.Unmapped : _scratch, hw_error = op.HwError };
        CallReport report = _vm.TryTdx(fd, ref cmd);
        return new TdxAnswer(report.Errno, cmd.hw_error);
    }

    private TdxAnswer CreateVcpu(TdxOp op)
    {
        CallReport created = _vm.TryCreateVcpu((ulong)op.Vcpu);
        if (created.Succeeded)
        {
            _vcpus.Add(TestGuest.OnFd(_vm, (int)created.Value));
        }
        return created.Errno;
    }

    private Errno TrySetCpuid(int fd, bool x2apic)
    {
        kvm_cpuid_entry2[] entries = [new() { function = 1, ecx = x2apic ? 1u << 21 : 0 }];
        byte[] bytes = [.. MemoryMarshal.AsBytes([new kvm_cpuid2 { nent = 1 }]), .. MemoryMarshal.AsBytes(entries.AsSpan())];
        return _vm.Vmm.Process.Ioctl(fd, KvmIoctl.KVM_SET_CPUID2, bytes).Errno;
    }

    private void StoreInitVm(TdxOp op)
    {
        var width = new kvm_cpuid_entry2 { function = 0x8000_0008, eax = op.Cpuid switch { TdxCpuidList.Width52 => 0x34_0000u, TdxCpuidList.Width47 => 0x2f_0000, _ => 0x30_0000 } };
        kvm_cpuid_entry2[] entries = op.Cpuid switch
        {
            TdxCpuidList.Empty => [],
            TdxCpuidList.UnknownLeaf => [width, new() { function = 2 }],
            TdxCpuidList.Duplicate => [width, width],
            TdxCpuidList.Tsx => [width, new() { function = 7, flags = 1, ebx = 1 << 4 }],
            _ => [width],
        };
        var init = new kvm_tdx_init_vm { attributes = op.Attributes, xfam = op.Xfam, cpuid = new kvm_cpuid2 { nent = (uint)entries.Length, padding = op.Padding } };
        _vm.Vmm.Store(_scratch, init);
        _vm.Vmm.Store(_scratch + (ulong)Marshal.SizeOf<kvm_tdx_init_vm>(), MemoryMarshal.AsBytes(entries.AsSpan()).ToArray());
    }
}
