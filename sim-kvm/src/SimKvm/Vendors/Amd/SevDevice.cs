using SimKvm.Userspace;

namespace SimKvm.Vendors.Amd;

/// <summary>The /dev/sev file. VMMs need it open to name the platform in KVM_MEMORY_ENCRYPT_OP; its own ioctl, of the platform's operator, is in <c>SevDevice.Ioctl.cs</c>.</summary>
internal sealed partial class SevDevice : KernelFile
{
    public override FdKind Kind => FdKind.Sev;

    public override string Name => "/dev/sev";

    internal override Errno UnknownIoctl => Errno.EINVAL;

    internal override FMode Methods => FMode.Pread | FMode.Pwrite;

    internal override FileSystemStat FileSystem => FileSystemStat.Tmpfs;

    // A character device with a minor number of its own choice.
    internal override FileStat Stat() => new(0, 0x2180, 0) { Rdev = (10 << 8) | 124 };

    internal override Errno Setattr(KTask current) => current.Fail(Errno.EPERM, NoSetattr, (ulong)Kind);

    internal override void Release(KTask current)
    {
    }
}
