using SimKvm.Kvm;
using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;

namespace SimKvm.Auditing;

/// <summary>
/// Walks a host between two calls, from its processes down to the frames, and checks what must hold then: each structure is whole, each object has exactly as many
/// references as somebody has to it, and each frame in use has exactly one owner. What it counts it counts anew, from the outside; the kernel's own counters are
/// what is on trial.
/// </summary>
/// <remarks>Reading only. It costs what the host has, so it is for tests and for debugging, not for every call.</remarks>
internal sealed class HostAudit(SimHost host)
{
    // Objects in the order in which they were met, with the references met so far.
    private readonly Dictionary<KernelFile, int> _files = [];
    private readonly Dictionary<Vm, int> _vms = [];
    private readonly HashSet<VfsInode> _inodes = [];
    private readonly Dictionary<ulong, string> _owners = [];

    public void Check()
    {
        host.Machine.CheckInvariants();
        foreach (Process process in host.Processes)
        {
            process.CheckInvariants();
            Meet(process);
        }
        MeetPrivateFiles();
        foreach ((KernelFile file, int references) in _files)
        {
            Require(file.References == references, $"{file.Name} counts {file.References} references; {references} were found");
            Meet(file);
        }
        foreach ((Vm vm, int users) in _vms)
        {
            Require(vm.Users == users, $"a VM counts {vm.Users} users; {users} were found");
            Check(vm);
        }
        Require(host.LiveVms == _vms.Count, $"the host counts {host.LiveVms} VMs; {_vms.Count} were found");
        CheckFrames();
    }

    // A descriptor is a reference, and so is a mapping.
    private void Meet(Process process)
    {
        foreach ((_, KernelFile file) in process.Files.Open)
        {
            _files[file] = _files.GetValueOrDefault(file) + 1;
        }
        foreach (KernelFile file in process.Memory.MappedFiles())
        {
            _files[file] = _files.GetValueOrDefault(file) + 1;
        }
        foreach (Pfn pfn in process.Memory.Frames())
        {
            Own(pfn, $"process {process.Pid}");
        }
    }

    // A slot holds a reference to its private file, in the designs before guest_memfd.
    private void MeetPrivateFiles()
    {
        foreach (Vm vm in _files.Keys.Select(VmOf).OfType<Vm>().Distinct().ToArray())
        {
            foreach (BackingStoreFile file in vm.Memslots.All.Select(slot => slot.PrivateFile).OfType<BackingStoreFile>())
            {
                _files[file] = _files.GetValueOrDefault(file) + 1;
            }
        }
    }

    /// <summary>The VM that a descriptor keeps.</summary>
    public static Vm? VmOf(KernelFile file) => file switch
    {
        VmFile { Vm: var own } => own,
        VcpuFile { Vcpu.Vm: var its } => its,
        GuestMemfd { Vm: var its } => its,
        _ => null,
    };

    private void Meet(KernelFile file)
    {
        Vm? vm = VmOf(file);
        if (vm is not null)
        {
            _vms[vm] = _vms.GetValueOrDefault(vm) + 1;
        }
        if (file is ShmemFile shmem && _inodes.Add(shmem.VfsInode))
        {
            foreach (Pfn pfn in shmem.Frames)
            {
                Own(pfn, "a memfd");
            }
        }
        if (file is Vendors.Intel.TdxModuleFile module)
        {
            foreach (Pfn pfn in module.Frames)
            {
                Own(pfn, "the TDX module's device");
            }
        }
        if (file is HugetlbFile hugetlb && _inodes.Add(hugetlb.VfsInode))
        {
            foreach (Pfn pfn in hugetlb.Frames)
            {
                Own(pfn, "a file on hugetlbfs");
            }
        }
        if (file is GuestMemfd gmem)
        {
            gmem.CheckInvariants();
            foreach (Pfn pfn in gmem.Inode.Frames())
            {
                Own(pfn, "a guest_memfd");
            }
        }
        foreach (Pfn pfn in (file as BackingStoreFile)?.Inode?.Frames() ?? [])
        {
            Own(pfn, "a private file");
        }
    }

    private void Check(Vm vm)
    {
        vm.Memslots.CheckInvariants();
        vm.Attributes.CheckInvariants();
        // The 2023 RFC begins more often than it ends.
        Require(vm.Mmu.InProgress == 0 || host.Profile.InvalidateBeginsUnconditionally, $"{vm.Mmu.InProgress} invalidations are in progress between calls");
        foreach (Memslot slot in vm.Memslots.All)
        {
            Require((slot.Flags & Abi.KvmMem.MEMSLOT_INVALID) == 0, $"slot {slot.Id} is marked as going between calls");
            Require(slot.GmemFile is null || slot.HasGmem, $"slot {slot.Id} has a guest_memfd but not the flag");
            Require(slot.GmemFile is null || _files.ContainsKey(slot.GmemFile), $"slot {slot.Id} names a guest_memfd that nobody has open");
        }
        vm.Mmu.CheckInvariants();
        vm.Backend.CheckInvariants();
        CheckStage2(vm);
        foreach (Pfn pfn in vm.Backend.Frames)
        {
            Own(pfn, "a VM");
        }
        foreach (Pfn pfn in vm.Vcpus.SelectMany(vcpu => vcpu.Run.Frames))
        {
            Own(pfn, "a vCPU");
        }
    }

    // Each leaf is made of what slot, attribute and page are now: whatever changes one of them takes the leaf away.
    private void CheckStage2(Vm vm)
    {
        foreach (string stale in StaleMappings(host, vm))
        {
            Require(holds: false, stale);
        }
    }

    /// <summary>What stage 2 maps against slot, attribute or page, in words. Nothing while no call is under way.</summary>
    public static IEnumerable<string> StaleMappings(SimHost host, Vm vm)
    {
        foreach ((GfnRange gfns, Stage2Entry first) in vm.Mmu.Runs())
        {
            for (ulong i = 0; i < gfns.Count; i++)
            {
                Gfn gfn = gfns.Start + i;
                Memslot? slot = vm.Memslots.Find(gfn);
                if (slot is null)
                {
                    yield return $"stage 2 maps {gfn}, which no slot has";
                    continue;
                }
                if (IsAgainstItsState(vm, slot, gfn, first.IsPrivate))
                {
                    yield return $"stage 2 maps {gfn} as {(first.IsPrivate ? "private" : "shared")} against its attribute";
                }
                bool fromGmem = first.IsPrivate || (slot.Flags & Abi.KvmMem.MEMSLOT_GMEM_ONLY) != 0;
                Pfn pfn = default;
                bool fromPrivateFile = slot.PrivateFile is not null && (first.IsPrivate || host.Profile.PrivateState == PrivateStateDesign.GuestShares);
                bool backed = fromPrivateFile ? TryPeek(slot.PrivateFile!, gfn.Value - slot.BaseGfn + slot.PrivatePgoff, out pfn)
                    : fromGmem ? slot.GmemFile is { } file && file.TryPeek(gfn.Value - slot.BaseGfn + slot.GmemPgoff, out pfn)
                    : vm.Owner.Memory.TryPeek(slot.UserspaceAddr + ((gfn.Value - slot.BaseGfn) << PageSize.Shift), out pfn);
                bool isZeroPage = pfn.Value == 0;
                if (!backed)
                {
                    yield return $"stage 2 maps {gfn} to frame {first.Pfn + i}, behind which there is no page any more";
                }
                else if ((isZeroPage ? host.ZeroPageIfMade : pfn) != first.Pfn + i)
                {
                    yield return $"stage 2 maps {gfn} to frame {first.Pfn + i}; its page is in frame {pfn}";
                }
                else if (isZeroPage && first.Writable)
                {
                    yield return $"stage 2 lets the guest store into the zero page at {gfn}";
                }
            }
        }
    }

    // In the designs before guest_memfd others than attributes may say what a page is; where each access chooses, nobody does.
    private static bool IsAgainstItsState(Vm vm, Memslot slot, Gfn gfn, bool isPrivate) => slot.PrivateFile is null
        ? isPrivate != (vm.HasPrivateMem && vm.Attributes.IsPrivate(gfn))
        : vm.Host.Profile.PrivateState != PrivateStateDesign.AccessBit && isPrivate != (PrivatePages.StateOf(vm, slot, gfn) == PageState.Private);

    private static bool TryPeek(BackingStoreFile file, ulong index, out Pfn pfn)
    {
        pfn = file.Inode is { } inode && inode.TryGet(index, out Folio folio) ? folio.Pfn : default;
        return pfn.Value != 0;
    }

    private void CheckFrames()
    {
        foreach (Pfn pfn in host.PagePins.Orphans)
        {
            Own(pfn, "a pin");
        }
        if (host.ZeroPageIfMade is { Value: not 0 } zero)
        {
            Own(zero, "the zero page");
        }
        // Frames that are lost count as allocated until their last owner gives them back.
        Require(host.Machine.AllocatedPages == _owners.Count, $"{host.Machine.AllocatedPages} frames are in use; owners were found for {_owners.Count}");
    }

    private void Own(Pfn pfn, string owner)
    {
        Require(host.Machine.IsAllocated(pfn), $"frame {pfn} of {owner} is not allocated");
        Require(_owners.TryAdd(pfn.Value, owner), $"frame {pfn} belongs to {owner}, and to {_owners.GetValueOrDefault(pfn.Value)}");
    }

    private static void Require(bool holds, string otherwise)
    {
        if (!holds)
        {
            throw new InvalidOperationException(otherwise);
        }
    }
}
