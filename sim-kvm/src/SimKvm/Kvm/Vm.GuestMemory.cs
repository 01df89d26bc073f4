using SimKvm.Abi;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// kvm_read_guest and kvm_write_guest: KVM's own accesses to guest memory. They go through the user address of the slot, so they see shared memory only, whatever the attributes say.
internal sealed partial class Vm
{
    public static readonly Rule GuestMemoryFaulted = new(
        "kvm.guest-memory.access", "KVM could not access the guest's memory: no slot there, none that may be written to, or nothing mapped at its user address",
        "kvm_read_guest, kvm_write_guest", "give the gpa a slot with memory at its userspace_addr", "gpa", "length");

    /// <summary>kvm_read_guest: EFAULT where a byte cannot be read.</summary>
    public Errno ReadGuest(KTask current, ulong gpa, Span<byte> destination)
    {
        using var srcu = Srcu.EnterShared(current);
        for (int done = 0; done < destination.Length;)
        {
            ulong at = gpa + (ulong)done;
            Span<byte> part = destination.Slice(done, PartOfPage(at, destination.Length - done));
            if (Memslots.Find(new Gfn(at >> PageSize.Shift)) is not { } slot || !Owner.Memory.TryRead(current, UserAddress(slot, at), part))
            {
                return current.Fail(Errno.EFAULT, GuestMemoryFaulted, gpa, (ulong)destination.Length);
            }
            done += part.Length;
        }
        return Errno.OK;
    }

    /// <summary>kvm_write_guest: EFAULT where a byte cannot be written; the bytes before it are.</summary>
    public Errno WriteGuest(KTask current, ulong gpa, ReadOnlySpan<byte> source)
    {
        using var srcu = Srcu.EnterShared(current);
        for (int done = 0; done < source.Length;)
        {
            ulong at = gpa + (ulong)done;
            var gfn = new Gfn(at >> PageSize.Shift);
            ReadOnlySpan<byte> part = source.Slice(done, PartOfPage(at, source.Length - done));
            if (Memslots.Find(gfn) is not { } slot || (slot.Flags & KvmMem.READONLY) != 0 || !Owner.Memory.TryWrite(current, UserAddress(slot, at), part))
            {
                return current.Fail(Errno.EFAULT, GuestMemoryFaulted, gpa, (ulong)source.Length);
            }
            slot.DirtyLog?.MarkPageDirty(gfn.Value - slot.BaseGfn);
            done += part.Length;
        }
        return Errno.OK;
    }

    private static ulong UserAddress(Memslot slot, ulong gpa) => slot.UserspaceAddr + (gpa - (slot.BaseGfn << PageSize.Shift));

    private static int PartOfPage(ulong at, int left) => (int)Math.Min((ulong)left, PageSize.Bytes - (at & PageSize.OffsetMask));
}
