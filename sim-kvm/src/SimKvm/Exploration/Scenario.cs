using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine;

namespace SimKvm.Exploration;

/// <summary>
/// Something to explore: what is booted, what is set up, which programs then run at once, and what must hold when they are done. Every schedule begins with a host of
/// its own that is booted from the same seed, so a schedule is the only thing in which two runs differ.
/// </summary>
public sealed record Scenario
{
    public required string Title { get; init; }

    public required KernelProfile Profile { get; init; }

    public MachineConfig Machine { get; init; } = new() { MemoryBytes = 64UL << 20 };

    public KernelConfig Kernel { get; init; } = new();

    public ulong Seed { get; init; } = 1;

    /// <summary>Makes the calls that come before the programs, one at a time, and gives the programs.</summary>
    public required Func<SimHost, PreparedScenario> Prepare { get; init; }

    /// <summary>
    /// What the programs leave behind must be what some order of their calls, each whole, would leave behind; anything else is the finding lost-update. That is more than a
    /// kernel promises of all calls, so a scenario asks for it.
    /// </summary>
    public bool Serializable { get; init; }
}

/// <summary>A scenario that is set up on a host.</summary>
/// <param name="Programs">At least one, at most <see cref="MaxPrograms"/>.</param>
public sealed record PreparedScenario(IReadOnlyList<ExploredProgram> Programs)
{
    public const int MaxPrograms = 6;

    /// <summary>Looks, when all programs are done, whether what must hold does; gives what does not, in words.</summary>
    public Func<IReadOnlyList<string>> MustHold { get; init; } = () => [];
}

/// <summary>One of the programs that run at once: a thread of a VMM.</summary>
/// <param name="Name">For people: what it does.</param>
/// <param name="Process">The process that it is a thread of. Programs of one process share its memory and descriptors.</param>
/// <param name="Body">Makes the calls, as the thread whose turn it is. It sees nothing but what calls return, and it ends.</param>
public sealed record ExploredProgram(string Name, Process Process, Action<Process> Body);
