using SimKvm.Abi;
using VmmService.Server.Wire;

namespace VmmService.Server.Scripts;

// ioctls of /dev/kvm, of the VM, and of a guest_memfd.
internal static partial class StepTable
{
    private static IEnumerable<StepAction> KvmSteps =>
    [
        new("get_api_version", "KVM_GET_API_VERSION", [Fd("kvm", "/dev/kvm")], (run, args) => Call(run, process => process.Ioctl(args.Fd(), KvmIoctl.KVM_GET_API_VERSION, 0))),
        new(
            "create_vm", "KVM_CREATE_VM; the value is the VM's descriptor", [May("type", FieldKind.U64, "VM type", "DEFAULT") with { Choices = StepChoices.VmTypes }, Fd("kvm", "/dev/kvm")],
            (run, args) => Call(run, process => process.Ioctl(args.Fd(), KvmIoctl.KVM_CREATE_VM, args.U64("type")))),
        new(
            "check_extension", "KVM_CHECK_EXTENSION; the value is the answer", [Need("cap", FieldKind.U64, "KVM_CAP_*"), Fd("kvm", "/dev/kvm or a VM")],
            (run, args) => Call(run, process => process.Ioctl(args.Fd(), KvmIoctl.KVM_CHECK_EXTENSION, args.U64("cap")))),
        new("get_vcpu_mmap_size", "KVM_GET_VCPU_MMAP_SIZE", [Fd("kvm", "/dev/kvm")], (run, args) => Call(run, process => process.Ioctl(args.Fd(), KvmIoctl.KVM_GET_VCPU_MMAP_SIZE, 0))),
        new(
            "create_vcpu", "KVM_CREATE_VCPU; the value is the vCPU's descriptor", [May("vcpu_id", FieldKind.U64, "id"), Fd("vm", "VM")],
            (run, args) => Call(run, process => process.Ioctl(args.Fd(), KvmIoctl.KVM_CREATE_VCPU, args.U64("vcpu_id")))),
        new(
            "create_guest_memfd", "KVM_CREATE_GUEST_MEMFD; the value is its descriptor",
            [Need("size", FieldKind.U64, "bytes"), May("flags", FieldKind.U64, "GUEST_MEMFD_FLAG_*"), Fd("vm", "VM")],
            (run, args) => Ioctl(run, args.Fd(), KvmIoctl.KVM_CREATE_GUEST_MEMFD, new kvm_create_guest_memfd { size = args.U64("size"), flags = args.U64("flags") })),
        new("set_user_memory_region", "KVM_SET_USER_MEMORY_REGION", RegionFields, (run, args) => Ioctl(run, args.Fd(), KvmIoctl.KVM_SET_USER_MEMORY_REGION, Region(args))),
        new(
            "set_user_memory_region2", "KVM_SET_USER_MEMORY_REGION2",
            [
                .. RegionFields, May("guest_memfd", FieldKind.U32, "descriptor, with KVM_MEM_GUEST_MEMFD"), May("guest_memfd_offset", FieldKind.U64, "bytes into it"),
            ],
            SetRegion2),
        new(
            "set_memory_attributes", "KVM_SET_MEMORY_ATTRIBUTES",
            [
                Need("address", FieldKind.U64, "gpa, bytes"), Need("size", FieldKind.U64, "bytes"), Need("attributes", FieldKind.U64, "KVM_MEMORY_ATTRIBUTE_PRIVATE, or 0 for shared"),
                May("flags", FieldKind.U64, "reserved"), Fd("vm", "VM"),
            ],
            (run, args) => Ioctl(
                run, args.Fd(), run.On(process => Structs.SetMemoryAttributesOf(process.Host.Profile)),
                new kvm_memory_attributes { address = args.U64("address"), size = args.U64("size"), attributes = args.U64("attributes"), flags = args.U64("flags") })),
        new(
            "set_memory_attributes2", "KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd, in profiles with in-place conversion",
            [
                Need("offset", FieldKind.U64, "bytes into the file"), Need("size", FieldKind.U64, "bytes"), Need("attributes", FieldKind.U64, "KVM_MEMORY_ATTRIBUTE_PRIVATE, or 0 for shared"),
                May("flags", FieldKind.U64, "reserved"), Fd("gmem", "guest_memfd"),
            ],
            (run, args) =>
            {
                var attributes = new kvm_memory_attributes2 { offset = args.U64("offset"), size = args.U64("size"), attributes = args.U64("attributes"), flags = args.U64("flags") };
                StepResult result = Ioctl(run, args.Fd(), KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref attributes);
                return result.Add("error_offset", attributes.error_offset);
            })
        { Facts = [new("error_offset", FieldKind.U64, "byte offset that was in the way")] },
        new(
            "get_dirty_log", "KVM_GET_DIRTY_LOG; with `length` the bitmap is shown",
            [
                May("slot", FieldKind.U32, "bits 15:0 id, bits 31:16 address space"), Need("dirty_bitmap", FieldKind.U64, "user address of the bitmap: a bit for each page, in whole u64"),
                May("length", FieldKind.U64, "bytes of it to load afterwards"), Fd("vm", "VM"),
            ],
            GetDirtyLog)
        { Facts = [new("data", FieldKind.Content, "the bitmap")] },
        new(
            "clear_dirty_log", "KVM_CLEAR_DIRTY_LOG",
            [
                May("slot", FieldKind.U32, "bits 15:0 id, bits 31:16 address space"), Need("dirty_bitmap", FieldKind.U64, "user address of the bits to clear"),
                May("first_page", FieldKind.U64, "a multiple of 64"), Need("num_pages", FieldKind.U32, "a multiple of 64, or the rest of the slot"), Fd("vm", "VM"),
            ],
            (run, args) => Ioctl(run, args.Fd(), KvmIoctl.KVM_CLEAR_DIRTY_LOG, new kvm_clear_dirty_log
            {
                slot = args.U32("slot"),
                num_pages = args.U32("num_pages"),
                first_page = args.U64("first_page"),
                dirty_bitmap = args.U64("dirty_bitmap"),
            })),
        new(
            "enable_cap", "KVM_ENABLE_CAP on the VM",
            [Need("cap", FieldKind.U32, "KVM_CAP_*"), May("flags", FieldKind.U32, "reserved"), May("args", FieldKind.Numbers, "at most four", null), Fd("vm", "VM")], EnableCap),
    ];

    private static StepField[] RegionFields =>
    [
        May("slot", FieldKind.U32, "bits 15:0 id, bits 31:16 address space"), May("flags", FieldKind.U32, "KVM_MEM_*"), May("guest_phys_addr", FieldKind.U64, "bytes"),
        Need("memory_size", FieldKind.U64, "bytes; 0 deletes"), May("userspace_addr", FieldKind.U64, "user address"), Fd("vm", "VM"),
    ];

    private static kvm_userspace_memory_region Region(StepArguments args) => new()
    {
        slot = args.U32("slot"),
        flags = args.U32("flags"),
        guest_phys_addr = args.U64("guest_phys_addr"),
        memory_size = args.U64("memory_size"),
        userspace_addr = args.U64("userspace_addr"),
    };

    private static StepResult SetRegion2(ScriptRun run, StepArguments args)
    {
        kvm_userspace_memory_region first = Region(args);
        return Ioctl(run, args.Fd(), KvmIoctl.KVM_SET_USER_MEMORY_REGION2, new kvm_userspace_memory_region2
        {
            slot = first.slot,
            flags = first.flags,
            guest_phys_addr = first.guest_phys_addr,
            memory_size = first.memory_size,
            userspace_addr = first.userspace_addr,
            guest_memfd = args.U32("guest_memfd"),
            guest_memfd_offset = args.U64("guest_memfd_offset"),
        });
    }

    private static StepResult GetDirtyLog(ScriptRun run, StepArguments args)
    {
        ulong bitmap = args.U64("dirty_bitmap"), length = args.U64("length");
        CheckLength(args, "length", length, run.Hosts.Options.MaxReadBytes);
        StepResult result = Ioctl(run, args.Fd(), KvmIoctl.KVM_GET_DIRTY_LOG, new kvm_dirty_log { slot = args.U32("slot"), dirty_bitmap = bitmap });
        if (length > 0 && result.Outcome!.Errno == 0)
        {
            byte[] bytes = new byte[length];
            run.On(process => process.Read(bitmap, bytes));
            result.Kept = ScriptValue.Of(bytes);
            result.Add("data", bytes);
        }
        return result;
    }

    private static StepResult EnableCap(ScriptRun run, StepArguments args)
    {
        ulong[] values = args.Has("args") ? args.Numbers("args") : [];
        if (values.Length > 4)
        {
            throw args.Node("args").Problem($"{values.Length} numbers were given", "kvm_enable_cap has room for 4");
        }
        Array.Resize(ref values, 4);
        return Ioctl(run, args.Fd(), KvmIoctl.KVM_ENABLE_CAP, new kvm_enable_cap
        {
            cap = args.U32("cap"),
            flags = args.U32("flags"),
            args0 = values[0],
            args1 = values[1],
            args2 = values[2],
            args3 = values[3],
        });
    }
}
