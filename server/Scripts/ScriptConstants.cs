using System.Reflection;
using SimKvm;
using SimKvm.Abi;
using SimKvm.Kvm;

namespace VmmService.Server.Scripts;

/// <summary>Names that stand for numbers in scripts, in the kernel's spelling. What the simulated kernel has declared is taken from there.</summary>
internal static class ScriptConstants
{
    private static readonly SortedDictionary<string, ulong> Values = new(Collect().ToDictionary(each => each.Name, each => each.Value), StringComparer.Ordinal);

    public static IEnumerable<string> Names => Values.Keys;

    public static IEnumerable<KeyValuePair<string, ulong>> All => Values;

    public static bool TryGet(string name, out ulong value) => Values.TryGetValue(name, out value);

    private static IEnumerable<(string Name, ulong Value)> Collect() =>
    [
        .. ConstantsOf(typeof(KvmIoctl), ""),
        .. ConstantsOf(typeof(KvmCap), "KVM_CAP_"),
        .. Enum.GetValues<VmType>().Select(type => (type.ToString(), (ulong)type)),
        .. Enum.GetValues<V1.Platform>().Where(platform => platform != V1.Platform.Unspecified).Select(platform => (V1.HostReflection.Descriptor.FindTypeByName<Google.Protobuf.Reflection.EnumDescriptor>("Platform").FindValueByNumber((int)platform).Name, (ulong)platform)),
        .. Enum.GetValues<KvmExit>().Select(exit => (exit.ToString(), (ulong)exit)),
        .. Enum.GetValues<Errno>().Where(errno => errno != Errno.OK).Select(errno => (errno.ToString(), (ulong)errno)),
        ("KVM_MEM_LOG_DIRTY_PAGES", KvmMem.LOG_DIRTY_PAGES),
        ("KVM_MEM_READONLY", KvmMem.READONLY),
        ("KVM_MEM_GUEST_MEMFD", KvmMem.GUEST_MEMFD),
        ("KVM_MEMORY_ATTRIBUTE_PRIVATE", kvm_memory_attributes.PRIVATE),
        ("KVM_MEMORY_EXIT_FLAG_PRIVATE", 1 << 3),
        ("KVM_HC_MAP_GPA_RANGE", 12),
        ("GUEST_MEMFD_FLAG_MMAP", kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP),
        ("GUEST_MEMFD_FLAG_INIT_SHARED", kvm_create_guest_memfd.GUEST_MEMFD_FLAG_INIT_SHARED),
        ("FALLOC_FL_KEEP_SIZE", 1),
        ("FALLOC_FL_PUNCH_HOLE", 2),
        ("PROT_NONE", 0),
        ("PROT_READ", 1),
        ("PROT_WRITE", 2),
        ("PROT_EXEC", 4),
        ("MAP_SHARED", 0x1),
        ("MAP_PRIVATE", 0x2),
        ("MAP_FIXED", 0x10),
        ("MAP_ANONYMOUS", 0x20),
        ("MAP_NORESERVE", 0x4000),
        ("MAP_POPULATE", 0x8000),
        ("MAP_HUGETLB", 0x4_0000),
        ("MAP_FIXED_NOREPLACE", 0x10_0000),
        ("MAP_HUGE_2MB", 21U << 26),
        ("MAP_HUGE_1GB", 30U << 26),
        ("MFD_CLOEXEC", 1),
        ("MFD_ALLOW_SEALING", 2),
        ("MFD_HUGETLB", 4),
        ("MFD_INACCESSIBLE", 8),
        ("MFD_HUGE_2MB", 21U << 26),
        ("MFD_HUGE_1GB", 30U << 26),
        ("MREMAP_MAYMOVE", 1),
        ("MREMAP_FIXED", 2),
        ("MREMAP_DONTUNMAP", 4),
        ("MADV_DONTNEED", 4),
        ("MADV_FREE", 8),
        ("MADV_REMOVE", 9),
        ("MADV_DONTFORK", 10),
        ("MADV_POPULATE_READ", 22),
        ("MADV_POPULATE_WRITE", 23),
        ("MADV_HWPOISON", 100),
    ];

    private static IEnumerable<(string Name, ulong Value)> ConstantsOf(Type type, string prefix) =>
        type.GetFields(BindingFlags.Public | BindingFlags.Static)
            .Where(field => field.IsLiteral)
            .Select(field => (prefix + field.Name, Convert.ToUInt64(field.GetRawConstantValue(), null)));
}
