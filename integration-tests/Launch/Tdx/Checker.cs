using System.Text.Json;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>What a step of a scenario expects, and what of that was looked at: an expectation that nobody looks at is a failure of the test.</summary>
internal sealed class Checker(JsonElement step, JsonElement expect)
{
    private readonly HashSet<string> _seen = ["note"];

    public bool Expects(string name) => expect.TryGetProperty(name, out _);

    public void Errno(Outcome outcome) => Look("errno", expected =>
    {
        string name = expected.ValueKind == JsonValueKind.Number ? "" : expected.GetString()!;
        Assert.True(name == outcome.ErrnoName, $"{step.GetProperty("call")}: expected {(name.Length > 0 ? name : "success")}, got {outcome.Text}");
    });

    /// <summary>A number, where it is expected.</summary>
    public void Equal(string name, ulong actual) => Look(name, expected =>
    {
        ulong wanted = TdxScenarios.Number(expected);
        Assert.True(wanted == actual, $"{step}: {name} is 0x{actual:x}, expected 0x{wanted:x}");
    });

    public void Look(string name, Action<JsonElement> check)
    {
        if (expect.TryGetProperty(name, out JsonElement expected))
        {
            _seen.Add(name);
            check(expected);
        }
    }

    public void AllWasLookedAt() => Assert.Empty(expect.EnumerateObject().Select(property => property.Name).Except(_seen));
}
