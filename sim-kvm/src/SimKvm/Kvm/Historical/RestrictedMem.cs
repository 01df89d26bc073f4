using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm.Historical;

/// <summary>
/// memfd_restricted: the private file of UPM v9/v10, 2022-10 to 2023 (kvm-guest-memory.md 13.2). A file of its own kind around a hidden shmem file: fallocate, ftruncate and
/// fstat, nothing else. Pages are bound exclusively.
/// </summary>
/// <remarks>
/// A hole is punched between invalidate_start and invalidate_end of every binding that it meets, under the file's rwsem for reading, so that bindings stay as they are and
/// the two balance. v10 gives the end of a range to the xarray as its last element, so a binding also takes the page behind it: two slots cannot be bound to neighbouring
/// pages. That was found and fixed on the list; the profile has v10 as posted.
/// </remarks>
internal sealed class RestrictedMem : BackingStoreFile
{
    public static readonly Rule UnknownFlags = new(
        "kvm.restrictedmem.flags", "memfd_restricted has no flags", "memfd_restricted, UPM v9/v10", "pass flags 0", "flags");

    public static readonly Rule AlreadyBound = new(
        "kvm.restrictedmem.bind-overlap", "a page of the range, or the one behind it, is bound to a slot already", "restrictedmem_bind, UPM v10",
        "delete that slot, or leave a page free between the two", "start", "end");

    private RestrictedMem(SimHost host)
        : base(host)
    {
    }

    public override string Name => "[restrictedmem]";

    internal override FMode Methods => FMode.None;

    /// <summary>memfd_restricted(2). The value is the descriptor, which is not close-on-exec.</summary>
    public static SyscallResult Create(KTask current, uint flags)
    {
        if (flags != 0)
        {
            return current.Fail(Errno.EINVAL, UnknownFlags, flags);
        }
        Errno errno = current.Process.Files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        current.Process.Files.Install(fd, new RestrictedMem(current.Host));
        return SyscallResult.Of(fd);
    }

    // restrictedmem_bind. Both ends count: see the remarks above.
    protected override Errno CheckBinding(KTask current, ulong start, ulong end)
    {
        bool taken = Bindings.Any(bound => bound.Start <= end && start <= bound.Start + bound.Slot.Npages);
        return taken ? current.Fail(Errno.EINVAL, AlreadyBound, start, end) : Errno.OK;
    }

    // restrictedmem_punch_hole
    protected override void PunchHole(KTask current, ulong start, ulong end)
    {
        using var held = Lock.EnterShared(current);
        foreach (Binding binding in Bindings)
        {
            InvalidateStart(current, binding, start, end);
        }
        RemovePages(current, start, end);
        foreach (Binding binding in Bindings)
        {
            InvalidateEnd(current, binding, start, end);
        }
    }

    // kvm_restrictedmem_invalidate_begin
    private static void InvalidateStart(KTask current, in Binding binding, ulong start, ulong end)
    {
        GfnRange gfns = GfnsOf(binding, start, end);
        if (gfns.IsEmpty)
        {
            return;
        }
        Mmu mmu = binding.Vm.Mmu;
        using var locked = mmu.Lock.Enter(current);
        mmu.InvalidateBegin(current);
        mmu.InvalidateRangeAdd(current, gfns);
        mmu.Unmap(current, gfns);
    }

    private static void InvalidateEnd(KTask current, in Binding binding, ulong start, ulong end)
    {
        if (!GfnsOf(binding, start, end).IsEmpty)
        {
            using var locked = binding.Vm.Mmu.Lock.Enter(current);
            binding.Vm.Mmu.InvalidateEnd(current);
        }
    }
}
