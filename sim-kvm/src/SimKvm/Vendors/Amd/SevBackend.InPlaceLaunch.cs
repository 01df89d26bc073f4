using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Kvm.Historical;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Measurement;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// The launch update of seed 004: the payload is encrypted and measured where it lies in guest memory, as KVM_SEV_LAUNCH_UPDATE does it, so somebody must have put it there. Which
// page that is depends on the private file. Has it the page, then that one, which the VMM could not write to; has it not, then the page of user memory, which is not the
// guest's any more once the file is allocated.
internal sealed partial class SevBackend
{
    public static readonly Rule InPlaceNoSlot = new(
        "sev.in-place.slot", "no slot has the page", "sev_launch_update, seed 004", "create a slot over the gpa", "gpa");

    public static readonly Rule InPlaceNoPage = new(
        "sev.in-place.page", "neither the private file nor user memory has the page to encrypt", "sev_launch_update: sev_pin_memory, seed 004",
        "put the payload into user memory at the slot's userspace_addr, or fallocate the private file", "gpa", "uaddr");

    // Pages of user memory that were launched: pinned until the VM dies, as SEV pins them.
    private readonly List<Pfn> _launchedUserPages = [];

    private Errno SnpLaunchUpdateInPlace(KTask current, ref kvm_sev_cmd cmd, kvm_sev_snp_launch_update update, SnpPageType type)
    {
        using var slots = Vm.SlotsLock.Enter(current);
        ulong pages = update.len >> PageSize.Shift;
        ulong done = 0;
        Errno errno = Errno.OK;
        while (done < pages && errno == Errno.OK)
        {
            errno = LaunchInPlace(current, new Gfn(update.gfn_start + done), type, ref cmd);
            done += errno == Errno.OK ? 1UL : 0;
        }
        if (errno != Errno.OK && done == 0)
        {
            return current.Fail(Errno.EIO, PopulateFailed, update.gfn_start, update.gfn_start << PageSize.Shift, update.len, cmd.error);
        }
        update.gfn_start += done;
        update.len -= done << PageSize.Shift;
        return UserArg.FromValue(cmd.data).CopyOut(current, update);
    }

    private Errno LaunchInPlace(KTask current, Gfn gfn, SnpPageType type, ref kvm_sev_cmd cmd)
    {
        ulong gpa = gfn.ToGpa().Value;
        if (Vm.Memslots.Find(gfn) is not { } slot)
        {
            return current.Fail(Errno.EINVAL, InPlaceNoSlot, gpa);
        }
        ulong index = gfn.Value - slot.BaseGfn + slot.PrivatePgoff;
        bool fromFile = slot.PrivateFile is { } file && file.IsPresent(index);
        Errno errno = fromFile
            ? slot.PrivateFile!.GetPage(current, index, out Pfn pfn)
            : FindUserPage(current, slot, gfn, out pfn);
        if (errno != Errno.OK)
        {
            return errno;
        }
        _host.Machine.Rmp.TryRead(pfn, out RmpState owner);
        if (owner.Assigned)
        {
            return current.Fail(Errno.EEXIST, AlreadyAssigned, gpa, gfn.Value, pfn.Value, owner.Asid, owner.Gpa);
        }
        errno = Amd.RmpMakePrivate(current, pfn, gpa, PageLevel.Page4K, _asid, immutable: true);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = Amd.IssueCommand(
            current, cmd.sev_fd, PspCommand.SNP_LAUNCH_UPDATE, () => Psp.SnpLaunchUpdate(current, _snpContext, pfn, PageLevel.Page4K, type), ref cmd.error);
        if (errno != Errno.OK)
        {
            SnpPageReclaim(current, pfn);
            return errno;
        }
        if (fromFile)
        {
            (slot.PrivateFile as InaccessibleMemfd)?.Launched(index);
        }
        else
        {
            _host.PagePins.Pin(pfn);
            _launchedUserPages.Add(pfn);
        }
        return Errno.OK;
    }

    private Errno FindUserPage(KTask current, Memslot slot, Gfn gfn, out Pfn pfn)
    {
        ulong uaddr = slot.UserspaceAddr + ((gfn.Value - slot.BaseGfn) << PageSize.Shift);
        Errno errno = Vm.Owner.Memory.FaultIn(current, uaddr, write: true, out HostPage page);
        pfn = page.Pfn;
        return errno == Errno.OK ? errno : current.Fail(Errno.EFAULT, InPlaceNoPage, gfn.ToGpa().Value, uaddr);
    }

    // sev_vm_destroy: encrypted user pages go back to their process, or are freed if it has dropped them.
    private void ReleaseLaunchedUserPages(KTask current)
    {
        foreach (Pfn pfn in _launchedUserPages)
        {
            Amd.GmemInvalidate(current, pfn);
            _host.PagePins.Unpin(current, pfn);
        }
        _launchedUserPages.Clear();
    }
}
