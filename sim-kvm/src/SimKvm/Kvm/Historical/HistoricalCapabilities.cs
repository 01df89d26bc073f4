using SimKvm.Abi;
using SimKvm.Profiles;

namespace SimKvm.Kvm.Historical;

/// <summary>
/// KVM_CHECK_EXTENSION for what was numbered otherwise before guest_memfd was merged. A number that a later kernel gave to something else is 0 here, or is what it was then.
/// </summary>
internal static class HistoricalCapabilities
{
    /// <summary>The answer, or null where the capability is what it is in merged kernels.</summary>
    public static long? Check(SimHost host, Vm? vm, ulong cap)
    {
        bool privateMemory = vm?.HasPrivateMem ?? Vm.PrivateMemoryIsBuilt(host);
        return host.Profile.PrivateMemory switch
        {
            PrivateMemoryDesign.GuestMemfd => null,
            PrivateMemoryDesign.InaccessibleMemfd when cap == KvmCap.PRIVATE_MEM => privateMemory ? 1 : 0,
            PrivateMemoryDesign.RestrictedMem when cap == KvmCap.MEMORY_ATTRIBUTES_V10 => 1,
            PrivateMemoryDesign.GuestMemfdRfc when cap is KvmCap.USER_MEMORY2_RFC or KvmCap.MEMORY_ATTRIBUTES_RFC => 1,
            PrivateMemoryDesign.GuestMemfdRfc when cap == KvmCap.VM_TYPES_RFC => Vm.SupportedTypes(host),
            _ => cap is KvmCap.PRIVATE_MEM or KvmCap.MEMORY_ATTRIBUTES_V10 or (>= KvmCap.USER_MEMORY2_RFC and <= KvmCap.VM_TYPES) or KvmCap.GUEST_MEMFD_FLAGS ? 0 : null,
        };
    }
}
