using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// Who keeps whom alive: VM fd, vCPU fd, guest_memfd fd, mapping of a guest_memfd, closed in every order (kvm-guest-memory.md 4.7). Whatever the order, nothing
/// is left when the last is gone.
/// </summary>
public sealed class LifetimeTests : KvmTest
{
    private const ulong Gpa = 0x100000;

    public static TheoryData<string> OrdersOfFour => [.. Permutations("VCGM")];

    public static TheoryData<string, string> OrdersOfThree
    {
        get
        {
            var data = new TheoryData<string, string>();
            foreach (string order in Permutations("VCG"))
            {
                data.Add(K616, order);
                data.Add(K72, order);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(OrdersOfThree))]
    public void LaunchedSnpGuest_ClosedInAnyOrder_LeavesNothing(string profile, string order)
    {
        TestHost host = Boot(profile);
        long frames = host.Machine.AllocatedPages;
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(Gpa, 8);
        int vcpu = vm.CreateVcpu(0);
        vm.Start();
        vm.Update(SnpPageType.ZERO, Gpa, 0, 8);
        vm.Finish();
        uint asid = vm.Asid;
        Assert.Equal(9, host.Machine.Rmp.Owned(asid).Count());

        CloseInOrder(host, order, new Dictionary<char, Func<CallReport>>
        {
            ['V'] = () => host.Vmm.Close(vm.Fd),
            ['C'] = () => host.Vmm.Close(vcpu),
            ['G'] = () => host.Vmm.Close(gmem),
        });
        Assert.Equal(0, host.Host.LiveVms);
        Assert.Empty(host.Machine.Rmp.Owned(asid));
        // What is left is the VMM's page of command structures.
        Assert.Equal(frames + 1, host.Machine.AllocatedPages);
        Assert.Equal(0, host.Machine.LeakedPages);
        Assert.Empty(host.Machine.Findings.All);
    }

    [Theory]
    [MemberData(nameof(OrdersOfThree))]
    public void SnpGuestInTheMiddleOfItsLaunch_ClosedInAnyOrder_LeavesNothing(string profile, string order)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(Gpa, 8);
        int vcpu = vm.CreateVcpu(0);
        vm.Start();
        vm.Update(SnpPageType.SECRETS, Gpa, host.Vmm.Map(1), 1);
        uint asid = vm.Asid;
        CloseInOrder(host, order, new Dictionary<char, Func<CallReport>>
        {
            ['V'] = () => host.Vmm.Close(vm.Fd),
            ['C'] = () => host.Vmm.Close(vcpu),
            ['G'] = () => host.Vmm.Close(gmem),
        });
        Assert.Equal(0, host.Host.LiveVms);
        Assert.Empty(host.Machine.Rmp.Owned(asid));
    }

    [Theory]
    [MemberData(nameof(OrdersOfFour))]
    public void MappedGuestMemfd_ClosedInAnyOrder_WorksUntilTheLastAndLeavesNothing(string order)
    {
        TestHost host = Boot();
        long frames = host.Machine.AllocatedPages;
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        int gmem = vm.CreateGmem(4, 3);
        vm.AddGmemSlot(0, Gpa, 4, gmem);
        int vcpu = vm.CreateVcpu(0);
        ulong address = (ulong)AssertOk(host.Vmm.Process.Mmap(0, 4 * 4096, Vmm.ProtRead | Vmm.ProtWrite, Vmm.MapShared, gmem, 0)).Value;
        host.Vmm.Store(address, Vmm.Content(1));

        var open = new HashSet<char>("VCGM");
        foreach (char next in order)
        {
            AssertOk(next switch
            {
                'V' => host.Vmm.Close(vm.Fd),
                'C' => host.Vmm.Close(vcpu),
                'G' => host.Vmm.Close(gmem),
                _ => host.Vmm.Process.Munmap(address, 4 * 4096),
            });
            open.Remove(next);
            Assert.Equal(open.Count > 0 ? 1 : 0, host.Host.LiveVms);
            if (open.Contains('M'))
            {
                Assert.Equal(Vmm.Content(1), host.Vmm.Load(address, 4096));
            }
            if (open.Contains('G'))
            {
                AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 4096, 4096));
            }
            if (open.Contains('V'))
            {
                Assert.Equal(open.Contains('G') || open.Contains('M'), vm.Describe().Slots.Single().GmemBound);
            }
        }
        Assert.Equal(frames, host.Machine.AllocatedPages);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void ProcessExit_ClosesEverything(string profile)
    {
        TestHost host = Boot(profile);
        Vmm vmm = host.NewVmm();
        long frames = host.Machine.AllocatedPages;
        TestVm vm = vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        vm.AddPrivateMemory(Gpa, 8);
        vm.CreateVcpu(0);
        vm.CreateVcpu(1);
        vm.Start();
        vm.Update(SnpPageType.NORMAL, Gpa, vmm.MapFilled(8), 8);
        vmm.Process.Exit();
        Assert.Equal(0, host.Host.LiveVms);
        Assert.Equal(frames, host.Machine.AllocatedPages);
        Assert.DoesNotContain(host.Host.Processes, process => process.Pid == vmm.Process.Pid);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void DescriptorInAnotherProcess_KeepsTheVmAlive(string profile)
    {
        TestHost host = Boot(profile);
        Vmm first = host.NewVmm();
        Vmm second = host.NewVmm();
        TestVm vm = first.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(4);
        int there = first.PassTo(second, gmem);
        first.Process.Exit();
        Assert.Equal(1, host.Host.LiveVms);
        AssertOk(second.Process.Fallocate(there, 1, 0, 4096));
        AssertOk(second.Close(there));
        Assert.Equal(0, host.Host.LiveVms);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void GuestMemfdOfADeadVmFd_CannotBeBoundElsewhere(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(4);
        AssertOk(host.Vmm.Close(vm.Fd));
        TestVm other = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        AssertRefusedUnchanged(host, () => other.TrySetRegion2(0, KvmMem.GUEST_MEMFD, Gpa, 4, 0, gmem), Errno.EINVAL, GuestMemfd.OtherVm);
    }

    [Fact]
    public void PartialMunmap_KeepsTheFileUntilTheLastPiece()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        int gmem = vm.CreateGmem(4, 3);
        ulong address = (ulong)host.Vmm.Process.Mmap(0, 4 * 4096, Vmm.ProtRead | Vmm.ProtWrite, Vmm.MapShared, gmem, 0).Value;
        AssertOk(host.Vmm.Close(gmem));
        AssertOk(host.Vmm.Close(vm.Fd));
        AssertOk(host.Vmm.Process.Munmap(address + 4096, 2 * 4096));
        host.Vmm.Store(address + (3 * 4096), Vmm.Content(9));
        AssertOk(host.Vmm.Process.Munmap(address, 4096));
        Assert.Equal(Vmm.Content(9), host.Vmm.Load(address + (3 * 4096), 4096));
        Assert.Equal(1, host.Host.LiveVms);
        AssertOk(host.Vmm.Process.Munmap(address, 4 * 4096));
        Assert.Equal(0, host.Host.LiveVms);
    }

    // Kvm-guest-memory.md 1.5, the row of last close.
    [Theory]
    [MemberData(nameof(Profiles))]
    public void LastClose_TakesItsStepsInTheKernelsOrder(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem);
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 4096));
        ulong step = host.Machine.Journal.Steps + 1;
        AssertOk(host.Vmm.Close(gmem));
        Assert.Equal(
            [
                "lock kvm->slots_lock", "lock invalidate_lock",
                "lock kvm->mmu_lock", "mmu invalidate begin", "mmu invalidate range add", "mmu unmap", "unlock kvm->mmu_lock",
                "lock kvm->mmu_lock", "mmu invalidate end", "unlock kvm->mmu_lock",
                "unlock invalidate_lock", "unlock kvm->slots_lock",
                "lock folio lock", "gmem free hook", "unlock folio lock",
            ],
            host.Machine.Journal.Read(step).Select(record => record.Label.Name));
    }

    private static void CloseInOrder(TestHost host, string order, Dictionary<char, Func<CallReport>> close)
    {
        for (int i = 0; i < order.Length; i++)
        {
            Assert.Equal(1, host.Host.LiveVms);
            AssertOk(close[order[i]]());
        }
    }

    private static IEnumerable<string> Permutations(string letters) => letters.Length <= 1
        ? [letters]
        : letters.SelectMany((letter, i) => Permutations(letters.Remove(i, 1)).Select(rest => letter + rest));
}
