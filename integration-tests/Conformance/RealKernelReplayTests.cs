using System.Collections.Concurrent;
using System.Globalization;
using System.Text.RegularExpressions;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>
/// The simulated 6.18 against a real one: every recorded answer is asked again over gRPC, and errno, value, signal and whatever else was recorded must be the same. What
/// does not hold stands in sim-kvm/docs/not-modelled.md with its reason, and nothing stands there that does.
/// </summary>
public sealed partial class RealKernelReplayTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const int Answers = 803;

    // An area is asked once, in order, whichever of its rows comes first.
    private static readonly ConcurrentDictionary<string, Lazy<Task<Dictionary<string, SimulatedAnswer>>>> s_areas = new(StringComparer.Ordinal);

    public static TheoryData<string> Ids => new(KernelAnswer.All.Select(row => row.Id));

    [Theory]
    [MemberData(nameof(Ids))]
    public async Task SimulatedKernel_AnswersAsTheRealOneDid(string id)
    {
        KernelAnswer row = KernelAnswer.All.Single(each => each.Id == id);
        SimulatedAnswer simulated = (await s_areas.GetOrAdd(row.Area, area => new(() => Replay(area))).Value)[id];
        List<string> differences = Differences(row, simulated);
        if (Exceptions().Contains(id))
        {
            Assert.True(differences.Count > 0, $"{id} holds, but not-modelled.md says that it does not");
        }
        else
        {
            Assert.True(differences.Count == 0, $"{id}: {string.Join("; ", differences)}. The simulated kernel said: {simulated.Outcome.Text}");
        }
    }

    [Fact]
    public void EveryAnswerIsThere_AndEveryExceptionIsOne()
    {
        Assert.Equal(Answers, KernelAnswer.All.Select(row => row.Id).Distinct().Count());
        Assert.Empty(Exceptions().Except(KernelAnswer.All.Select(row => row.Id)));
    }

    private async Task<Dictionary<string, SimulatedAnswer>> Replay(string area)
    {
        await using ReplayWorld world = await ReplayWorld.Boot(daemon.Stubs);
        var answers = new Dictionary<string, SimulatedAnswer>(StringComparer.Ordinal);
        KernelAnswer? previous = null;
        foreach (KernelAnswer row in KernelAnswer.All.Where(row => row.Area == area))
        {
            await ReplaySetup.Prepare(world, row, previous);
            answers.Add(row.Id, await ReplayCalls.Perform(world, row));
            await ReplaySetup.Finish(world, row);
            previous = row;
        }
        return answers;
    }

    private static List<string> Differences(KernelAnswer row, SimulatedAnswer simulated)
    {
        var differences = new List<string>();
        Outcome outcome = simulated.Outcome;
        bool faulted = outcome.Signal is not null;
        string errno = faulted ? "" : outcome.ErrnoName;
        Compare("errno", row.Errno ?? "", errno);
        switch (row.Ret)
        {
            case "fd":
                Compare("a descriptor", "True", (outcome.Errno == 0 && outcome.Value >= 0).ToString());
                break;
            case "ptr":
                Compare("an address", "True", (outcome.Errno == 0 && outcome.Value > 0).ToString());
                break;
            case "ok":
                Compare("signal", "", outcome.Signal?.Name ?? "");
                break;
            case "SIGBUS" or "SIGSEGV":
                Compare("signal", row.Ret, outcome.Signal?.Name ?? "");
                Compare("si_code", row.More["si_code"], (outcome.Signal?.SiCode ?? 0).ToString(CultureInfo.InvariantCulture));
                Compare("si_addr_offset", row.More["si_addr_offset"], ((outcome.Signal?.SiAddr ?? 0) - simulated.At).ToString(CultureInfo.InvariantCulture));
                break;
            case "-1":
                break;
            default:
                Compare("value", row.Ret, outcome.Value.ToString(CultureInfo.InvariantCulture));
                break;
        }
        foreach ((string name, string expected) in row.More.Where(each => each.Key is not ("si_code" or "si_addr_offset")))
        {
            Compare(name, expected, simulated.More.GetValueOrDefault(name, "(nothing)"));
        }
        return differences;

        void Compare(string what, string real, string here)
        {
            if (real != here)
            {
                differences.Add($"{what} was {real} and is {here}");
            }
        }
    }

    // Rows of the table in not-modelled.md: | `id` | reason |
    private static HashSet<string> Exceptions() =>
        [.. ExceptionRow().Matches(File.ReadAllText(Path.Combine(Repository.Root, "sim-kvm", "docs", "not-modelled.md"))).Select(match => match.Groups["id"].Value)];

    [GeneratedRegex(@"^\| `(?<id>[a-z_0-9A-Z]+/[^`]+)` \| \S", RegexOptions.Multiline)]
    private static partial Regex ExceptionRow();
}
