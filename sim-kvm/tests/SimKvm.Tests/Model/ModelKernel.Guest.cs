using SimKvm.Kvm;

namespace SimKvm.Tests.Model;

// Guest accesses: section 8 without stage 2, which may only make them faster.
internal sealed partial class ModelKernel
{
    /// <summary>A guest of a VM without encryption loads (no bytes given) or stores, page by page, then halts.</summary>
    public static GuestOutcome Guest(ModelVm vm, ulong gpa, int length, byte[]? bytes)
    {
        byte[] loaded = new byte[length];
        for (int i = 0; i < length; i++)
        {
            ulong gfn = (gpa + (ulong)i) >> 12;
            GuestOutcome outcome = GuestPage(vm, gfn, bytes is not null, out byte[]? page);
            if (page is null)
            {
                return outcome;
            }
            ref byte at = ref page[(gpa + (ulong)i) & PageMask];
            loaded[i] = at;
            at = bytes is null ? at : bytes[i];
        }
        return new GuestOutcome(Errno.OK, KvmExit.KVM_EXIT_HLT, Bytes: bytes is null ? loaded : null);
    }

    // Section 8.2, and 5.4 for what backs a slot.
    private static GuestOutcome GuestPage(ModelVm vm, ulong gfn, bool write, out byte[]? page)
    {
        page = null;
        bool isPrivate = vm.Private.Contains(gfn);
        var fault = new GuestOutcome(Errno.EFAULT, KvmExit.KVM_EXIT_MEMORY_FAULT, isPrivate ? 8UL : 0, gfn << 12);
        if (vm.SlotOf(gfn) is not { } slot)
        {
            return isPrivate ? fault : new GuestOutcome(Errno.OK, KvmExit.KVM_EXIT_MMIO);
        }
        if (isPrivate || slot.IsGmemOnly)
        {
            if (slot.File is not { } file)
            {
                return fault;
            }
            ModelPage found = GetPage(file, gfn - slot.Gfn + slot.Pgoff);
            found.Uptodate = true;
            page = found.Bytes;
            return default;
        }
        if (write && (slot.Flags & 2) != 0)
        {
            return new GuestOutcome(Errno.OK, KvmExit.KVM_EXIT_MMIO);
        }
        page = Touch(vm.Owner, slot.Uaddr + ((gfn - slot.Gfn) << 12), write);
        return new GuestOutcome(Errno.EFAULT, KvmExit.KVM_EXIT_UNKNOWN);
    }
}
