using System.Globalization;
using VmmService.Client;
using VmmService.IntegrationTests.Guests;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Seeds;

/// <summary>
/// Seed 001, "Re: Rename restrictedmem => guardedmem?", Michael Roth, 11 May 2023: SNP on the guest_memfd of that spring. Each test is a sentence of the mail. Profile GM23SNP is
/// the port that the mail describes; the merged kernels (K611 and later) answered it.
/// </summary>
public sealed class Seed001PunchHoleTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const string Port = "GM23SNP";
    private const ulong Gpa = 16 * SnpGuest.Page;
    private const ulong Pages = 8;

    // "One of the main things is kvm_gmem_punch_hole(): this is can free pages back to the host whenever userspace feels like it."
    [Theory]
    [InlineData(Port)]
    [InlineData("K611")]
    [InlineData("K72")]
    public async Task WheneverUserspaceFeelsLikeIt_PagesGoBackToTheHost_InTheNormalState(string profile)
    {
        await using SnpGuest guest = await GuestWithPrivatePages(profile);
        Assert.True(await IsPrivateInRmp(guest, Gpa));

        FallocateResponse hole = await guest.Memfd.PunchHoleAsync((long)Gpa, (long)(Pages * SnpGuest.Page)).Reply;

        Assert.Equal((0, 0), (hole.Outcome.Errno, hole.Outcome.Findings.Count));
        Assert.False(await IsPrivateInRmp(guest, Gpa));
        // The host uses the frames for something else and does not blow up.
        ulong uaddr = await guest.Process.MmapAsync(2 * Pages * SnpGuest.Page);
        await guest.Process.FillAsync(uaddr, new byte[] { 0xee }, 2 * Pages * SnpGuest.Page);
        Assert.Empty(await guest.Findings());
    }

    // "Pages that are still marked private in the RMP table will blow up the host if they aren't returned to the normal state before handing them back to the kernel. So I'm trying
    // to add a hook". A kernel without that hook: today's, with the free hook of 6.8, which had none.
    [Fact]
    public async Task WithoutTheHook_ThePageIsFreedWhileItIsPrivate_AndTheFindingNamesWhoAssignedItAndWhoFreedIt()
    {
        var request = new CreateHostRequest { Profile = "K72", Seed = 1, Borrowed = { new BorrowedBehaviour { Name = "FreeHook", FromProfile = "K68" } }, DeleteWhenEmpty = true };
        CreateHostResponse created = await daemon.Stubs.Hosts.CreateHostAsync(request);
        await using SnpGuest guest = await SnpGuest.LaunchAsync(await daemon.Connection.GetHostAsync(created.Host.Host_));
        RunResponse touched = await guest.Run(GhcbGuest.Pvalidate(Gpa), Guest.Write(Gpa, "secret"u8), Guest.Halt());

        FallocateResponse hole = await guest.Memfd.PunchHoleAsync((long)Gpa, (long)SnpGuest.Page).Reply;

        Finding finding = Assert.Single(hole.Outcome.Findings);
        Assert.Equal("page-freed-while-private", finding.Kind);
        Assert.Equal((hole.Outcome.Call, Gpa), (finding.Call, finding.Operands.Single(operand => operand.Name == "gpa").Value));
        Assert.Equal(2, finding.Blame.Count);
        Assert.Contains(string.Create(CultureInfo.InvariantCulture, $"call {touched.Outcome.Call} "), finding.Blame[0], StringComparison.Ordinal);
        Assert.Contains(string.Create(CultureInfo.InvariantCulture, $"call {hole.Outcome.Call}, step {finding.Step}"), finding.Blame[1], StringComparison.Ordinal);
        Assert.Contains("freed it", finding.Blame[1], StringComparison.Ordinal);
    }

    // "there's another hook, kvm_arch_gmem_set_mem_attributes(), needed to put the page in its intended state in the RMP table prior to mapping it into the guest's NPT. Currently I'm
    // calling that hook via kvm_vm_ioctl_set_mem_attributes()". Merged kernels do it when the guest first touches the page.
    [Theory]
    [InlineData(Port, true)]
    [InlineData("K611", false)]
    [InlineData("K72", false)]
    public async Task TheIntendedState_IsPutIntoTheRmp_ByTheAttributeIoctlThen_ByTheFaultToday(string profile, bool byIoctl)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, profile);
        await guest.Convert(Gpa, Pages, isPrivate: false);
        await guest.Convert(Gpa, Pages, isPrivate: true);
        Assert.Equal(byIoctl, await IsPrivateInRmp(guest, Gpa));

        await guest.RunToHalt(GhcbGuest.Pvalidate(Gpa), Guest.Write(Gpa, "mine"u8));
        Assert.True(await IsPrivateInRmp(guest, Gpa));
    }

    // "something like the following sequence". One call after the other there is nothing between invalidate and truncate, so no order of whole calls hurts; the interleaving that
    // does needs two CPUs.
    [Theory]
    [InlineData(Port)]
    [InlineData("K72")]
    public async Task HolesAndAttributes_OneAfterTheOther_InAnyOrder_LeaveTheHostAlive(string profile)
    {
        await using SnpGuest guest = await GuestWithPrivatePages(profile);
        Func<Task> punch = async () => await guest.Memfd.PunchHoleAsync((long)Gpa, (long)(Pages * SnpGuest.Page));
        Func<Task> makePrivate = async () => await guest.Vm.SetMemoryAttributesAsync(Gpa, Pages * SnpGuest.Page, KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE);
        Func<Task> makeShared = async () => await guest.Vm.SetMemoryAttributesAsync(Gpa, Pages * SnpGuest.Page, 0);
        foreach (Func<Task> call in new[] { punch, makePrivate, punch, makeShared, makePrivate, punch, makeShared, punch, makePrivate, makePrivate, punch })
            await call();

        Assert.Empty(await guest.Findings());
        Assert.False(await IsPrivateInRmp(guest, Gpa));
    }

    // "RMP updates can't be done while holding KVM->mmu_lock spinlock": nobody does, or lockdep would have said so.
    [Theory]
    [InlineData(Port)]
    [InlineData("K72")]
    public async Task NoRmpUpdateIsMadeUnderTheMmuLock(string profile)
    {
        await using SnpGuest guest = await GuestWithPrivatePages(profile);
        await guest.Convert(Gpa, Pages, isPrivate: false);
        await guest.Convert(Gpa, Pages, isPrivate: true);
        await guest.Memfd.PunchHoleAsync((long)Gpa, (long)(Pages * SnpGuest.Page));
        Assert.DoesNotContain(await guest.Findings(), finding => finding.Kind.Contains("lock", StringComparison.Ordinal) || finding.Kind.Contains("sleep", StringComparison.Ordinal));
    }

    private async Task<SnpGuest> GuestWithPrivatePages(string profile)
    {
        SnpGuest guest = await SnpGuest.LaunchAsync(daemon, profile);
        await guest.Convert(Gpa, Pages, isPrivate: true);
        IEnumerable<GuestStep> take = Enumerable.Range(0, (int)Pages).Select(i => GhcbGuest.Pvalidate(Gpa + ((ulong)i * SnpGuest.Page)));
        await guest.RunToHalt([.. take, Guest.Fill(Gpa, Pages * SnpGuest.Page, "secret"u8)]);
        return guest;
    }

    private static async Task<bool> IsPrivateInRmp(SnpGuest guest, ulong gpa) =>
        (await guest.Vm.DescribeAsync()).Rmp.Any(range => !range.Vmsa && range.Gpa <= gpa && gpa < range.Gpa + range.Size);
}
