using SimMachine;

namespace SimKvm.Faults;

/// <summary>
/// A fault that is brought about on purpose, always at the same place: where it strikes, and what it does there. Exactly one of the places, and one of the effects, is given.
/// </summary>
public sealed record ScriptedFault
{
    /// <summary>A call, by the beginning of what it is called in answers: <c>KVM_SET_MEMORY_ATTRIBUTES</c>, <c>fallocate</c>, <c>mmap</c>.</summary>
    public string Call { get; init; } = "";

    /// <summary>A step of the journal, for example <c>lock kvm->slots_lock</c> or <c>gmem free hook</c>.</summary>
    public string Step { get; init; } = "";

    /// <summary>The kernel looks up the page of a guest_memfd at this guest address, in bytes.</summary>
    public ulong? Gpa { get; init; }

    /// <summary>It strikes when the place is come to for the n-th time, from 1.</summary>
    public int Occurrence { get; init; } = 1;

    /// <summary>The call, or the look-up, fails with this. Not at a step.</summary>
    public Errno Errno { get; init; }

    /// <summary>The next firmware command is answered with this status and does nothing; 0 for none.</summary>
    public uint FirmwareStatus { get; init; }

    /// <summary>The SEAMCALL under way, or the next one, is answered with this completion status and does nothing; 0 for none.</summary>
    public ulong ModuleStatus { get; init; }

    /// <summary>The next firmware command is not answered in time, nor is any after it.</summary>
    public bool FirmwareTimeout { get; init; }

    /// <summary>The next page that is asked for is not there.</summary>
    public bool NoMemory { get; init; }

    /// <summary>A signal arrives for the thread.</summary>
    public bool Signal { get; init; }

    /// <summary>What is wrong with it, in words; null for nothing.</summary>
    /// <param name="platform">Of the host that it is for.</param>
    public string? Problem(Platform platform)
    {
        int places = (Call.Length > 0 ? 1 : 0) + (Step.Length > 0 ? 1 : 0) + (Gpa is not null ? 1 : 0);
        int effects = (Errno != Errno.OK ? 1 : 0) + (FirmwareStatus != 0 ? 1 : 0) + (FirmwareTimeout ? 1 : 0) + (ModuleStatus != 0 ? 1 : 0) + (NoMemory ? 1 : 0) + (Signal ? 1 : 0);
        if (places != 1)
        {
            return $"a fault strikes at a call, at a step or at a gpa; {places} of them were given";
        }
        if (effects != 1)
        {
            return $"a fault is an errno, a firmware status, a firmware that does not answer, a module status, no memory or a signal; {effects} of them were given";
        }
        if (Occurrence < 1)
        {
            return "occurrences count from 1";
        }
        if (ModuleStatus != 0 && platform != Platform.IntelTdx)
        {
            return "the host has no TDX module whose status could be met; it takes one of platform INTEL_TDX";
        }
        if ((FirmwareStatus != 0 || FirmwareTimeout) && platform != Platform.Amd)
        {
            return "the host has no secure processor whose firmware could refuse; it takes one of AMD's";
        }
        return Step.Length > 0 && Errno != Errno.OK ? "a step has no errno of its own; give the call or the gpa that is to fail" : null;
    }
}
