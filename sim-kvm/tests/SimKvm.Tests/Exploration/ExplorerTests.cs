using SimKvm.Abi;
using SimKvm.Exploration;
using SimKvm.Tests.Support;
using Xunit;

namespace SimKvm.Tests.Exploration;

/// <summary>What the explorer finds, how it tells it, and that it tells the same each time.</summary>
public sealed class ExplorerTests
{
    [Fact]
    public void Seed001_IsFoundWithTheScheduleOfTheMail()
    {
        ExplorationResult result = Explored.Explore(Explored.PunchHoleAgainstAttributes("GM23SNP"));

        Assert.Equal(ExplorationEnd.Exhausted, result.End);
        ExploredFinding finding = Assert.Single(result.Findings);
        Assert.Equal(("page-freed-while-private", 1, true), (finding.Kind, finding.Preemptions, finding.Minimal));
        Assert.Contains("B (KVM_SET_MEMORY_ATTRIBUTES", finding.Blame[0], StringComparison.Ordinal);
        Assert.Contains("A (fallocate", finding.Blame[1], StringComparison.Ordinal);

        // The attribute ioctl comes between the free hook's RMPUPDATE and the truncation.
        int rmpupdate = Row(finding, "rmpupdate"), attributes = Row(finding, "KVM_SET_MEMORY_ATTRIBUTES"), folio = Row(finding, "lock folio lock");
        Assert.True(rmpupdate < attributes && attributes < folio, string.Join('\n', finding.Trace));
    }

    [Theory]
    [InlineData("K611")]
    [InlineData("K72")]
    public void Seed001_AsMerged_HasNoFindingInAnySchedule(string profile)
    {
        ExplorationResult result = Explored.Explore(Explored.PunchHoleAgainstAttributes(profile));
        Assert.Equal((ExplorationEnd.Exhausted, 0), (result.End, result.Findings.Count));
    }

    [Fact]
    public void AScheduleReplays_WithTheSameFindings()
    {
        Scenario scenario = Explored.PunchHoleAgainstAttributes("GM23SNP");
        ExploredFinding finding = Assert.Single(Explored.Explore(scenario).Findings);
        Assert.True(Schedule.TryParse(finding.Schedule, out Schedule? schedule, out _));

        using var explorer = new Explorer(scenario);
        ReplayedSchedule replayed = explorer.Replay(schedule);

        Assert.Equal((finding.Kind, finding.Text), (replayed.Findings.Single().Kind, replayed.Findings.Single().Text));
        Assert.Equal((finding.Schedule, ""), (replayed.Schedule, replayed.Problem));
        Assert.Equal(finding.Trace, replayed.Table);
    }

    [Fact]
    public void AReplay_ShowsTheHostAtAnyStretch()
    {
        Scenario scenario = Explored.PunchHoleAgainstAttributes("GM23SNP");
        Schedule schedule = Parse("A10B1");
        using var explorer = new Explorer(scenario);

        HostState before = explorer.Replay(schedule, 0).State!;
        Assert.Contains(before.Rmp, frame => frame.Asid != 0 && frame.Gpa == 0 && frame.State == SimMachine.Amd.RmpPageState.GuestInvalid);
        HostState inside = explorer.Replay(schedule, 10).State!;
        Assert.Equal(["invalidate_lock"], inside.Programs[0].Holds);
        Assert.Equal(1, Assert.Single(inside.Vms).InProgress);
        Assert.DoesNotContain(inside.Rmp, frame => frame.Asid != 0 && frame.State == SimMachine.Amd.RmpPageState.GuestInvalid);
        Assert.Null(explorer.Replay(schedule, 100_000).State);
    }

    [Fact]
    public void AScheduleThatCannotBeFollowed_SaysWhere()
    {
        Scenario scenario = Explored.PunchHoleAgainstAttributes("GM23SNP");
        // B holds slots_lock and A holds nothing that B waits for; D is nobody.
        Schedule schedule = Parse("A3D1");
        using var explorer = new Explorer(scenario);
        Assert.Contains("stretch 4", explorer.Replay(schedule).Problem, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("A")]
    [InlineData("a1")]
    [InlineData("A1B")]
    [InlineData("Z3")]
    [InlineData("A-1")]
    [InlineData("A99999999999")]
    [InlineData("A1 B2")]
    public void TextThatIsNoSchedule_IsRefused(string text)
    {
        Assert.False(Schedule.TryParse(text, out _, out string problem));
        Assert.NotEmpty(problem);
    }

    [Theory]
    [InlineData(ExplorationStrategy.Exhaustive)]
    [InlineData(ExplorationStrategy.Bounded)]
    [InlineData(ExplorationStrategy.Pct)]
    [InlineData(ExplorationStrategy.Random)]
    public void EveryStrategy_FindsTheRace_AndTheSameTwice(ExplorationStrategy strategy)
    {
        var options = new ExplorationOptions { Strategy = strategy, MaxSchedules = 500, Preemptions = 1 };
        ExplorationResult first = Explored.Explore(Explored.PunchHoleAgainstAttributes("GM23SNP"), options);
        ExplorationResult second = Explored.Explore(Explored.PunchHoleAgainstAttributes("GM23SNP"), options);

        Assert.Equal("page-freed-while-private", Assert.Single(first.Findings).Kind);
        Assert.Equal(first.Schedules, second.Schedules);
        Assert.Equal(first.Stretches, second.Stretches);
        Assert.Equal(first.Outcomes, second.Outcomes);
        Assert.Equal(first.Findings[0].Schedule, second.Findings[0].Schedule);
        Assert.Equal(first.Findings[0].Trace, second.Findings[0].Trace);
    }

    [Fact]
    public void TwoUsersOfTwoLocks_TakenCrosswise_AreADeadlockWithItsCycle()
    {
        // kvm->lock and slots_lock, in either order, on two VMs' worth of nothing else.
        Scenario scenario = Explored.Scenario("K72", host =>
        {
            TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
            return new PreparedScenario(
            [
                new ExploredProgram("one way", host.Vmm.Process, process => CrossLocks.Take(process, vm.Kernel.Lock, vm.Kernel.SlotsLock)),
                new ExploredProgram("the other", host.Vmm.Process, process => CrossLocks.Take(process, vm.Kernel.SlotsLock, vm.Kernel.Lock)),
            ]);
        });
        ExplorationResult result = Explored.Explore(scenario);

        Assert.Equal(ExplorationEnd.Exhausted, result.End);
        Assert.Equal(["lock-inversion", "deadlock"], result.Findings.Select(finding => finding.Kind));
        ExploredFinding deadlock = result.Findings[1];
        Assert.Equal("A waits for kvm->slots_lock, held by B; B waits for kvm->lock, held by A", deadlock.Text);
        Assert.Equal((1, true), (deadlock.Preemptions, deadlock.Minimal));
    }

    [Fact]
    public void AWriterInLine_KeepsLaterReadersOut()
    {
        // A reads mmap_lock and then wants slots_lock; B has slots_lock and wants to read mmap_lock: no deadlock, two readers go together. C, who writes, makes it one.
        ExplorationResult two = Explored.Explore(Readers(writer: false)), three = Explored.Explore(Readers(writer: true));
        Assert.DoesNotContain(two.Findings, finding => finding.Kind == "deadlock");
        ExploredFinding deadlock = Assert.Single(three.Findings, finding => finding.Kind == "deadlock");
        Assert.Contains("in line", string.Join('\n', deadlock.Blame), StringComparison.Ordinal);
    }

    [Fact]
    public void WhatMustHold_IsLookedAtInEverySchedule()
    {
        Scenario scenario = Explored.Scenario("K72", host =>
        {
            (TestVm vm, int gmem) = Explored.PrivateVm(host);
            return Explored.Programs(host.Vmm, _ => vm.TrySetAttributes(0, 4096, 0), _ => vm.TrySetAttributes(0, 4096, TestVm.Private)) with
            {
                MustHold = () => vm.Kernel.Attributes.IsPrivate(new SimMachine.Addressing.Gfn(0)) ? [] : ["the page is not private"],
            };
        });
        ExplorationResult result = Explored.Explore(scenario);
        ExploredFinding finding = Assert.Single(result.Findings);
        Assert.Equal(("must-hold", "the page is not private", 0), (finding.Kind, finding.Text, finding.Preemptions));
        Assert.True(finding.Schedules < result.Schedules);
    }

    [Fact]
    public void AProgramThatFails_IsABugThatIsToldNotThrown()
    {
        Scenario scenario = Explored.Scenario("K72", host => Explored.Programs(host.Vmm, process => process.Open("/dev/kvm"), _ => throw new InvalidOperationException("oops")));
        ExploredFinding finding = Assert.Single(Explored.Explore(scenario).Findings);
        Assert.Equal("internal-error", finding.Kind);
        Assert.Contains("oops", finding.Text, StringComparison.Ordinal);
    }

    [Fact]
    public void Budgets_EndAnExploration()
    {
        Scenario scenario = Explored.PunchHoleAgainstAttributes("GM23SNP");
        Assert.Equal((ExplorationEnd.Budget, 3), EndOf(Explored.Explore(scenario, new ExplorationOptions { MaxSchedules = 3 })));
        Assert.Equal(ExplorationEnd.FirstFinding, Explored.Explore(scenario, new ExplorationOptions { StopAtFirst = true }).End);
        using var explorer = new Explorer(scenario);
        Assert.Equal((ExplorationEnd.Stopped, 0), EndOf(explorer.Explore(stop: () => true)));
        Assert.Equal("no-end", Assert.Single(Explored.Explore(scenario, new ExplorationOptions { MaxStretches = 5, MaxSchedules = 1 }).Findings).Kind);
    }

    private static (ExplorationEnd End, int Schedules) EndOf(ExplorationResult result) => (result.End, result.Schedules);

    private static Schedule Parse(string text) => Schedule.TryParse(text, out Schedule? schedule, out string problem) ? schedule : throw new ArgumentException(problem);

    private static int Row(ExploredFinding finding, string text) => finding.Trace.ToList().FindIndex(line => line.Contains(text, StringComparison.Ordinal));

    private static Scenario Readers(bool writer) => Explored.Scenario("K72", host =>
    {
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        Locking.SimLock mmap = host.Vmm.Process.Memory.MmapLock, slots = vm.Kernel.SlotsLock;
        List<ExploredProgram> programs =
        [
            new("reads, then slots", host.Vmm.Process, process => CrossLocks.Take(process, mmap, slots, firstShared: true)),
            new("slots, then reads", host.Vmm.Process, process => CrossLocks.Take(process, slots, mmap, secondShared: true)),
        ];
        if (writer)
        {
            programs.Add(new("writes", host.Vmm.Process, process => process.Mmap(0, 4096, 3, 0x22, -1, 0)));
        }
        return new PreparedScenario(programs);
    });
}
