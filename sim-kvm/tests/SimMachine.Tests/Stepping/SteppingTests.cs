using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests;

/// <summary>Journal, findings, rules with their causes, entropy: what every instruction and every call leaves behind.</summary>
public sealed class SteppingTests : IDisposable
{
    private static readonly StepLabel Label = new("test step");
    private static readonly Rule TwoOperands = new("test.rule", "the page is wrong", "nowhere", "nothing", "gpa", "slot#");

    private readonly Machine _machine = new(new MachineConfig(), 1);
    private readonly MachineThread _thread;

    public SteppingTests() => _thread = new MachineThread(_machine, 7);

    // Around the sizes at which the ring grows, and where it begins to wrap.
    public static TheoryData<int> StepCounts => [0, 1, 63, 64, 65, 128, 1000, 16383, 16384, 16385, 40000];

    public void Dispose() => _machine.Dispose();

    [Theory]
    [MemberData(nameof(StepCounts))]
    public void Journal_HoldsTheLastSteps_InOrder(int steps)
    {
        for (int i = 1; i <= steps; i++)
        {
            _thread.Step(Label, (ulong)i, (ulong)i * 3);
        }
        StepRecord[] held = [.. _machine.Journal.Read(0)];
        Assert.Equal((ulong)steps, _machine.Journal.Steps);
        Assert.Equal(Math.Min(steps, 1 << 14), held.Length);
        for (int i = 0; i < held.Length; i++)
        {
            ulong step = (ulong)(steps - held.Length + i + 1);
            Assert.Equal(new StepRecord(step, Label, 0, 7, step, step * 3), held[i]);
        }
    }

    [Fact]
    public void Journal_ReadFromAStep_BeginsThere()
    {
        for (int i = 0; i < 20000; i++)
        {
            _thread.Step(Label);
        }
        Assert.Equal([19999UL, 20000UL], _machine.Journal.Read(19999).Select(record => record.Step));
        Assert.Empty(_machine.Journal.Read(20001));
        Assert.Equal(20000UL - (1 << 14) + 1, _machine.Journal.Read(5).First().Step);
    }

    [Fact]
    public void Step_CarriesTheCallAndPassesTheBaton()
    {
        var baton = new CountingBaton();
        _machine.Baton = baton;
        _thread.BeginCall(12);
        _thread.Step(Label);
        _thread.EndCall();
        _thread.Step(Label);
        Assert.Equal([12UL, 0UL], _machine.Journal.Read(0).Select(record => record.Call));
        Assert.Equal(["test step/12", "test step/0"], baton.Seen);
    }

    [Fact]
    public void Causes_BelongToOneCall_AndGrowFromTheRoot()
    {
        _thread.BeginCall(1);
        _thread.Refuse(TwoOperands, "EINVAL", 0x1000, 3);
        _thread.Refuse(TwoOperands, "EIO", 0x2000, 4);
        Assert.Equal(["EINVAL", "EIO"], _thread.Causes.Select(cause => cause.Code));
        _thread.ForgetCausesAfter(1);
        _thread.ForgetCausesAfter(5);
        Assert.Equal("EINVAL: the page is wrong (gpa 0x1000, slot 3)", Assert.Single(_thread.Causes).ToString());
        _thread.BeginCall(2);
        Assert.Empty(_thread.Causes);
    }

    [Fact]
    public void Cause_WithoutOperands_HasNoParentheses()
    {
        _thread.Refuse(new Rule("test.bare", "no", "nowhere", "nothing"), "EIO");
        Assert.Equal("EIO: no", _thread.Causes[0].ToString());
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(3)]
    public void Cause_WithAnotherNumberOfOperandsThanDeclared_IsOurBug(int count)
    {
        Assert.Throws<ArgumentException>(() => _thread.Refuse(TwoOperands, "EINVAL", new ulong[count]));
    }

    [Theory]
    [InlineData("gpa", 0xabcUL, "gpa", "0xabc")]
    [InlineData("gpa", 0UL, "gpa", "0x0")]
    [InlineData("slot#", 0xabcUL, "slot", "2748")]
    [InlineData("slot#", ulong.MaxValue, "slot", "18446744073709551615")]
    public void Operand_IsWrittenAsItsNameSays(string declared, ulong value, string name, string text)
    {
        Assert.Equal(new Operand(name, value, text), Operand.Of(declared, value));
    }

    [Fact]
    public void Findings_AreKeptUpToABound_AndCountedBeyond()
    {
        _thread.BeginCall(3);
        _thread.Step(Label);
        for (int i = 0; i < 1500; i++)
        {
            _machine.Findings.Report(_thread, "test", $"finding {i}", [], []);
        }
        Assert.Equal(1500UL, _machine.Findings.Count);
        Assert.Equal(1024, _machine.Findings.All.Count);
        Assert.Equal(("finding 0", 1UL, 3UL), (_machine.Findings.All[0].Text, _machine.Findings.All[0].Step, _machine.Findings.All[0].Call));
    }

    [Fact]
    public void Entropy_FollowsFromSeedAndOrder()
    {
        Assert.Equal(Draws(1, "a", "b", "a"), Draws(1, "a", "b", "a"));
        Assert.NotEqual(Draws(1, "a"), Draws(2, "a"));
        Assert.NotEqual(Draws(1, "a"), Draws(1, "b"));
        string[] three = Draws(1, "a", "a", "a");
        Assert.Equal(3, three.Distinct().Count());
    }

    [Theory]
    [InlineData(1)]
    [InlineData(31)]
    [InlineData(32)]
    [InlineData(33)]
    [InlineData(200)]
    public void Entropy_OfALength_IsAPrefixOfALongerOne(int length)
    {
        var entropy = new Entropy(9);
        byte[] shorter = new byte[length];
        byte[] longer = new byte[300];
        entropy.Derive("x", shorter);
        entropy.Derive("x", longer);
        Assert.Equal(longer[..length], shorter);
    }

    private static string[] Draws(ulong seed, params string[] labels)
    {
        var entropy = new Entropy(seed);
        return [.. labels.Select(label =>
        {
            byte[] bytes = new byte[40];
            entropy.Draw(label, bytes);
            return Convert.ToHexString(bytes);
        })];
    }

    private sealed class CountingBaton : Baton
    {
        public List<string> Seen { get; } = [];

        public override void Pass(SimThread current, StepLabel label) => Seen.Add($"{label}/{current.Call}");
    }
}
