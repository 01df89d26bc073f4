using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Scripts;

/// <summary>Faults that scripts ask for: where they strike, what they do, that they strike once, and that the answer says where they came from.</summary>
public sealed class InjectedFaultTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const string Vm = """
        - open: /dev/kvm
          as: kvm
        - open: /dev/sev
          as: sev
        - create_vm: SNP
          as: vm
        - sev_init2:
        - mmap: {length: 8KiB}
          as: ram
        - write: {addr: $ram, content: {pattern: "01", length: 8KiB}}
        - create_guest_memfd: {size: 8KiB}
          as: gmem
        - set_user_memory_region2: {flags: KVM_MEM_GUEST_MEMFD, memory_size: 8KiB, guest_memfd: $gmem}
        - set_memory_attributes: {address: 0, size: 8KiB, attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE}
        - snp_launch_start: {policy: 0x30000}

        """;

    // The fault, and a call that meets it: first as the fault has it, then as ever.
    [Theory]
    [InlineData("{call: fallocate, errno: ENOSPC}", "fallocate: {len: 4KiB}", "{errno: ENOSPC, rule: fault.errno}")]
    [InlineData("{call: KVM_SET_MEMORY_ATTRIBUTES, errno: ENOMEM}", "set_memory_attributes: {address: 0, size: 4KiB, attributes: 8}", "{errno: ENOMEM, rule: fault.errno}")]
    [InlineData("{gpa: 0x1000, errno: EHWPOISON}", "snp_launch_update: {gfn_start: 1, uaddr: $ram, len: 4KiB}", "{errno: EIO, rule: fault.errno}")]
    [InlineData("{call: KVM_SEV_SNP_LAUNCH_UPDATE, status: 0x10}", "snp_launch_update: {gfn_start: 0, uaddr: $ram, len: 4KiB}", "{errno: EIO, rule: fault.firmware-status}")]
    [InlineData("{step: gmem folio lookup, no_memory: true}", "fallocate: {len: 4KiB}", "{errno: ENOMEM, rule: kvm.gmem.no-memory}")]
    [InlineData("{step: lock invalidate_lock, signal: true}", "fallocate: {len: 4KiB}", "{errno: EINTR, rule: kvm.signal-pending}")]
    public async Task AFault_StrikesOnce(string fault, string call, string expected)
    {
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, $"""
            {Vm}- inject_fault: {fault}
            - {call}
              expect: {expected}
            - {call}
            """);
        Assert.Null(outcome.Error);
        Assert.Empty(outcome.Unmet);
    }

    // A status that KVM does not retry. Up to 6.18 a page that cannot be added is told; mapping it has made it a prepared page all the same, which is not populated again. Later kernels
    // take the status for a bug, and the VM is dead.
    [Theory]
    [InlineData("K616", "{errno: EIO, rule: tdx.injected, left: {gpa: 0x1000, nr_pages: 1}}", "EEXIST")]
    [InlineData("K72", "{errno: EIO, rule: tdx.injected, findings: 1, left: {gpa: 0x1000, nr_pages: 1}}", "{errno: EIO, rule: kvm.vm.dead}")]
    public async Task AModuleStatus_StrikesOnce(string profile, string expected, string afterwards)
    {
        const string region = "tdx_init_mem_region: {gpa: 0x1000, content: {pattern: f4, length: 4KiB}}";
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, $$"""
            profile: {{profile}}
            machine: {platform: INTEL_TDX}
            steps:
              - open: /dev/kvm
                as: kvm
              - create_vm: TDX
                as: vm
              - enable_cap: {cap: KVM_CAP_SPLIT_IRQCHIP, args: [24]}
              - tdx_init_vm: {attributes: 0x10000000, xfam: 3}
              - create_vcpu: 0
                as: vcpu
              - tdx_get_cpuid: {set: true}
              - tdx_init_vcpu:
              - create_guest_memfd: {size: 8KiB}
                as: gmem
              - set_user_memory_region2: {flags: KVM_MEM_GUEST_MEMFD, memory_size: 8KiB, guest_memfd: $gmem}
              - set_memory_attributes: {address: 0, size: 8KiB, attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE}
              - tdx_init_mem_region: {gpa: 0, content: {pattern: f4, length: 4KiB} }
              - inject_fault: {call: KVM_TDX_INIT_MEM_REGION, module_status: 0xc000010000000008}
              - {{region}}
                expect: {{expected}}
              - {{region}}
                expect: {{afterwards}}
            """);
        Assert.Null(outcome.Error);
        Assert.Empty(outcome.Unmet);
    }

    [Fact]
    public async Task AnOccurrence_IsCounted()
    {
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, $$"""
            {{Vm}}- inject_fault: {call: fallocate, occurrence: 3, errno: EIO}
            - fallocate: {len: 4KiB}
            - fallocate: {len: 4KiB}
            - fallocate: {len: 4KiB}
              expect: EIO
            - fallocate: {len: 4KiB}
            """);
        Assert.Null(outcome.Error);
        Assert.Empty(outcome.Unmet);
    }

    [Theory]
    [InlineData("{}")]
    [InlineData("{call: fallocate}")]
    [InlineData("{errno: EIO}")]
    [InlineData("{call: fallocate, gpa: 0, errno: EIO}")]
    [InlineData("{call: fallocate, errno: EIO, signal: true}")]
    [InlineData("{step: lock kvm->lock, errno: EIO}")]
    [InlineData("{call: fallocate, errno: EIO, occurrence: 0}")]
    [InlineData("{call: fallocate, errno: 9999}")]
    [InlineData("{call: fallocate, module_status: 0xc000010000000008}")]
    public async Task WhatIsNoFault_IsRefusedWithItsPlace(string fault)
    {
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, $"- inject_fault: {fault}");
        Assert.NotNull(outcome.Error);
        Assert.Equal(1u, outcome.Error!.Line);
    }

    // It would wait for ever, and nobody would say so.
    [Theory]
    [InlineData("AMD", "module_status: 0xc000010000000008", "TDX module")]
    [InlineData("ARM_PKVM", "module_status: 0xc000010000000008", "TDX module")]
    [InlineData("INTEL_TDX", "status: 0x10", "secure processor")]
    [InlineData("INTEL_TDX", "firmware_timeout: true", "secure processor")]
    public async Task AFault_OfSiliconThatTheHostHasNot_IsRefused(string platform, string effect, string says)
    {
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, $$"""
            machine: {platform: {{platform}}}
            steps:
              - inject_fault: {call: fallocate, {{effect}}}
            """);
        Assert.NotNull(outcome.Error);
        Assert.Equal(3u, outcome.Error!.Line);
        Assert.Contains(says, outcome.Error.Problem, StringComparison.Ordinal);
    }
}
