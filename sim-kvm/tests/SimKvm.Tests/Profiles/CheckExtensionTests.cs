using SimKvm.Abi;
using SimKvm.Tests.Support;
using SimMachine;
using Xunit;

namespace SimKvm.Tests;

/// <summary>KVM_CHECK_EXTENSION for each profile, on /dev/kvm and on each VM type: the table of kvm-guest-memory.md 2.3.</summary>
public sealed class CheckExtensionTests : KvmTest
{
    // Profile, capability, /dev/kvm, then VM types 0 to 4: default, software-protected, SEV, SEV-ES, SNP.
    public static TheoryData<string, ulong, long[]> Answers
    {
        get
        {
            var data = new TheoryData<string, ulong, long[]>();
            foreach (string profile in new[] { K616, K72 })
            {
                foreach (ulong one in new[]
                {
                    KvmCap.USER_MEMORY, KvmCap.SYNC_MMU, KvmCap.DESTROY_MEMORY_REGION_WORKS, KvmCap.JOIN_MEMORY_REGIONS_WORKS, KvmCap.CHECK_EXTENSION_VM,
                    KvmCap.ENABLE_CAP_VM, KvmCap.USER_MEMORY2, KvmCap.MEMORY_FAULT_INFO,
                })
                {
                    data.Add(profile, one, [1, 1, 1, 1, 1, 1]);
                }
                data.Add(profile, KvmCap.NR_MEMSLOTS, [32764, 32764, 32764, 32764, 32764, 32764]);
                data.Add(profile, KvmCap.MAX_VCPUS, [1024, 1024, 1024, 1024, 1024, 1024]);
                data.Add(profile, KvmCap.MAX_VCPU_ID, [4096, 4096, 4096, 4096, 4096, 4096]);
                data.Add(profile, KvmCap.READONLY_MEM, [1, 1, 1, 1, 0, 0]);
                data.Add(profile, KvmCap.MULTI_ADDRESS_SPACE, [2, 2, 1, 2, 2, 1]);
                data.Add(profile, KvmCap.EXIT_HYPERCALL, [0x1000, 0x1000, 0x1000, 0x1000, 0x1000, 0x1000]);
                data.Add(profile, KvmCap.MEMORY_ATTRIBUTES, [8, 0, 8, 0, 0, 8]);
                data.Add(profile, KvmCap.VM_TYPES, [0x1f, 0x1f, 0x1f, 0x1f, 0x1f, 0x1f]);
                // Numbers that are nobody's, or that no merged kernel has.
                foreach (ulong none in new ulong[] { 2, 249, 250, 251, 1000, 0xffff_ffff, ulong.MaxValue })
                {
                    data.Add(profile, none, [0, 0, 0, 0, 0, 0]);
                }
            }
            data.Add(K616, KvmCap.GUEST_MEMFD, [1, 0, 1, 0, 0, 1]);
            data.Add(K72, KvmCap.GUEST_MEMFD, [1, 1, 1, 1, 1, 1]);
            data.Add(K616, KvmCap.GUEST_MEMFD_FLAGS, [0, 0, 0, 0, 0, 0]);
            data.Add(K72, KvmCap.GUEST_MEMFD_FLAGS, [3, 3, 1, 3, 3, 1]);
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Answers))]
    public void Capability_AnswersByProfileAndVmType(string profile, ulong cap, long[] expected)
    {
        TestHost host = Boot(profile);
        var answers = new List<long> { host.Vmm.CheckExtension(cap) };
        for (VmType type = VmType.KVM_X86_DEFAULT_VM; type <= VmType.KVM_X86_SNP_VM; type++)
        {
            answers.Add(host.Vmm.CreateVm(type).CheckExtension(cap));
        }
        Assert.Equal(expected, answers);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void PrivateMemory_IsAnsweredWithoutSevToo(string profile)
    {
        TestHost host = Boot(profile, new MachineConfig { Sev = false });
        Assert.Equal(3, host.Vmm.CheckExtension(KvmCap.VM_TYPES));
        Assert.Equal(8, host.Vmm.CheckExtension(KvmCap.MEMORY_ATTRIBUTES));
    }
}
