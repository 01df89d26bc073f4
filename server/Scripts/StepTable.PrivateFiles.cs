using System.Runtime.InteropServices;
using SimKvm.Abi;

namespace VmmService.Server.Scripts;

// Private memory before guest_memfd: memfds that user space cannot reach, and what mail 004 proposed to make of them.
internal static partial class StepTable
{
    private static IEnumerable<StepAction> PrivateFileSteps =>
    [
        new(
            "memfd_restricted", "memfd_restricted(2) of RM22; the value is the descriptor", [May("flags", FieldKind.U32, "none are known")],
            (run, args) => Call(run, process => process.MemfdRestricted(args.U32("flags")))),
        new(
            "shm_lock", "the one-way lock of a private file that mail 004 proposes (UPM22-shm_lock)", [Fd("private", "file")],
            (run, args) => Call(run, process => process.MemfdShmLock(args.Fd()))),
        new(
            "set_shareable", "flags pages of a private file as shareable, or not (UPM22-shareable)",
            [May("offset", FieldKind.U64, "bytes"), Need("len", FieldKind.U64, "bytes"), May("shareable", FieldKind.Bool, "the flag", "true"), Fd("private", "file")],
            (run, args) => Call(run, process => process.MemfdSetShareable(args.Fd(), args.U64("offset"), args.U64("len"), args.Flag("shareable")))),
        new(
            "encrypt_reg_region", "KVM_MEMORY_ENCRYPT_REG_REGION: in UPM22 it makes guest addresses private", RegionOfEncryption,
            (run, args) => Ioctl(run, args.Fd(), KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION, new kvm_enc_region { addr = args.U64("addr"), size = args.U64("size") })),
        new(
            "encrypt_unreg_region", "KVM_MEMORY_ENCRYPT_UNREG_REGION: in UPM22 it makes them shared", RegionOfEncryption,
            (run, args) => Ioctl(run, args.Fd(), KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION, new kvm_enc_region { addr = args.U64("addr"), size = args.U64("size") })),
        new(
            "set_private_region", "KVM_SET_USER_MEMORY_REGION with KVM_MEM_PRIVATE, in the layout of the profile's time",
            [.. RegionFields, May("private_fd", FieldKind.Fd, "private file", "$private"), May("private_offset", FieldKind.U64, "bytes into it")], SetPrivateRegion),
    ];

    private static StepField[] RegionOfEncryption => [Need("addr", FieldKind.U64, "guest address, bytes"), Need("size", FieldKind.U64, "bytes"), Fd("vm", "VM")];

    private static StepResult SetPrivateRegion(ScriptRun run, StepArguments args)
    {
        kvm_userspace_memory_region first = Region(args);
        var region = new kvm_userspace_memory_region_ext
        {
            slot = first.slot,
            flags = first.flags | KvmMem.PRIVATE,
            guest_phys_addr = first.guest_phys_addr,
            memory_size = first.memory_size,
            userspace_addr = first.userspace_addr,
            private_offset = args.U64("private_offset"),
            private_fd = unchecked((uint)args.Fd("private_fd")),
        };
        return Call(run, process =>
        {
            byte[] bytes = new byte[Math.Max((int)process.Host.Profile.ExtendedRegionBytes, Marshal.SizeOf<kvm_userspace_memory_region_ext>())];
            MemoryMarshal.Write(bytes, region);
            return process.Ioctl(args.Fd(), KvmIoctl.KVM_SET_USER_MEMORY_REGION, bytes);
        });
    }
}
