using SimKvm.Kvm;
using SimMachine.Addressing;

namespace SimKvm.Userspace;

// MMU notifiers: a VM whose slots lie over this memory hears of every page that goes or is replaced, and takes it out of stage 2 (kvm_mmu_notifier_invalidate_range_start).
public sealed partial class UserMemory
{
    private readonly List<Vm> _vms = [];

    /// <summary>mmu_notifier_register: the VM's memory is this memory.</summary>
    internal void Register(Vm vm) => _vms.Add(vm);

    internal void Unregister(Vm vm) => _vms.Remove(vm);

    /// <summary>Pages of a file leave its page cache (unmap_mapping_range): where they are mapped, they are mapped no more.</summary>
    internal void NotifyFilePages(KTask current, KernelFile file, ulong start, ulong end)
    {
        foreach ((AddressRange range, Vma vma) in _vmas.Enumerate())
        {
            ulong pages = range.Length >> PageSize.Shift;
            ulong first = Math.Max(start, vma.FilePage), last = Math.Min(end, vma.FilePage + pages);
            if (vma.File == file && first < last)
            {
                Notify(current, range.Start + ((first - vma.FilePage) << PageSize.Shift), range.Start + ((last - vma.FilePage) << PageSize.Shift));
            }
        }
    }

    /// <summary>The frame that an access would reach as things are, without bringing anything about. Frame 0 stands for the zero page.</summary>
    internal bool TryPeek(ulong address, out Pfn pfn)
    {
        pfn = default;
        if (!_vmas.TryFind(address, out AddressRange range, out Vma? vma))
        {
            return false;
        }
        if (vma.File is not null)
        {
            return vma.File.TryPeek(vma.FilePage + ((address - range.Start) >> PageSize.Shift), out pfn);
        }
        pfn = new Pfn(_pages[address >> PageSize.Shift]);
        return true;
    }

    private void Notify(KTask current, ulong start, ulong end)
    {
        foreach (Vm vm in _vms)
        {
            vm.Mmu.InvalidateUserRange(current, start, end);
        }
    }
}
