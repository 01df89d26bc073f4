using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>What this machine's KVM is, by asking it, and the simulated host that is to be like it.</summary>
internal sealed record Machine(string Profile, uint VmTypes, bool Tdp, bool Smm, string Release)
{
    /// <summary>Asks; skips the calling test where there is nothing to compare with.</summary>
    public static async Task<Machine> Probe()
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
        return new Machine(
            bound == new Answer(eexist, 0).ToString() ? "K72" : "K618",
            (uint)await Extension(Numbers.CapVmTypes),
            Tdp: await Extension(Numbers.CapPreFaultMemory) != 0,
            Smm: await Extension(Numbers.CapMultiAddressSpace) == 2,
            await File.ReadAllTextAsync("/proc/sys/kernel/osrelease"));

        async Task<long> Extension(uint cap) => (await real.Ioctl(fd, Numbers.CheckExtension, cap)).Value;
    }

    /// <summary>A simulated host without the processor features that this machine lacks.</summary>
    public CreateHostRequest Host() => new()
    {
        Profile = Profile,
        Machine = new MachineConfig { Sev = false },
        Kernel = new KernelConfig { Tdp = Tdp, Smm = Smm, SwProtectedVm = (VmTypes & 2) != 0 },
    };

    public override string ToString() => $"Linux {Release.Trim()}, {Profile}";
}
