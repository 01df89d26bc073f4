using System.Buffers.Binary;
using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;

namespace SimKvm.Tests.Historical;

/// <summary>What a VMM of the years before guest_memfd did: private files, extended slots, conversions, and a vCPU that shows what the guest sees.</summary>
internal sealed class HistoricalVm
{
    public const uint Inaccessible = 8;
    public const uint Allocate = 0;
    public const uint Hole = 3;

    private int _vcpu = -1;

    public HistoricalVm(TestHost host, VmType type = VmType.KVM_X86_SW_PROTECTED_VM)
    {
        Host = host;
        Vmm = host.Vmm;
        Vm = Vmm.CreateVm(type);
    }

    public TestHost Host { get; }

    public Vmm Vmm { get; }

    public TestVm Vm { get; }

    public Process Process => Vmm.Process;

    public int Vcpu => _vcpu < 0 ? _vcpu = Vm.CreateVcpu(0) : _vcpu;

    /// <summary>A private file of the profile's design, with its size set.</summary>
    public int CreatePrivateFile(ulong pages)
    {
        bool restricted = Host.Profile.PrivateMemory == Profiles.PrivateMemoryDesign.RestrictedMem;
        int fd = Vmm.Must(restricted ? Process.MemfdRestricted(0) : Process.MemfdCreate("guest", Inaccessible));
        Vmm.Must(Process.Ftruncate(fd, (long)(pages * Vmm.Page)));
        return fd;
    }

    /// <summary>KVM_SET_USER_MEMORY_REGION with KVM_MEM_PRIVATE and as many bytes of argument as the profile reads.</summary>
    public CallReport TryAddPrivateSlot(uint slot, ulong gpa, ulong pages, int fd, ulong offset = 0, ulong uaddr = 0, uint flags = KvmMem.PRIVATE, int? bytes = null)
    {
        byte[] argument = new byte[Math.Max(bytes ?? (int)Host.Profile.ExtendedRegionBytes, 44)];
        var region = new kvm_userspace_memory_region_ext
        {
            slot = slot,
            flags = flags,
            guest_phys_addr = gpa,
            memory_size = pages * Vmm.Page,
            userspace_addr = uaddr,
            private_offset = offset,
            private_fd = unchecked((uint)fd),
        };
        MemoryMarshal.Write(argument, region);
        return Process.Ioctl(Vm.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION, bytes is null ? argument : argument.AsMemory(0, bytes.Value));
    }

    public void AddPrivateSlot(uint slot, ulong gpa, ulong pages, int fd, ulong offset = 0, ulong uaddr = 0) => Vmm.Must(TryAddPrivateSlot(slot, gpa, pages, fd, offset, uaddr));

    /// <summary>KVM_SET_USER_MEMORY_REGION with size 0.</summary>
    public void DeleteSlot(uint slot)
    {
        var region = new kvm_userspace_memory_region { slot = slot };
        Vmm.Must(Vmm.Ioctl(Vm.Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION, ref region));
    }

    /// <summary>A region becomes private or shared: KVM_MEMORY_ENCRYPT_REG_REGION, UNREG_REGION.</summary>
    public CallReport TrySetRegion(ulong gpa, ulong size, bool isPrivate)
    {
        var region = new kvm_enc_region { addr = gpa, size = size };
        return Vmm.Ioctl(Vm.Fd, isPrivate ? KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION : KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION, ref region);
    }

    public void SetRegion(ulong gpa, ulong pages, bool isPrivate) => Vmm.Must(TrySetRegion(gpa, pages * Vmm.Page, isPrivate));

    public CallReport Fallocate(int fd, uint mode, ulong firstPage, ulong pages) =>
        Process.Fallocate(fd, mode, (long)(firstPage * Vmm.Page), (long)(pages * Vmm.Page));

    /// <summary>The guest does these steps and halts.</summary>
    public GuestExit Run(params GuestStep[] program)
    {
        Process.LoadGuestProgram(Vcpu, [.. program, new GuestHalt()]);
        return Resume();
    }

    /// <summary>KVM_RUN where the guest stopped.</summary>
    public GuestExit Resume()
    {
        CallReport report = Process.Ioctl(Vcpu, KvmIoctl.KVM_RUN, 0);
        return new GuestExit(report, Process.TakeGuestProgress(Vcpu)!);
    }

    /// <summary>A byte that the guest loads.</summary>
    public byte Load(ulong gpa, GuestAccess access)
    {
        GuestExit exit = Run(new GuestRead(gpa, 1, access));
        return exit.Report.Succeeded && exit.Reason == KvmExit.KVM_EXIT_HLT
            ? exit.Results[0].Data.Span[0]
            : throw new InvalidOperationException($"{exit.Report.Errno}, {exit.Reason}: {string.Join("; ", exit.Report.Causes)}");
    }

    public void Store(ulong gpa, byte value, GuestAccess access)
    {
        GuestExit exit = Run(new GuestWrite(gpa, new[] { value }, access));
        if (!exit.Report.Succeeded || exit.Reason != KvmExit.KVM_EXIT_HLT)
        {
            throw new InvalidOperationException($"{exit.Report.Errno}, {exit.Reason}: {string.Join("; ", exit.Report.Causes)}");
        }
    }

    /// <summary>A hypercall from 64-bit kernel mode; RAX.</summary>
    public ulong Call(ulong nr, ulong a0, ulong a1, ulong a2) => Run(new GuestHypercall(nr, a0, a1, a2, 0, LongMode: true, Cpl: 0)).Results[0].Rax;
}

/// <summary>How KVM_RUN ended, and what it left in the run page.</summary>
internal sealed record GuestExit(CallReport Report, GuestProgress Progress)
{
    public KvmExit Reason => (KvmExit)BinaryPrimitives.ReadUInt32LittleEndian(Progress.Run.Span[8..]);

    public IReadOnlyList<GuestStepResult> Results => Progress.Results;

    public ulong FaultFlags => BinaryPrimitives.ReadUInt64LittleEndian(Progress.Run.Span[32..]);

    public ulong FaultGpa => BinaryPrimitives.ReadUInt64LittleEndian(Progress.Run.Span[40..]);

    public ulong FaultSize => BinaryPrimitives.ReadUInt64LittleEndian(Progress.Run.Span[48..]);
}
