using SimKvm.Abi;
using SimKvm.Userspace;

namespace SimKvm.Tests.Model;

// Calls on VMs: sections 2 (entry, CREATE_VM, CREATE_VCPU), 3 (guest_memfd), 5 (memslots), 6 (attributes), 10 (populate).
internal sealed partial class ModelKernel
{
    private const int MaxSlotId = 32764;
    private const ulong MaxPages = (1UL << 31) - 1;
    private const int MaxPhysicalBits = 48;

    /// <summary>What an ioctl answers before its own checks, on whatever the descriptor is. OK only on the kind of file that it is for.</summary>
    public static Errno Enter(ModelProcess process, int fd, FdKind wanted, out ModelFile file)
    {
        if (!process.Files.TryGetValue(fd, out file!))
        {
            return Errno.EBADF;
        }
        if (file.Kind is FdKind.Vm or FdKind.Vcpu && file.Vm!.Owner != process)
        {
            return Errno.EIO;
        }
        if (file.Kind == wanted)
        {
            return Errno.OK;
        }
        return file.Kind is FdKind.Kvm or FdKind.Vcpu ? Errno.EINVAL : Errno.ENOTTY;
    }

    public SyscallResult CreateVm(ModelProcess process, int fd, ulong type)
    {
        Errno errno = Enter(process, fd, FdKind.Kvm, out _);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (process.Files.Count >= fdLimit - 3)
        {
            return Errno.EMFILE;
        }
        return type > Behaviours.NewestVmType ? Errno.EINVAL : Install(process, new ModelFile(FdKind.Vm, new ModelVm(process, (uint)type)));
    }

    public SyscallResult CreateVcpu(ModelProcess process, int fd, ulong id)
    {
        Errno errno = Enter(process, fd, FdKind.Vm, out ModelFile file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (id >= 4096)
        {
            return Errno.EINVAL;
        }
        if (file.Vm!.Vcpus.Contains(id))
        {
            return Errno.EEXIST;
        }
        SyscallResult result = Install(process, new ModelFile(FdKind.Vcpu, file.Vm));
        if (result.Succeeded)
        {
            file.Vm.Vcpus.Add(id);
        }
        return result;
    }

    public SyscallResult CreateGuestMemfd(ModelProcess process, int fd, in kvm_create_guest_memfd args, bool cutShort)
    {
        Errno errno = Enter(process, fd, FdKind.Vm, out ModelFile file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (cutShort)
        {
            return Errno.EFAULT;
        }
        if ((args.flags & ~(file.Vm!.HasPrivateMem ? Behaviours.CreateFlagsPrivate : Behaviours.CreateFlags)) != 0)
        {
            return Errno.EINVAL;
        }
        if ((long)args.size <= 0 || (args.size & PageMask) != 0)
        {
            return Errno.EINVAL;
        }
        return Install(process, new ModelFile(FdKind.GuestMemfd, file.Vm) { Size = args.size, Flags = args.flags });
    }

    public static Errno SetAttributes(ModelProcess process, int fd, in kvm_memory_attributes args, bool cutShort)
    {
        Errno errno = Enter(process, fd, FdKind.Vm, out ModelFile file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (cutShort)
        {
            return Errno.EFAULT;
        }
        ModelVm vm = file.Vm!;
        if (args.flags != 0 || (args.attributes & ~(vm.HasPrivateMem ? 8UL : 0)) != 0)
        {
            return Errno.EINVAL;
        }
        if (args.size == 0 || args.address + args.size < args.address || ((args.address | args.size) & PageMask) != 0)
        {
            return Errno.EINVAL;
        }
        bool changed = false, hasSlot = false;
        for (ulong gfn = args.address >> 12; gfn < (args.address + args.size) >> 12; gfn++)
        {
            changed |= args.attributes != 0 ? vm.Private.Add(gfn) : vm.Private.Remove(gfn);
            hasSlot |= vm.Slots.Exists(slot => slot.Has(gfn));
        }
        vm.Seq += changed && hasSlot ? 1UL : 0;
        return Errno.OK;
    }

    /// <summary>Section 5.1, row by row.</summary>
    public Errno SetRegion(ModelProcess process, int fd, in kvm_userspace_memory_region2 mem, bool version2, bool cutShort)
    {
        Errno errno = Enter(process, fd, FdKind.Vm, out ModelFile file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (cutShort)
        {
            return Errno.EFAULT;
        }
        ModelVm vm = file.Vm!;
        bool gmem = (mem.flags & KvmMem.GUEST_MEMFD) != 0;
        int asId = (int)(mem.slot >> 16), id = (int)(mem.slot & 0xffff);
        if ((!version2 && (mem.flags & ~3u) != 0) || id >= MaxSlotId || (mem.flags & ~ValidFlags(vm, gmem)) != 0)
        {
            return Errno.EINVAL;
        }
        if (((mem.memory_size | mem.guest_phys_addr | mem.userspace_addr) & PageMask) != 0)
        {
            return Errno.EINVAL;
        }
        if (mem.userspace_addr > TaskSize || mem.memory_size > TaskSize - mem.userspace_addr)
        {
            return Errno.EINVAL;
        }
        if (gmem && ((mem.guest_memfd_offset & PageMask) != 0 || mem.guest_memfd_offset + mem.memory_size < mem.guest_memfd_offset))
        {
            return Errno.EINVAL;
        }
        ulong npages = mem.memory_size >> 12;
        if (asId >= (vm.HasPrivateMem ? 1 : 2) || mem.guest_phys_addr + mem.memory_size < mem.guest_phys_addr || npages > MaxPages)
        {
            return Errno.EINVAL;
        }

        ModelSlot? old = vm.Slots.Find(slot => slot.AsId == asId && slot.Id == id);
        ulong gfn = mem.guest_phys_addr >> 12;
        if (npages == 0)
        {
            return old is not null && vm.Slots.Remove(old) ? Errno.OK : Errno.EINVAL;
        }
        if (old is not null)
        {
            uint fixedFlags = KvmMem.READONLY | (Behaviours.ToggleRefused ? KvmMem.GUEST_MEMFD : 0);
            if (gmem || mem.userspace_addr != old.Uaddr || npages != old.Npages || ((mem.flags ^ old.Flags) & fixedFlags) != 0)
            {
                return Errno.EINVAL;
            }
            if (gfn == old.Gfn && mem.flags == old.Flags)
            {
                return Errno.OK;
            }
        }
        bool moves = old?.Gfn != gfn;
        if (moves && vm.Slots.Exists(slot => slot.AsId == asId && slot.Id != id && slot.Overlaps(gfn, npages)))
        {
            return Errno.EEXIST;
        }
        ModelFile? backing = null;
        errno = gmem ? Bind(process, vm, mem, out backing) : Errno.OK;
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (moves && gfn + npages > 1UL << (MaxPhysicalBits - 12))
        {
            return Errno.EINVAL;
        }
        vm.SeqMoves |= mem.userspace_addr >= MmapBase;
        vm.Slots.Remove(old!);
        vm.Slots.Add(new ModelSlot
        {
            AsId = asId,
            Id = id,
            Gfn = gfn,
            Npages = npages,
            Uaddr = mem.userspace_addr,
            Flags = mem.flags,
            File = backing,
            Pgoff = gmem ? mem.guest_memfd_offset >> 12 : 0,
            IsGmemOnly = ((backing?.Flags ?? 0) & 1) != 0,
        });
        return Errno.OK;
    }

    /// <summary>
    /// kvm_gmem_populate with a callback that fails on the page <paramref name="failAt"/> of the range with ENXIO; the caller holds what the launch ioctls hold.
    /// </summary>
    public SyscallResult Populate(ModelProcess process, int fd, ulong gfn, ulong source, long npages, long failAt)
    {
        ModelVm vm = process.Files[fd].Vm!;
        bool perPage = Behaviours.Populate == PopulateForm.PerPage;
        if (npages < 0 || (npages == 0 && Behaviours.Populate != PopulateForm.WholeLoop) || (perPage && (source & PageMask) != 0))
        {
            return Errno.EINVAL;
        }
        if (vm.SlotOf(gfn) is not { HasGmem: true } slot)
        {
            return Errno.EINVAL;
        }
        if (slot.File is not { } file)
        {
            return Errno.EFAULT;
        }
        long done = 0;
        for (; done < npages && slot.Has(gfn + (ulong)done); done++)
        {
            Errno errno = PopulatePage(process, vm, slot, file, gfn + (ulong)done, perPage && source != 0 ? source + ((ulong)done << 12) : 0, fails: done == failAt);
            if (errno != Errno.OK)
            {
                return done > 0 ? SyscallResult.Of(done) : errno;
            }
        }
        return SyscallResult.Of(done);
    }

    private Errno PopulatePage(ModelProcess process, ModelVm vm, ModelSlot slot, ModelFile file, ulong gfn, ulong pinned, bool fails)
    {
        if (pinned != 0 && Touch(process, pinned, write: false) is null)
        {
            return Errno.EFAULT;
        }
        ModelPage page = GetPage(file, gfn - slot.Gfn + slot.Pgoff);
        if (page.Uptodate && Behaviours.Populate != PopulateForm.PerPage)
        {
            return Errno.EEXIST;
        }
        if (!vm.Private.Contains(gfn))
        {
            return Errno.EINVAL;
        }
        if (fails)
        {
            return Errno.ENXIO;
        }
        page.Uptodate = true;
        return Errno.OK;
    }

    private uint ValidFlags(ModelVm vm, bool gmem)
    {
        uint valid = vm.HasPrivateMem || Behaviours.GmemForEveryVm ? KvmMem.GUEST_MEMFD : 0;
        if (gmem)
        {
            return valid;
        }
        return valid | KvmMem.LOG_DIRTY_PAGES | (vm.HasProtectedState ? 0 : KvmMem.READONLY);
    }

    // Section 4.6.
    private Errno Bind(ModelProcess process, ModelVm vm, in kvm_userspace_memory_region2 mem, out ModelFile? file)
    {
        if (!process.Files.TryGetValue((int)mem.guest_memfd, out file))
        {
            return Errno.EBADF;
        }
        if (file.Kind != FdKind.GuestMemfd || file.Vm != vm)
        {
            return Errno.EINVAL;
        }
        ulong offset = mem.guest_memfd_offset, end = offset + mem.memory_size;
        bool outside = Behaviours.BindSigned ? (long)offset < 0 || (long)end > (long)file.Size : end > file.Size;
        if (outside)
        {
            return Errno.EINVAL;
        }
        ModelFile it = file;
        return vm.Slots.Exists(slot => slot.IsBoundIn(it, offset >> 12, end >> 12)) ? Behaviours.BindOverlap : Errno.OK;
    }
}
