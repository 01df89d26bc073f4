using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Addressing;

namespace SimKvm.Kvm;

internal sealed partial class MemoryAttributes
{
    /// <summary>
    /// KVM_SET_MEMORY_ATTRIBUTES of UPM v10 (kvm_vm_ioctl_set_mem_attributes, 2022-12): the structure goes both ways, and after success it holds what is left, which is
    /// nothing, behind the end of the range. kvm->lock guards the store, not slots_lock, and the invalidation begins whether or not a slot is there.
    /// </summary>
    /// <remarks>
    /// The kernel stores gfn by gfn and stops where memory for the map runs out, which is the partial progress that the structure is for; the map never runs out here.
    /// Number, direction and write-back are UNVERIFIED against a tree; they are those of the posted patch.
    /// </remarks>
    public Errno SetV10(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_memory_attributes args);
        if (errno == Errno.OK)
        {
            errno = Check(current, args);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        GfnRange range = GfnRange.FromBytes(args.address, args.size);
        using (vm.Mmu.Lock.Enter(current))
        {
            vm.Mmu.InvalidateBegin(current);
            vm.Mmu.InvalidateRangeAdd(current, range);
        }
        using (vm.Lock.Enter(current))
        {
            Store(current, range, args.attributes);
        }
        using (vm.Srcu.EnterShared(current))
        using (vm.Mmu.Lock.Enter(current))
        {
            vm.Mmu.Unmap(current, range);
            vm.Mmu.InvalidateEnd(current);
        }
        args.address += args.size;
        args.size = 0;
        return arg.CopyOut(current, args);
    }
}
