using SimKvm.Abi;
using SimKvm.Exploration;
using SimKvm.Profiles;
using SimKvm.Tests.Support;
using SimKvm.Userspace;

namespace SimKvm.Tests.Exploration;

/// <summary>Scenarios of tests: a host that is set up with the helpers of all tests, and programs made of calls.</summary>
internal static class Explored
{
    public const uint PunchHole = 3;

    /// <summary>What one thread calls.</summary>
    public delegate void Calls(Process process);

    public static Scenario Scenario(string profile, Func<TestHost, PreparedScenario> prepare) => new()
    {
        Title = "test",
        Profile = KernelProfiles.Find(profile)!,
        Prepare = host => prepare(new TestHost(host)),
    };

    public static ExplorationResult Explore(Scenario scenario, ExplorationOptions? options = null)
    {
        using var explorer = new Explorer(scenario, options);
        return explorer.Explore();
    }

    /// <summary>Programs of one process, named by their letters.</summary>
    public static PreparedScenario Programs(Vmm vmm, params Action<Process>[] programs) =>
        new([.. programs.Select((body, i) => new ExploredProgram($"program {i}", vmm.Process, body))]);

    /// <summary>A VM with one private page of memory at gpa 0 that a guest_memfd backs.</summary>
    public static (TestVm Vm, int Gmem) PrivateVm(TestHost host, VmType type = VmType.KVM_X86_SW_PROTECTED_VM, ulong pages = 1)
    {
        TestVm vm = host.Vmm.CreateVm(type);
        if (type == VmType.KVM_X86_SNP_VM)
        {
            vm.Init2();
        }
        int gmem = vm.CreateGmem(pages);
        vm.AddGmemSlot(0, 0, pages, gmem);
        vm.SetPrivate(0, pages);
        return (vm, gmem);
    }

    /// <summary>The scenario of seed 001: a launched SNP guest whose page is shared by attribute; a hole is punched while the attribute ioctl makes it private.</summary>
    public static Scenario PunchHoleAgainstAttributes(string profile) => Scenario(profile, host =>
    {
        (TestVm vm, int gmem) = PrivateVm(host, VmType.KVM_X86_SNP_VM);
        vm.Start();
        vm.Finish();
        vm.SetShared(0, 1);
        vm.SetPrivate(0, 1);
        return Programs(host.Vmm, _ => host.Vmm.Process.Fallocate(gmem, PunchHole, 0, 4096), _ => vm.TrySetAttributes(0, 4096, TestVm.Private));
    });
}
