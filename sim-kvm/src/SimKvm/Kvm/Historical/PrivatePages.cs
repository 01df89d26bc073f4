using SimKvm.Abi;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Kvm.Historical;

/// <summary>What a guest page is, in the designs before KVM_SET_MEMORY_ATTRIBUTES.</summary>
internal enum PageState
{
    Shared,
    Private,

    /// <summary>Declared private, and not there: neither kind of access is right.</summary>
    Invalid,
}

/// <summary>
/// Who says whether a page is private, in the designs before guest_memfd and in the answers to seed 004: user space by regions, the private file by what is in it, or the guest.
/// What is said is kept in <see cref="MemoryAttributes"/>, as the kernels did from UPM v7 on.
/// </summary>
internal static class PrivatePages
{
    /// <summary>Value of a gfn that its guest shares (profile UPM22-pkvm). Not one of KVM_MEMORY_ATTRIBUTE_*: no ioctl sets it.</summary>
    public const ulong SharedByGuest = 1UL << 32;

    public static readonly Rule BadRegion = new(
        "kvm.encrypt-region.range", "the region is empty, wraps, or is not page aligned", "kvm_vm_ioctl_set_encrypted_region, UPM v7", "give page-aligned guest addresses",
        "addr", "size");

    /// <summary>What the page is. Where each access chooses its page (UPM22-tdx) it is shared, as far as anybody asks.</summary>
    public static PageState StateOf(Vm vm, Memslot? slot, Gfn gfn)
    {
        bool marked = vm.Attributes.IsMarkedPrivate(gfn);
        bool present = slot is { PrivateFile: { } file } && file.IsPresent(gfn.Value - slot.BaseGfn + slot.PrivatePgoff);
        return vm.Host.Profile.PrivateState switch
        {
            PrivateStateDesign.FilePresence => present ? PageState.Private : PageState.Shared,
            PrivateStateDesign.RegionsAndPresence => !marked ? PageState.Shared : present ? PageState.Private : PageState.Invalid,
            PrivateStateDesign.GuestShares => slot is { PrivateFile: not null } && vm.Attributes[gfn] != SharedByGuest ? PageState.Private : PageState.Shared,
            PrivateStateDesign.AccessBit => PageState.Shared,
            _ => marked ? PageState.Private : PageState.Shared,
        };
    }

    /// <summary>
    /// KVM_MEMORY_ENCRYPT_REG_REGION and UNREG_REGION: with guest addresses where they say what is private (kvm_vm_ioctl, UPM v7), else the vendor's, with user addresses.
    /// </summary>
    public static Errno EncryptRegion(KTask current, Vm vm, UserArg arg, bool isPrivate)
    {
        bool says = vm.Host.Profile.PrivateState is PrivateStateDesign.EncryptRegions or PrivateStateDesign.RegionsAndPresence;
        if (says && vm.HasPrivateMem)
        {
            return SetRegion(current, vm, arg, isPrivate);
        }
        return isPrivate ? vm.Backend.MemEncRegisterRegion(current, arg) : vm.Backend.MemEncUnregisterRegion(current, arg);
    }

    // kvm_vm_ioctl_set_encrypted_region, UPM v7: store, then zap.
    private static Errno SetRegion(KTask current, Vm vm, UserArg arg, bool isPrivate)
    {
        Errno errno = arg.CopyIn(current, out kvm_enc_region region);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (region.size == 0 || region.addr + region.size < region.addr || ((region.addr | region.size) & PageSize.OffsetMask) != 0)
        {
            return current.Fail(Errno.EINVAL, BadRegion, region.addr, region.size);
        }
        Store(current, vm, GfnRange.FromBytes(region.addr, region.size), isPrivate ? kvm_memory_attributes.PRIVATE : 0);
        return Errno.OK;
    }

    /// <summary>Stores what a range is from now on, and takes from guests what they have mapped of it.</summary>
    public static void Store(KTask current, Vm vm, GfnRange range, ulong value)
    {
        vm.Attributes.Store(current, range, value);
        vm.Mmu.ZapGfnRange(current, range);
    }
}
