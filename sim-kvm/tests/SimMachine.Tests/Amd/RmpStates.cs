using SimMachine.Amd;

namespace SimMachine.Tests.Amd;

/// <summary>An RMP entry in each of the states of snp.md 5.1.</summary>
internal static class RmpStates
{
    public static RmpEntry Entry(RmpPageState state, uint asid, ulong gpa) => state switch
    {
        RmpPageState.Hypervisor => default,
        RmpPageState.Firmware => new RmpEntry { Assigned = true, Immutable = true },
        RmpPageState.Reclaim => new RmpEntry { Assigned = true },
        RmpPageState.Context => new RmpEntry { Assigned = true, Immutable = true, Vmsa = true },
        RmpPageState.Metadata => new RmpEntry { Assigned = true, Immutable = true, Gpa = gpa },
        RmpPageState.PreGuest => new RmpEntry { Assigned = true, Immutable = true, Asid = asid, Gpa = gpa },
        RmpPageState.GuestInvalid => new RmpEntry { Assigned = true, Asid = asid, Gpa = gpa },
        RmpPageState.GuestValid => new RmpEntry { Assigned = true, Asid = asid, Gpa = gpa, Validated = true },
        RmpPageState.PreSwap => new RmpEntry { Assigned = true, Asid = asid, Gpa = gpa, Validated = true, Immutable = true },
        _ => throw new ArgumentOutOfRangeException(nameof(state)),
    };
}
