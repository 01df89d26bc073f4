using SimKvm.Abi;
using SimKvm.Auditing;
using SimKvm.Kvm;
using SimKvm.Profiles;
using SimKvm.Userspace;

namespace SimKvm.Tests.Support;

/// <summary>A VM and the ioctls on it, with the structures filled in. Names without Try must succeed.</summary>
internal sealed partial class TestVm
{
    public const ulong Private = kvm_memory_attributes.PRIVATE;

    public TestVm(Vmm vmm, int fd)
    {
        Vmm = vmm;
        Fd = fd;
        vmm.Process.Files.TryGet(fd, out KernelFile? file);
        Kernel = ((VmFile)file!).Vm;
    }

    public Vmm Vmm { get; }

    public int Fd { get; }

    /// <summary>The kernel's object, for what no call tells.</summary>
    public Vm Kernel { get; }

    /// <summary>mmu_invalidate_seq</summary>
    public ulong Seq => Kernel.Mmu.Seq;

    public VmDescription Describe() => TryDescribe() ?? throw new InvalidOperationException("the VM fd is closed");

    public VmDescription? TryDescribe() => VmDescription.Of(Vmm.Process, Fd);

    public CallReport TrySetRegion2(ref kvm_userspace_memory_region2 region) => Vmm.Ioctl(Fd, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, ref region);

    public CallReport TrySetRegion2(
        uint slot, uint flags, ulong gpa, ulong pages, ulong uaddr = 0, int gmem = -1, ulong offset = 0)
    {
        var region = new kvm_userspace_memory_region2
        {
            slot = slot,
            flags = flags,
            guest_phys_addr = gpa,
            memory_size = pages * Vmm.Page,
            userspace_addr = uaddr,
            guest_memfd_offset = offset,
            guest_memfd = unchecked((uint)gmem),
        };
        return TrySetRegion2(ref region);
    }

    /// <summary>A slot of ordinary memory.</summary>
    public void AddSlot(uint slot, ulong gpa, ulong pages, ulong uaddr = 0, uint flags = 0) => Vmm.Must(TrySetRegion2(slot, flags, gpa, pages, uaddr));

    /// <summary>A slot with guest_memfd.</summary>
    public void AddGmemSlot(uint slot, ulong gpa, ulong pages, int gmem, ulong offset = 0, ulong uaddr = 0) =>
        Vmm.Must(TrySetRegion2(slot, KvmMem.GUEST_MEMFD, gpa, pages, uaddr, gmem, offset));

    public CallReport TryDeleteSlot(uint slot) => TrySetRegion2(slot, 0, 0, 0);

    public void DeleteSlot(uint slot) => Vmm.Must(TryDeleteSlot(slot));

    public CallReport TrySetAttributes(ulong address, ulong size, ulong attributes, ulong flags = 0)
    {
        var args = new kvm_memory_attributes { address = address, size = size, attributes = attributes, flags = flags };
        bool rfc = Vmm.Host.Profile.PrivateMemory == PrivateMemoryDesign.GuestMemfdRfc;
        return Vmm.Ioctl(Fd, rfc ? KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES_RFC : KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, ref args);
    }

    public void SetPrivate(ulong gpa, ulong pages) => Vmm.Must(TrySetAttributes(gpa, pages * Vmm.Page, Private));

    public void SetShared(ulong gpa, ulong pages) => Vmm.Must(TrySetAttributes(gpa, pages * Vmm.Page, 0));

    public CallReport TryCreateGmem(ulong size, ulong flags = 0)
    {
        var args = new kvm_create_guest_memfd { size = size, flags = flags };
        return Vmm.Ioctl(Fd, KvmIoctl.KVM_CREATE_GUEST_MEMFD, ref args);
    }

    public int CreateGmem(ulong pages, ulong flags = 0) => Vmm.Must(TryCreateGmem(pages * Vmm.Page, flags));

    public CallReport TryCreateVcpu(ulong id) => Vmm.Ioctl(Fd, KvmIoctl.KVM_CREATE_VCPU, id);

    public int CreateVcpu(ulong id) => Vmm.Must(TryCreateVcpu(id));

    public CallReport TryEnableCap(ulong cap, uint flags, ulong args0)
    {
        var args = new kvm_enable_cap { cap = (uint)cap, flags = flags, args0 = args0 };
        return Vmm.Ioctl(Fd, KvmIoctl.KVM_ENABLE_CAP, ref args);
    }

    public long CheckExtension(ulong cap) => Vmm.Must(Vmm.Ioctl(Fd, KvmIoctl.KVM_CHECK_EXTENSION, cap));

    /// <summary>KVM_MEMORY_ENCRYPT_OP; the command's structure stands in user memory, as it must.</summary>
    public SevReply<T> TrySev<T>(SevCmdId id, T data, int? sevFd = null, uint error = 0, ulong? dataAddress = null)
        where T : unmanaged
    {
        ulong address = dataAddress ?? Scratch;
        if (dataAddress is null)
        {
            Vmm.Store(address, data);
        }
        var cmd = new kvm_sev_cmd { id = (uint)id, data = address, error = error, sev_fd = unchecked((uint)(sevFd ?? Vmm.Sev)) };
        CallReport report = Vmm.Ioctl(Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, ref cmd);
        return new SevReply<T>(report, cmd.error, dataAddress is null ? Vmm.Load<T>(address) : data);
    }

    // One page of the process for all command structures.
    private ulong Scratch => _scratch == 0 ? _scratch = Vmm.Map(1) : _scratch;

    private ulong _scratch;
}

/// <summary>What a memory-encrypt ioctl left: its report, kvm_sev_cmd.error, and the command's structure.</summary>
internal readonly record struct SevReply<T>(CallReport Report, uint Error, T Data);
