using SimKvm.Abi;
using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimMachine;

namespace SimKvm.Kvm;

/// <summary>KVM_CHECK_EXTENSION (kvm_vm_ioctl_check_extension and its generic half). Never fails; an unknown number is 0.</summary>
internal static class Capabilities
{
    /// <param name="vm">Null on /dev/kvm: the answer for any VM.</param>
    public static SyscallResult Check(SimHost host, Vm? vm, ulong cap) => SyscallResult.Of((host.Machine.Config.Platform == Platform.ArmPkvm ? OnArm(cap) : HistoricalCapabilities.Check(host, vm, cap)) ?? Answer(host, vm, cap));

    // What an arm64 host has not, or is not modelled to have.
    private static long? OnArm(ulong cap) => cap is KvmCap.MULTI_ADDRESS_SPACE or KvmCap.EXIT_HYPERCALL or KvmCap.PRE_FAULT_MEMORY or KvmCap.VM_TYPES or KvmCap.MEMORY_ATTRIBUTES
        or KvmCap.GUEST_MEMFD or KvmCap.GUEST_MEMFD_FLAGS or KvmCap.GUEST_MEMFD_MEMORY_ATTRIBUTES
        or KvmCap.VM_COPY_ENC_CONTEXT_FROM or KvmCap.VM_MOVE_ENC_CONTEXT_FROM or KvmCap.IRQCHIP or KvmCap.SPLIT_IRQCHIP or KvmCap.TSC_CONTROL or KvmCap.GET_TSC_KHZ or KvmCap.VM_TSC_CONTROL ? 0 : null;

    private static long Answer(SimHost host, Vm? vm, ulong cap) => cap switch
    {
        KvmCap.USER_MEMORY or KvmCap.SYNC_MMU or KvmCap.DESTROY_MEMORY_REGION_WORKS or KvmCap.JOIN_MEMORY_REGIONS_WORKS => 1,
        KvmCap.ENABLE_CAP_VM or KvmCap.CHECK_EXTENSION_VM or KvmCap.USER_MEMORY2 or KvmCap.MEMORY_FAULT_INFO => 1,
        KvmCap.NR_MEMSLOTS => Memslots.UserMemSlots,
        KvmCap.MAX_VCPUS => vm?.Backend.MaxVcpus ?? Vm.MaxVcpus,
        KvmCap.IRQCHIP or KvmCap.SPLIT_IRQCHIP or KvmCap.TSC_CONTROL or KvmCap.GET_TSC_KHZ => 1,
        KvmCap.VM_TSC_CONTROL => 1,
        KvmCap.VM_COPY_ENC_CONTEXT_FROM or KvmCap.VM_MOVE_ENC_CONTEXT_FROM => 1,
        KvmCap.MAX_VCPU_ID => Vm.MaxVcpuIds,
        KvmCap.READONLY_MEM => vm is { HasProtectedState: true } && host.Profile.ReadonlySlotsNeedPlainState ? 0 : 1,
        KvmCap.PRE_FAULT_MEMORY => host.Profile.PreFault != PreFaultDesign.None && host.Config.Tdp ? 1 : 0,
        KvmCap.MULTI_ADDRESS_SPACE => !host.Config.Smm ? 0 : vm is { HasPrivateMem: true } ? 1 : Vm.MaxAddressSpaces,
        KvmCap.MANUAL_DIRTY_LOG_PROTECT2 => Vm.ManualDirtyLogOptions,
        KvmCap.HALT_POLL or KvmCap.DISABLE_QUIRKS => 1,
        KvmCap.DISABLE_QUIRKS2 => Vm.Quirks,
        KvmCap.EXIT_HYPERCALL => Vm.ExitHypercallMask,
        KvmCap.MEMORY_ATTRIBUTES => host.Profile.InPlaceConversion == InPlaceConversion.None && (vm?.HasPrivateMem ?? Vm.PrivateMemoryIsBuilt(host)) ? (long)kvm_memory_attributes.PRIVATE : 0,
        KvmCap.GUEST_MEMFD => vm is null || host.Profile.GuestMemfdForEveryVm || vm.HasPrivateMem ? 1 : 0,
        KvmCap.GUEST_MEMFD_FLAGS => (long)GuestMemfd.SupportedFlags(host, vm),
        KvmCap.GUEST_MEMFD_MEMORY_ATTRIBUTES =>
            host.Profile.InPlaceConversion != InPlaceConversion.None && vm is null or { HasPrivateMem: true } ? (long)kvm_memory_attributes.PRIVATE : 0,
        KvmCap.VM_TYPES => Vm.SupportedTypes(host),
        _ => 0,
    };
}
