using SimKvm.Abi;
using SimKvm.Locking;
using SimKvm.Tests.Support;
using SimMachine.Measurement;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Faults;

/// <summary>
/// The table of kvm-guest-memory.md 1.2: which operation takes which of the five locks, and how (W exclusive, R shared, in the order of first use). Then what may be held where a
/// hook of the architecture runs (11.1).
/// </summary>
public sealed class LockTableTests : KvmTest
{
    private const VmType T = VmType.KVM_X86_SW_PROTECTED_VM;
    private const ulong Gpa = 0x20_0000;

    private static readonly string[] Five = ["kvm->slots_lock", "kvm->slots_arch_lock", "invalidate_lock", "kvm->mmu_lock", "kvm->srcu"];

    private static readonly Dictionary<string, Action<Machinery>> Operations = new()
    {
        ["create gmem slot"] = m => m.Vm.AddGmemSlot(1, Gpa + 0x10_0000, 4, m.SpareFile),
        ["delete gmem slot"] = m => m.Vm.DeleteSlot(0),
        ["create plain slot"] = m => m.Vm.AddSlot(1, Gpa + 0x10_0000, 4),
        ["set attributes over a slot"] = m => m.Vm.SetShared(Gpa, 4),
        ["set attributes without a slot"] = m => m.Vm.SetPrivate(1UL << 40, 4),
        ["allocate"] = m => AssertOk(m.Vm.Vmm.Process.Fallocate(m.Gmem, 1, 0, 4 * 4096)),
        ["punch hole, bound"] = m => AssertOk(m.Vm.Vmm.Process.Fallocate(m.Gmem, 3, 0, 4096)),
        ["punch hole, not bound"] = m => AssertOk(m.Vm.Vmm.Process.Fallocate(m.SpareFile, 3, 0, 4096)),
        ["last close, bound"] = m => AssertOk(m.Vm.Vmm.Close(m.Gmem)),
        ["last close, not bound"] = m => AssertOk(m.Vm.Vmm.Close(m.SpareFile)),
        ["fault"] = m => m.Guest.Read(Gpa),
        ["pre-fault"] = m => m.Guest.PreFault(Gpa, 1),
        ["memory failure, bound"] = m => m.Vm.Vmm.Gmem(m.Gmem).ErrorFolio(m.Thread, 3),
        ["memory failure, not bound"] = m => m.Vm.Vmm.Gmem(m.SpareFile).ErrorFolio(m.Thread, 0),
    };

    public static TheoryData<string, string, string> Table => new()
    {
        { K72, "create gmem slot", "slots_lock W, invalidate_lock W, slots_arch_lock W, srcu W" },
        { K72, "delete gmem slot", "slots_lock W, slots_arch_lock W, srcu W, mmu_lock W, invalidate_lock W" },
        { K72, "create plain slot", "slots_lock W, slots_arch_lock W, srcu W" },
        { K72, "set attributes over a slot", "slots_lock W, mmu_lock W" },
        { K72, "set attributes without a slot", "slots_lock W" },
        { K72, "allocate", "invalidate_lock R" },
        { K72, "punch hole, bound", "invalidate_lock W, mmu_lock W" },
        { K72, "punch hole, not bound", "invalidate_lock W" },
        { K72, "last close, bound", "slots_lock W, invalidate_lock W, mmu_lock W" },
        { K72, "last close, not bound", "slots_lock W, invalidate_lock W" },
        { K72, "fault", "srcu R, mmu_lock R" },
        { K72, "pre-fault", "srcu R, mmu_lock R" },
        { K72, "memory failure, bound", "invalidate_lock R, mmu_lock W" },
        { K72, "memory failure, not bound", "invalidate_lock R" },
        // Where pages convert in place, a fault must not see one in the middle of it.
        { "IP8", "fault", "srcu R, invalidate_lock R, mmu_lock R" },
        { "IPDEV", "fault", "srcu R, invalidate_lock R, mmu_lock R" },
        { "IP8", "pre-fault", "srcu R, invalidate_lock R, mmu_lock R" },
    };

    [Theory]
    [MemberData(nameof(Table))]
    public void Operation_TakesTheLocksOfTheTable(string profile, string operation, string expected)
    {
        TestHost host = Boot(profile);
        var machinery = new Machinery(host);
        ulong step = host.Machine.Journal.Steps + 1;
        Operations[operation](machinery);
        string[] taken = [.. host.Machine.Journal.Read(step)
            .Where(record => record.Label.Name.StartsWith("lock ", StringComparison.Ordinal) && Five.Contains(record.Label.Name[5..]))
            .Select(record => $"{record.Label.Name[5..].Replace("kvm->", "", StringComparison.Ordinal)} {(record.B == 1 ? "R" : "W")}").Distinct()];
        Assert.Equal(expected, string.Join(", ", taken));
    }

    // Hooks, how often, and what is held: they may sleep, so never mmu_lock, but for the level hook.
    [Theory]
    [InlineData("POP24", "gmem prepare hook", true)]
    [InlineData("K611", "gmem prepare hook", true)]
    [InlineData(K616, "gmem prepare hook", true)]
    [InlineData(K72, "gmem prepare hook", true)]
    [InlineData("NEXTHOOK", "gmem prepare hook", true)]
    [InlineData("IPDEV", "gmem prepare hook", true)]
    [InlineData("K611", "gmem free hook", true)]
    [InlineData(K72, "gmem free hook", true)]
    [InlineData("IPDEV", "gmem free hook", true)]
    [InlineData("GM23", "gmem free hook before truncation", false)]
    [InlineData("IP8", "gmem make shared hook", false)]
    [InlineData("IPDEV", "gmem make shared hook", false)]
    public void HookThatMaySleep_RunsWithItsFolioLocked_AndNeverUnderMmuLock(string profile, string hook, bool folioLocked)
    {
        TestHost host = Boot(profile);
        var machinery = new Machinery(host);
        List<(bool Folio, bool Mmu, bool Invalidate)> seen = [];
        host.Machine.Baton = new EachStep(hook, current => seen.Add((Holds(current, LockOrder.Folio), Holds(current, LockOrder.Mmu), Holds(current, LockOrder.Invalidate))));
        machinery.Guest.Read(Gpa);
        if (profile.StartsWith("IP", StringComparison.Ordinal))
        {
            machinery.Convert(0, 4, 0);
        }
        AssertOk(host.Vmm.Process.Fallocate(machinery.Gmem, 3, 0, 4 * 4096));
        Assert.NotEmpty(seen);
        Assert.All(seen, held => Assert.Equal((folioLocked, false), (held.Folio, held.Mmu)));
        if (!folioLocked)
        {
            Assert.All(seen, held => Assert.True(held.Invalidate));
        }
    }

    // SNP is the vendor that has both hooks: private by the first fault, the host's again when the page leaves the file.
    [Theory]
    [InlineData("K611")]
    [InlineData(K616)]
    [InlineData("K70")]
    [InlineData(K72)]
    [InlineData("NEXTHOOK")]
    public void Snp_PageIsPrivateFromTheFault_AndSharedWhenItLeavesTheFile(string profile)
    {
        TestHost host = Boot(profile);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.AddPrivateMemory(Gpa, 4);
        vm.Start();
        vm.Update(SnpPageType.ZERO, Gpa, 0, 1);
        var guest = new TestGuest(vm);
        vm.Finish();
        Assert.Equal(1, Owned(vm));
        guest.PreFault(Gpa, 2);
        Assert.Equal(2, Owned(vm));
        AssertOk(host.Vmm.Process.Fallocate(gmem, 1, 0, 4 * 4096));
        Assert.Equal(2, Owned(vm));
        vm.SetShared(Gpa, 4);
        Assert.Equal(2, Owned(vm));
        AssertOk(host.Vmm.Process.Fallocate(gmem, 3, 0, 4096));
        Assert.Equal(1, Owned(vm));
        AssertOk(host.Vmm.Close(gmem));
        Assert.Equal(0, Owned(vm));
    }

    private static long Owned(TestVm vm) => vm.Describe().Rmp.Where(run => !run.Vmsa).Sum(run => (long)(run.Size >> 12));

    private static bool Holds(KTask current, LockClass @class)
    {
        foreach (ref readonly HeldLock held in current.Held.Items)
        {
            if (held.Class == @class)
            {
                return true;
            }
        }
        return false;
    }

    private sealed class EachStep(string label, Action<KTask> look) : Baton
    {
        public override void Pass(SimThread current, StepLabel label1)
        {
            if (label1.Name == label)
            {
                look((KTask)current);
            }
        }
    }

    /// <summary>A VM with four private pages in slot 0, its last one present, and a file that no slot has.</summary>
    private sealed class Machinery
    {
        public Machinery(TestHost host)
        {
            Vm = host.Vmm.CreateVm(T);
            Gmem = Vm.CreateGmem(4);
            SpareFile = Vm.CreateGmem(4);
            Vm.AddGmemSlot(0, Gpa, 4, Gmem);
            Vm.TrySetAttributes(Gpa, 4 * Vmm.Page, TestVm.Private);
            Guest = new TestGuest(Vm);
            AssertOk(host.Vmm.Process.Fallocate(Gmem, 1, 3 * 4096, 4096));
            AssertOk(host.Vmm.Process.Fallocate(SpareFile, 1, 0, 4096));
            Thread = TestHost.NewThread(host.Vmm);
        }

        public TestVm Vm { get; }

        public TestGuest Guest { get; }

        public int Gmem { get; }

        public int SpareFile { get; }

        public KTask Thread { get; }

        public void Convert(ulong page, ulong pages, ulong attributes)
        {
            var args = new kvm_memory_attributes2 { offset = page * Vmm.Page, size = pages * Vmm.Page, attributes = attributes };
            AssertOk(Vm.Vmm.Ioctl(Gmem, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref args));
        }
    }
}
