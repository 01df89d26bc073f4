namespace SimKvm.Exploration;

/// <summary>The kinds of findings that there are, by their stable names: those of a machine, of lockdep, of the audit when all calls are over, and of exploration itself.</summary>
public static class FindingKinds
{
    public static IReadOnlyList<string> All { get; } =
    [
        "host-rmp-fault", "page-freed-while-private", "rmp-wrong-owner", "tdx-private-page-poisoned", "stale-binding", "stale-mapping", "unbalanced-invalidation", "vm-bugged", "double-population",
        "lock-inversion", "lock-recursion", "sleep-in-atomic", "deadlock", "guest-livelock", "no-end", "must-hold", "lost-update", "internal-error",
    ];
}
