using VmmService.Server.Scripts;
using Xunit;

namespace VmmService.IntegrationTests.Scripts;

/// <summary>Numbers as scripts write them.</summary>
public sealed class ScriptExpressionTests
{
    [Theory]
    [InlineData("0", 0)]
    [InlineData("0x10", 16)]
    [InlineData("0XfF", 255)]
    [InlineData("1_000", 1000)]
    [InlineData("2MiB", 2 << 20)]
    [InlineData("0x2KiB", 2048)]
    [InlineData("3GiB", 3L << 30)]
    [InlineData("1TiB", 1L << 40)]
    [InlineData("true", 1)]
    [InlineData("-1", -1)]
    [InlineData("- -1", 1)]
    [InlineData("1 + 2 * 3", 7)]
    [InlineData("(1 + 2) * 3", 9)]
    [InlineData("10 - 3 - 2", 5)]
    [InlineData("7 / 2 + 7 % 4", 6)]
    [InlineData("1 << 4 + 1", 32)]
    [InlineData("256 >> 4", 16)]
    [InlineData("6 & 3 | 8 ^ 1", 11)]
    [InlineData("~0 & 0xff", 255)]
    [InlineData("!0 + !5", 1)]
    [InlineData("1 < 2 && 2 <= 2 && 3 > 2 && 3 >= 3", 1)]
    [InlineData("1 == 2 || 1 != 2", 1)]
    [InlineData("KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY", 6)]
    [InlineData("KVM_CAP_GUEST_MEMFD", 234)]
    [InlineData("EINVAL", 22)]
    [InlineData("$a + 0x1000", 0x1005)]
    [InlineData("${a}*$a", 25)]
    public void Expression_IsWorkedOut(string text, long expected) => Assert.Equal(expected, Evaluate(text));

    [Fact]
    public void EveryNumberOf64Bits_IsKept()
    {
        Assert.Equal((Int128)ulong.MaxValue, Evaluate("0xffffffffffffffff"));
        Assert.Equal((Int128)ulong.MaxValue, Evaluate("~0"));
        Assert.Equal((Int128)ulong.MaxValue + 1, Evaluate("0xffffffffffffffff + 1"));
        Assert.Equal((Int128)long.MinValue, Evaluate("-0x8000000000000000"));
    }

    private static Int128 Evaluate(string text) => ScriptExpression.Evaluate(
        new ScalarNode(text, false, new ScriptPlace(1, 1)), new SortedDictionary<string, ScriptValue> { ["a"] = ScriptValue.Of(5) });
}
