using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Amd.Legacy;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Amd;

/// <summary>SEV firmware towards a host that is not KVM: what KVM's own order of commands never asks, it refuses all the same (55766).</summary>
public sealed class PspLegacyTests : IDisposable
{
    private readonly Machine _machine = new(new MachineConfig { MemoryBytes = 64 << 12 }, 1);
    private readonly MachineThread _thread;

    public PspLegacyTests()
    {
        _thread = new MachineThread(_machine);
        _thread.BeginCall(1);
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpInit(_thread));
    }

    [Theory]
    [InlineData(0u, SevStatus.POLICY_FAILURE)]
    [InlineData(SevPolicy.ES, SevStatus.SUCCESS)]
    public void UpdateVmsa_IsForGuestsWhosePolicyHasTheEsBit(uint policy, SevStatus expected)
    {
        uint handle = Start(policy);
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.Activate(_thread, handle, policy == SevPolicy.ES ? 1 : _machine.Config.MinSevAsid));
        Assert.True(_machine.TryAllocateFrame(out Pfn vmsa));

        Assert.Equal(expected, _machine.Psp.LaunchUpdateVmsa(_thread, handle, vmsa));
        Assert.Equal(expected == SevStatus.SUCCESS ? [] : [Psp.NotSevEs], _thread.Causes.Select(cause => cause.Rule));
    }

    // Policy, ASID with 100 as the first of SEV guests and 509 as the last, status.
    [Theory]
    [InlineData(0u, 0u, SevStatus.INVALID_ASID)]
    [InlineData(0u, 99u, SevStatus.INVALID_ASID)]
    [InlineData(0u, 100u, SevStatus.SUCCESS)]
    [InlineData(0u, 509u, SevStatus.SUCCESS)]
    [InlineData(0u, 510u, SevStatus.INVALID_ASID)]
    [InlineData(SevPolicy.ES, 0u, SevStatus.INVALID_ASID)]
    [InlineData(SevPolicy.ES, 1u, SevStatus.SUCCESS)]
    [InlineData(SevPolicy.ES, 99u, SevStatus.SUCCESS)]
    [InlineData(SevPolicy.ES, 100u, SevStatus.INVALID_ASID)]
    public void Activate_GivesAnAsidOfThePolicysRange(uint policy, uint asid, SevStatus expected)
    {
        Assert.Equal(expected, _machine.Psp.Activate(_thread, Start(policy), asid));
        Assert.Equal(expected == SevStatus.SUCCESS ? [] : [Psp.AsidOfAnotherPolicy], _thread.Causes.Select(cause => cause.Rule));
    }

    public void Dispose() => _machine.Dispose();

    private uint Start(uint policy)
    {
        uint handle = 0;
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.LaunchStart(_thread, ref handle, policy, [], []));
        return handle;
    }
}
