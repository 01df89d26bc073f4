using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Scripts;

/// <summary>Guests of scripts that speak with their hypervisor.</summary>
public sealed class SnpGuestScriptTests(Daemon daemon) : IClassFixture<Daemon>
{
    [Fact]
    public async Task AGuestThatAsksForAPage_IsFollowedStepByStep()
    {
        const string conversion = """
            steps:
              - open: /dev/kvm
                as: kvm
              - open: /dev/sev
                as: sev
              - create_vm: SNP
                as: vm
              - sev_init2:
              - enable_cap: {cap: KVM_CAP_EXIT_HYPERCALL, args: [0x1000]}
              - mmap: 2MiB
                as: backing
              - mmap: 64KiB
                as: shared
              - create_guest_memfd: {size: 2MiB}
                as: gmem
              - set_user_memory_region2: {flags: KVM_MEM_GUEST_MEMFD, memory_size: 2MiB, userspace_addr: $backing, guest_memfd: $gmem}
              - set_user_memory_region2: {slot: 1, guest_phys_addr: 0x40000000, memory_size: 64KiB, userspace_addr: $shared}
              - set_memory_attributes: {address: 0, size: 2MiB, attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE}
              - create_vcpu: 0
                as: vcpu
              - snp_launch_start:
              - snp_launch_finish:
              - program:
                  steps:
                    - vmgexit: {msr: 0x40000012}
                    - pvalidate: 0x10000
                    - write: {gpa: 0x10000, data: "736563726574"}
                    - page_state: {ghcb: 0x40000000, gpa: 0x10000, private: false}
                    - write: {gpa: 0x10000, data: "7061636b6574", access: shared}
                    - halt
              - run:
                expect: {exit: {reason: HYPERCALL, nr: 12}}
              - set_memory_attributes: {address: 0x10000, size: 4KiB, attributes: 0}
              - fallocate: {mode: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset: 0x10000, len: 4KiB}
              - run: {hypercall_ret: 0}
                expect: {exit: {reason: HLT}}
            """;
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, conversion);
        Assert.Null(outcome.Error);
        Assert.Empty(outcome.Unmet);
        Assert.NotNull(outcome.Summary);
    }
}
