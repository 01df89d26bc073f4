using SimKvm.Userspace;

namespace SimKvm.Vendors.Amd;

/// <summary>The /dev/sev file. VMMs need it open to name the platform in KVM_MEMORY_ENCRYPT_OP; its own ioctl is not modelled yet (ENOTTY).</summary>
internal sealed class SevDevice : KernelFile
{
    public override FdKind Kind => FdKind.Sev;

    public override string Name => "/dev/sev";

    internal override void Release(KTask current)
    {
    }
}
