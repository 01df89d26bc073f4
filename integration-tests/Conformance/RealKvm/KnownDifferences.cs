namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>
/// Where the simulated host cannot be made like this machine yet, and why. A difference that is not here fails the test; an entry that no walk needs any more should go.
/// </summary>
/// <param name="Reason">Why the answers differ.</param>
/// <param name="Covers">Whether a difference, of a step with this machine's and the simulated answer, is meant.</param>
/// <param name="EndsWalk">The states differ from here on.</param>
internal sealed record KnownDifference(string Reason, Func<Machine, Step, string, string, bool> Covers, bool EndsWalk = false)
{
    private static readonly string s_enotty = new Answer(25, 0).ToString();
    private static readonly string s_einval = new Answer(22, 0).ToString();
    private static readonly string s_eexist = new Answer(17, 0).ToString();

    private static readonly KnownDifference[] s_all =
    [
        new("this machine's kernel has no VM type with private memory, so attributes are not built", (_, step, real, _) => step is SetAttributes && real == s_enotty),
        new("this machine has no SMM, no private memory and no two-dimensional paging", (_, step, _, _) => step is PlainIoctl
        {
            Request: Numbers.CheckExtension,
            Argument: Numbers.CapMultiAddressSpace or Numbers.CapMemoryAttributes or Numbers.CapVmTypes or Numbers.CapPreFaultMemory,
        }),
        new("this machine has no SMM, so no second address space", (_, step, real, _) => step is SetRegion { Slot: >= 0x10000 } && real == s_einval, EndsWalk: true),
        new("without two-dimensional paging guest addresses have 52 bits, not the processor's number", (_, step, real, simulated) =>
            step is SetRegion { Gpa: < 1UL << 52 } && real == "0" && simulated == s_einval, EndsWalk: true),
        new("6.18 is simulated by a newer profile: overlapping bindings", (machine, step, real, simulated) =>
            machine.IsStandIn && step is SetRegion && real == s_einval && simulated == s_eexist),
        new("6.18 is simulated by a newer profile: offsets whose sum wraps", (machine, step, real, simulated) =>
            machine.IsStandIn && step is SetRegion { Offset: > long.MaxValue - 4096 } && real == "0" && simulated == s_einval, EndsWalk: true),
    ];

    public static KnownDifference? Find(Machine machine, Step step, string real, string simulated) =>
        Array.Find(s_all, difference => difference.Covers(machine, step, real, simulated));
}
