using SimMachine.Addressing;
using SimMachine.Arm;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Arm;

/// <summary>The hypervisor at EL2 does not trust its host: what a kernel that keeps its own books never asks, it refuses all the same.</summary>
public sealed class El2Tests : IDisposable
{
    private const uint Guest = 1;
    private static readonly Gfn s_ipa = new(0x80);

    private readonly Machine _machine = new(new MachineConfig { Platform = Platform.ArmPkvm, Sev = false, MemoryBytes = 64 << 12 }, 7);
    private readonly MachineThread _thread;

    public El2Tests() => _thread = new MachineThread(_machine);

    private El2 El2 => _machine.El2;

    [Fact]
    public void Donate_OfASecondPageForOneAddress_IsRefused_AndThePageStaysTheHosts()
    {
        Pfn first = Page(), second = Page();
        Assert.Equal(El2Result.OK, El2.Donate(_thread, Guest, s_ipa, first));

        AssertRefused(El2.Donate(_thread, Guest, s_ipa, second), El2Result.EPERM, El2.AddressTaken);
        Assert.Equal(PageOwnership.HostOwned, El2.StateOf(second));
        Assert.True(El2.TryGetGuestPage(Guest, s_ipa, out Pfn at));
        Assert.Equal(first, at);

        // The same address of another guest is another address.
        Assert.Equal(El2Result.OK, El2.Donate(_thread, Guest + 1, s_ipa, second));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Donate_OfAPageThatAGuestHas_IsRefused_WhetherItSharesItOrNot(bool shared)
    {
        Pfn page = Page();
        Assert.Equal(El2Result.OK, El2.Donate(_thread, Guest, s_ipa, page));
        if (shared)
        {
            Assert.Equal(El2Result.OK, El2.Share(_thread, Guest, s_ipa));
        }

        AssertRefused(El2.Donate(_thread, Guest, new Gfn(0x81), page), El2Result.EPERM, El2.NotHostOwned);
        AssertRefused(El2.Donate(_thread, Guest + 1, s_ipa, page), El2Result.EPERM, El2.NotHostOwned);
        Assert.Equal([page], El2.ReclaimAll(_thread, Guest));
        Assert.Equal(El2Result.OK, El2.Donate(_thread, Guest + 1, s_ipa, page));
    }

    [Fact]
    public void ShareAndUnshare_AreForPagesThatTheGuestHas_AndNotTwice()
    {
        AssertRefused(El2.Share(_thread, Guest, s_ipa), El2Result.ENOENT, El2.NoPage);
        El2.Donate(_thread, Guest, s_ipa, Page());
        AssertRefused(El2.Unshare(_thread, Guest, s_ipa), El2Result.EPERM, El2.WrongState);
        Assert.Equal(El2Result.OK, El2.Share(_thread, Guest, s_ipa));
        AssertRefused(El2.Share(_thread, Guest, s_ipa), El2Result.EPERM, El2.WrongState);
    }

    public void Dispose() => _machine.Dispose();

    private Pfn Page()
    {
        _thread.BeginCall(1);
        return _machine.TryAllocateFrame(out Pfn page) ? page : throw new InvalidOperationException("the machine is full");
    }

    private void AssertRefused(El2Result result, El2Result expected, Rule rule)
    {
        Assert.Equal((expected, rule), (result, _thread.Causes[^1].Rule));
        _thread.BeginCall(1);
    }
}
