using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// What the file answers to the VFS (kvm_gmem_fops and kvm_gmem_iops): hardly anything, for its content is not for the host to read or write.
internal sealed partial class GuestMemfd
{
    // GUEST_MEMFD_MAGIC, and S_IFREG with mode 0600.
    private const ulong FileSystemMagic = 0x474d_454d;
    private const uint RegularFile0600 = 0x8180;

    public static readonly Rule SetattrRefused = new(
        "kvm.gmem.setattr", "size, mode, owner and times of a guest_memfd never change", "kvm_gmem_setattr", "create it with the size that is wanted");

    public static readonly Rule NoPageToFail = new(
        "mm.memory-failure.no-page", "the file has no page there, so no memory can fail", "memory_failure", "allocate or touch the page first", "index");

    /// <summary>O_RDWR | O_LARGEFILE, whatever was asked for.</summary>
    internal override uint Flags { get; set; } = OpenFlags.O_RDWR | OpenFlags.O_LARGEFILE;

    internal override VfsInode VfsInode { get; }

    internal override bool OnNoExecFileSystem => true;

    /// <summary>Call that changed the content last (fallocate), or made the file.</summary>
    internal ulong MtimeCall { get; set; }

    internal override FileSystemStat FileSystem =>
        _vm.Host.Profile.GuestMemfdFileSystem ? new FileSystemStat(FileSystemMagic, 4096) : FileSystemStat.AnonInode;

    // No block accounting: st_blocks stays 0.
    internal override FileStat Stat() => new(Inode.Size, RegularFile0600, 0) { MtimeCall = MtimeCall };

    internal override Errno Setattr(KTask current) => current.Fail(Errno.EINVAL, SetattrRefused);

    /// <summary>memory_failure of a page: processes lose it, then the file has its say.</summary>
    internal override Errno MemoryFailure(KTask current, ulong index)
    {
        if (!Inode.TryGet(index, out Folio folio))
        {
            return current.Fail(Errno.ENXIO, NoPageToFail, index);
        }
        if (folio.Poisoned)
        {
            return current.Fail(Errno.EHWPOISON, Poisoned, index, folio.Pfn.Value);
        }
        VfsInode.UnmapMappingRange(current, index, index + 1);
        current.Machine.LeakFrame(folio.Pfn);
        ErrorFolio(current, index);
        if (!_vm.Host.Profile.MemoryFailureUnmaps)
        {
            current.Signal = Signal.BusMceErrAr(index << PageSize.Shift);
        }
        return Errno.OK;
    }

    // file_modified() after an fallocate that succeeded.
    private Errno Changed(KTask current, Errno errno)
    {
        MtimeCall = errno == Errno.OK ? current.Call : MtimeCall;
        return errno;
    }
}
