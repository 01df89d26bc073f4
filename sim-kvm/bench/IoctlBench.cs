using System.Runtime.InteropServices;
using BenchmarkDotNet.Attributes;
using SimKvm.Abi;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine;

namespace SimKvm.Bench;

/// <summary>Nanoseconds of a simulated ioctl, all checks, locks and steps included. The baseline does next to nothing: what it costs is the way in and out.</summary>
public class IoctlBench
{
    private const ulong SlotGpa = 1UL << 30;

    private readonly SimHost _host = new(KernelProfiles.K72, new MachineConfig(), seed: 1);
    private readonly byte[] _makePrivate = new byte[32];
    private readonly byte[] _makeShared = new byte[32];
    private readonly byte[] _create = new byte[64];
    private readonly byte[] _slot = new byte[160];
    private readonly byte[] _deleteSlot = new byte[160];
    private Process _process = null!;
    private int _vm;

    [GlobalSetup]
    public void Setup()
    {
        _process = _host.StartProcess();
        int kvm = (int)_process.Open("/dev/kvm").Value;
        _vm = (int)_process.Ioctl(kvm, KvmIoctl.KVM_CREATE_VM, (ulong)VmType.KVM_X86_SW_PROTECTED_VM).Value;
        MemoryMarshal.Write(_makePrivate, new kvm_memory_attributes { address = 0, size = 1UL << 40, attributes = kvm_memory_attributes.PRIVATE });
        MemoryMarshal.Write(_makeShared, new kvm_memory_attributes { address = 0, size = 1UL << 40 });
        MemoryMarshal.Write(_create, new kvm_create_guest_memfd { size = 1UL << 30 });
        var region = new kvm_userspace_memory_region2 { slot = 1, guest_phys_addr = SlotGpa, memory_size = 1UL << 30 };
        MemoryMarshal.Write(_slot, region);
        region.memory_size = 0;
        MemoryMarshal.Write(_deleteSlot, region);
    }

    [GlobalCleanup]
    public void Cleanup() => _host.Dispose();

    [Benchmark(Baseline = true, Description = "KVM_CHECK_EXTENSION")]
    public long CheckExtension() => _process.Ioctl(_vm, KvmIoctl.KVM_CHECK_EXTENSION, KvmCap.VM_TYPES).Value;

    [Benchmark(Description = "KVM_SET_MEMORY_ATTRIBUTES 1 TiB, there and back (2 ioctls)")]
    public void SetAttributes()
    {
        _process.Ioctl(_vm, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, _makePrivate);
        _process.Ioctl(_vm, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, _makeShared);
    }

    [Benchmark(Description = "KVM_CREATE_GUEST_MEMFD 1 GiB and close")]
    public void CreateAndCloseGuestMemfd() => _process.Close((int)_process.Ioctl(_vm, KvmIoctl.KVM_CREATE_GUEST_MEMFD, _create).Value);

    [Benchmark(Description = "KVM_SET_USER_MEMORY_REGION2, add and delete (2 ioctls)")]
    public void AddAndDeleteSlot()
    {
        _process.Ioctl(_vm, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, _slot);
        _process.Ioctl(_vm, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, _deleteSlot);
    }
}
