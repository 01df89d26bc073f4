using VmmService.Client;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>What this machine's KVM is, by asking it, and the simulated host that is to be like it.</summary>
/// <param name="IsStandIn">The profile is the nearest there is, not this machine's.</param>
internal sealed record Machine(string Profile, bool IsStandIn, uint VmTypes, string Release)
{
    /// <summary>Asks; skips the calling test where there is nothing to compare with.</summary>
    public static async Task<Machine> Probe(VmmStubs stubs)
    {
        Assert.SkipUnless(File.Exists("/dev/kvm"), "there is no /dev/kvm to compare with");
        await using var real = new RealKernel();
        Answer kvm = await real.Open("/dev/kvm");
        Assert.SkipUnless(kvm.Errno == 0, $"/dev/kvm cannot be opened: errno {kvm.Errno}");
        int fd = (int)kvm.Value;
        long flags = (await real.Ioctl(fd, Numbers.CheckExtension, Numbers.CapGuestMemfdFlags)).Value;
        Assert.SkipUnless(flags == 3, "this kernel is older than 6.18: KVM_CAP_GUEST_MEMFD_FLAGS is not 3");
        Answer vm = await real.Ioctl(fd, Numbers.CreateVm, 0);
        Assert.SkipUnless(vm.Errno == 0, $"KVM_CREATE_VM fails with errno {vm.Errno}");

        // Binding a page twice tells 6.18 to 7.0 from what came after.
        const int eexist = 17;
        var side = new Side(real);
        string bound = "";
        foreach (Step step in (Step[])[
            new OpenKvm(1), new PlainIoctl(1, Numbers.CreateVm, 0, 2), new CreateGuestMemfd(2, 4096, 0, 0, 3),
            new SetRegion(2, 2, 0, 4, 0, 4096, 0, 0, 3, 0), new SetRegion(2, 2, 1, 4, 8192, 4096, 0, 0, 3, 0)])
        {
            bound = await step.Play(side);
        }
        ListProfilesResponse profiles = await stubs.Hosts.ListProfilesAsync(new ListProfilesRequest());
        string wanted = bound == new Answer(eexist, 0).ToString() ? "K72" : "K618";
        bool exists = profiles.Profiles.Any(profile => profile.Id == wanted);
        return new Machine(
            exists ? wanted : "K72", !exists, (uint)(await real.Ioctl(fd, Numbers.CheckExtension, Numbers.CapVmTypes)).Value, await File.ReadAllTextAsync("/proc/sys/kernel/osrelease"));
    }

    /// <summary>A simulated host without the processor features that this machine lacks.</summary>
    public CreateHostRequest Host() => new() { Profile = Profile, Machine = new MachineConfig { Sev = false } };

    public override string ToString() => $"Linux {Release.Trim()}, {Profile}";
}
