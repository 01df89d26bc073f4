using System.Globalization;
using System.Text;
using VmmService.IntegrationTests.Conformance.RealKvm;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>
/// The same random walks of calls on this machine's /dev/kvm and on a simulated host that is configured like it: memslots, guest_memfd, fallocate, mmap, accesses,
/// bad arguments. Nothing is run on the real one, and what it gives is given back.
/// </summary>
/// <remarks>
/// VMM_REAL_KVM_COUNT raises the number of walks, VMM_REAL_KVM_SEED runs a single one. Where there is no /dev/kvm with guest_memfd the tests are skipped.
/// </remarks>
public sealed class RealKvmDifferentialTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const int Length = 150;

    // Of differences; a walk is shrunk for each.
    private const int Shown = 8;

    private static readonly int s_count = int.Parse(Environment.GetEnvironmentVariable("VMM_REAL_KVM_COUNT") ?? "40", CultureInfo.InvariantCulture);

    [Fact]
    public Task RandomWalks_AreAnsweredAlike() => Compare((machine, seed) => Walk.Generate(seed, Length, machine.VmTypes));

    [Fact]
    public Task RandomWalksThroughFilesAndMappings_AreAnsweredAlike() => Compare((_, seed) => FileWalk.Generate(seed, Length));

    private async Task Compare(Func<Machine, int, IReadOnlyList<Step>> generate)
    {
        Machine machine = await Machine.Probe();
        IEnumerable<int> seeds = Environment.GetEnvironmentVariable("VMM_REAL_KVM_SEED") is { } seed
            ? [int.Parse(seed, CultureInfo.InvariantCulture)]
            : Enumerable.Range(1, s_count);
        var differences = new StringBuilder();
        int found = 0;
        foreach (int each in seeds)
        {
            IReadOnlyList<Step> steps = generate(machine, each);
            if (found < Shown && await Run(machine, steps) is not null)
            {
                found++;
                differences.Append(await Shrunk(machine, each, steps));
            }
        }
        Assert.True(found == 0, differences.ToString());
    }

    // The shortest walk that still shows a difference, and the difference.
    private async Task<string> Shrunk(Machine machine, int seed, IReadOnlyList<Step> steps)
    {
        IReadOnlyList<Step> shrunk = await Shrinker.ShrinkAsync(steps, async part => await Run(machine, part) is not null);
        var text = new StringBuilder($"VMM_REAL_KVM_SEED={seed} on {machine}\n");
        foreach (Step step in shrunk)
        {
            text.Append(CultureInfo.InvariantCulture, $"  {step}\n");
        }
        return text.Append(await Run(machine, shrunk)).Append('\n').ToString();
    }

    // The first difference, or null.
    private async Task<string?> Run(Machine machine, IReadOnlyList<Step> steps)
    {
        await using var real = new RealKernel();
        await using SimulatedKernel simulated = await SimulatedKernel.Start(daemon.Stubs, machine.Host());
        Side realSide = new(real), simulatedSide = new(simulated);
        foreach (Step step in steps)
        {
            string expected = await step.Play(realSide);
            string actual = await step.Play(simulatedSide);
            if (expected != actual)
            {
                return $"{step}: this machine {expected}, simulated {actual} ({simulated.Why})";
            }
        }
        return null;
    }
}
