using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// In-place conversion (proposed; PATCH v8 and the development tree after it): the file says of each of its pages whether it is private, and a page changes sides where it is.
internal sealed partial class GuestMemfd
{
    private static readonly StepLabel UnmapHostStep = new("gmem unmap from hosts");
    private static readonly StepLabel ConvertStep = new("gmem attributes stored");
    private static readonly StepLabel MakeSharedStep = new("gmem make shared hook");

    public static readonly Rule ConvertFlags = new(
        "kvm.gmem.attributes.flags", "flags must be 0", "kvm_gmem_set_attributes, PATCH v8", "pass flags 0; the content flags of earlier postings were dropped", "flags");

    public static readonly Rule ConvertReserved = new(
        "kvm.gmem.attributes.reserved", "a reserved field is not 0", "kvm_gmem_set_attributes, PATCH v8", "clear the structure", "index#", "value");

    public static readonly Rule ConvertNoPrivateMemory = new(
        "kvm.gmem.attributes.vm", "the file's VM has no private memory", "kvm_gmem_set_attributes, PATCH v8", "use a VM type with private memory");

    public static readonly Rule ConvertUnsupported = new(
        "kvm.gmem.attributes.unsupported", "only KVM_MEMORY_ATTRIBUTE_PRIVATE (8) is known", "kvm_gmem_set_attributes, PATCH v8", "use 8 or 0", "attributes");

    public static readonly Rule ConvertRange = new(
        "kvm.gmem.attributes.range", "the range is empty, wraps, is not page aligned, or ends behind the file", "kvm_gmem_set_attributes, PATCH v8",
        "give a page-aligned range inside the file", "offset", "size", "file_size");

    public static readonly Rule ConvertPageInUse = new(
        "kvm.gmem.attributes.in-use", "somebody beside the page cache holds the page, so it cannot become private", "__kvm_gmem_set_attributes, PATCH v8",
        "end the pins (devices, io_uring) on the page and convert again; nothing was converted", "offset", "index");

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES2 on the file (kvm_gmem_set_attributes). The structure goes back on errors of the conversion only.</summary>
    public Errno SetAttributes(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_memory_attributes2 args);
        if (errno == Errno.OK)
        {
            errno = CheckSetAttributes(current, args);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        ulong start = args.offset >> PageSize.Shift;
        errno = Convert(current, start, start + (args.size >> PageSize.Shift), (args.attributes & kvm_memory_attributes.PRIVATE) != 0, out ulong blocked);
        if (errno == Errno.OK)
        {
            return Errno.OK;
        }
        args.error_offset = blocked << PageSize.Shift;
        Errno copied = arg.CopyOut(current, args);
        return copied != Errno.OK ? copied : errno;
    }

    private unsafe Errno CheckSetAttributes(KTask current, in kvm_memory_attributes2 args)
    {
        if (args.flags != 0)
        {
            return current.Fail(Errno.EINVAL, ConvertFlags, args.flags);
        }
        for (int i = 0; i < 11; i++)
        {
            if (args.reserved[i] != 0)
            {
                return current.Fail(Errno.EINVAL, ConvertReserved, (ulong)i, args.reserved[i]);
            }
        }
        if (!_vm.HasPrivateMem)
        {
            return current.Fail(Errno.EINVAL, ConvertNoPrivateMemory);
        }
        if ((args.attributes & ~kvm_memory_attributes.PRIVATE) != 0)
        {
            return current.Fail(Errno.EINVAL, ConvertUnsupported, args.attributes);
        }
        bool wrong = args.size == 0 || args.offset + args.size < args.offset || ((args.offset | args.size) & PageSize.OffsetMask) != 0
            || args.offset >= Inode.Size || args.offset + args.size > Inode.Size;
        return wrong ? current.Fail(Errno.EINVAL, ConvertRange, args.offset, args.size, Inode.Size) : Errno.OK;
    }

    // __kvm_gmem_set_attributes: all or nothing; content stays; no signal is looked for.
    private Errno Convert(KTask current, ulong start, ulong end, bool toPrivate, out ulong blocked)
    {
        blocked = start;
        using var invalidate = Inode.InvalidateLock.Enter(current);
        if (Inode.AllPrivate(start, end, toPrivate))
        {
            return Errno.OK;
        }
        if (toPrivate)
        {
            // Mappings of the host go first and fault anew; what then still holds a page is a reference that cannot be taken away.
            current.Step(UnmapHostStep, start, end);
            if (Inode.TryFindPinned(start, end, out blocked))
            {
                return current.Fail(Errno.EAGAIN, ConvertPageInUse, blocked << PageSize.Shift, blocked);
            }
        }
        InvalidateBegin(current, start, end, toPrivate ? Stage2Sides.Shared : Stage2Sides.Private);
        if (!toPrivate)
        {
            MakeShared(current, start, end);
        }
        Inode.SetPrivate(start, end, toPrivate);
        current.Step(ConvertStep, start, end);
        InvalidateEnd(current, start, end);
        return Errno.OK;
    }

    // kvm_arch_gmem_make_shared for each page that is there.
    private void MakeShared(KTask current, ulong start, ulong end)
    {
        foreach ((ulong first, ulong last, Folio folio) in Inode.FolioRuns(start, end).ToArray())
        {
            for (ulong i = 0; i < last - first; i++)
            {
                current.Step(MakeSharedStep, first + i, folio.Pfn.Value + i);
                _vm.Host.KvmAmd.GmemInvalidate(current, folio.Pfn + i);
            }
        }
    }
}
