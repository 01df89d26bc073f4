using SimMachine.Addressing;
using SimMachine.Intel.Attestation;
using SimMachine.Measurement;

namespace SimMachine.Intel;

/// <summary>Life of a TD (TDR.LIFECYCLE_STATE).</summary>
public enum TdLifecycle
{
    /// <summary>After TDH.MNG.CREATE: has a KeyID, no key.</summary>
    HkidAssigned,

    /// <summary>After TDH.MNG.KEY.CONFIG on every package. Everything of a TD's work happens here.</summary>
    KeysConfigured,

    /// <summary>After TDH.MNG.VPFLUSHDONE: no processor runs it, or ever will.</summary>
    Blocked,

    /// <summary>After TDH.MNG.KEY.FREEID: its pages can be reclaimed.</summary>
    Teardown,
}

/// <summary>State of a TD's operation while its keys are configured (TDCS.OP_STATE).</summary>
public enum TdOpState
{
    Uninitialized,

    /// <summary>After TDH.MNG.INIT: it is built and measured.</summary>
    Initialized,

    /// <summary>After TDH.MR.FINALIZE: the measurement is final, vCPUs may enter.</summary>
    Runnable,
}

/// <summary>What the module keeps of a TD: its TDR and TDCS. Guarded by the locks in it.</summary>
internal sealed class Td
{
    /// <summary>Bytes of a measurement register.</summary>
    public const int MeasurementSize = TdxModuleConfig.MeasurementSize;

    public const int Rtmrs = 4;

    // vCPUs inside, by the epoch in which they entered; entries of 0 are removed.
    private readonly Dictionary<ulong, int> _inside = [];

    public required Pfn Tdr { get; init; }

    public required uint Hkid { get; init; }

    /// <summary>The key of memory that the TD's KeyID stands for since TDH.MNG.KEY.CONFIG; 0 before.</summary>
    public uint Key { get; set; }

    public TdLifecycle Lifecycle { get; set; }

    /// <summary>Packages on which the key was configured, one bit each.</summary>
    public uint KeyPackages { get; set; }

    /// <summary>TDCS pages added.</summary>
    public int Tdcx { get; set; }

    /// <summary>Pages that belong to the TD, the TDR not counted.</summary>
    public long Children { get; set; }

    public TdOpState OpState { get; set; }

    public ulong Attributes { get; set; }

    public ulong Xfam { get; set; }

    public int MaxVcpus { get; set; }

    /// <summary>CONFIG_FLAGS of TD_PARAMS.</summary>
    public ulong ConfigFlags { get; set; }

    /// <summary>Bit 0: the TD wants to be told of single-stepping attacks (TDCS.NOTIFY_ENABLES).</summary>
    public ulong NotifyEnables { get; set; }

    /// <summary>48 or 52.</summary>
    public int Gpaw { get; set; }

    public ushort TscFrequency { get; set; }

    /// <summary>The CPUID values of TD_PARAMS, four registers a slot.</summary>
    public uint[] CpuidValues { get; set; } = [];

    public required Sept Sept { get; set; }

    public MrtdTranscript Mrtd { get; } = new();

    /// <summary>48 bytes; zeros before TDH.MR.FINALIZE.</summary>
    public byte[] FinalMrtd { get; set; } = new byte[MeasurementSize];

    public byte[] Mrconfigid { get; set; } = new byte[MeasurementSize];

    public byte[] Mrowner { get; set; } = new byte[MeasurementSize];

    public byte[] Mrownerconfig { get; set; } = new byte[MeasurementSize];

    public byte[][] Rtmr { get; } = [.. Enumerable.Range(0, Rtmrs).Select(_ => new byte[MeasurementSize])];

    /// <summary>vCPUs that were initialised, in the order in which they were.</summary>
    public List<TdVcpu> Vcpus { get; } = [];

    public ulong Epoch { get; private set; } = 1;

    public TdxLock Lock { get; } = new();

    public TdxLock OpStateLock { get; } = new();

    public TdxLock EpochLock { get; } = new();

    public TdxLock RtmrLock { get; } = new();

    /// <summary>What leaves touch of it (see <see cref="Stepping.Baton.Touch"/>). A lock stands for what is changed under it; the epoch and who is inside are behind the epoch's lock.</summary>
    public IEnumerable<object> SharedState => [Lock, OpStateLock, EpochLock, RtmrLock, Sept, Sept.Lock, Vcpus];

    /// <summary>The bit of an address that selects shared memory.</summary>
    public ulong SharedBit => 1UL << (Gpaw - 1);

    /// <summary>TDINFO_STRUCT: the TD as its reports have it.</summary>
    public TdInfo Info()
    {
        TdInfo info = new() { ATTRIBUTES = Attributes, XFAM = Xfam };
        FinalMrtd.CopyTo(info.MRTD);
        Mrconfigid.CopyTo(info.MRCONFIGID);
        Mrowner.CopyTo(info.MROWNER);
        Mrownerconfig.CopyTo(info.MROWNERCONFIG);
        Rtmr[0].CopyTo(info.RTMR0);
        Rtmr[1].CopyTo(info.RTMR1);
        Rtmr[2].CopyTo(info.RTMR2);
        Rtmr[3].CopyTo(info.RTMR3);
        return info;
    }

    public bool IsInsideSince(ulong epoch) => _inside.ContainsKey(epoch);

    public void NextEpoch() => Epoch++;

    /// <summary>A vCPU goes in, in the current epoch.</summary>
    public ulong Enter()
    {
        _inside[Epoch] = _inside.GetValueOrDefault(Epoch) + 1;
        return Epoch;
    }

    /// <summary>A vCPU that went in in <paramref name="epoch"/> comes out.</summary>
    public void Leave(ulong epoch)
    {
        if (--_inside[epoch] == 0)
        {
            _inside.Remove(epoch);
        }
    }

    /// <summary>is_tlb_tracked: no processor can have a translation any more that was blocked in <paramref name="bepoch"/>.</summary>
    public bool IsTracked(ulong bepoch) => bepoch + 1 < Epoch || (bepoch + 1 == Epoch && !IsInsideSince(bepoch));
}

/// <summary>What the module keeps of a vCPU: its TDVPR and TDVPS.</summary>
internal sealed class TdVcpu
{
    public required Td Td { get; init; }

    public required Pfn Tdvpr { get; init; }

    /// <summary>Pages, the TDVPR among them.</summary>
    public int Pages { get; set; } = 1;

    public bool Initialized { get; set; }

    /// <summary>Order of initialisation, from 0.</summary>
    public int Index { get; set; }

    public uint X2apicId { get; set; }

    /// <summary>RCX and R8 at the reset vector.</summary>
    public ulong InitialRcx { get; set; }

    /// <summary>A processor has state of it (until TDH.VP.FLUSH).</summary>
    public bool Associated { get; set; }

    /// <summary>The epoch in which it entered; null while it is outside.</summary>
    public ulong? InsideSince { get; set; }

    /// <summary>An NMI waits to be injected (TDVPS.PEND_NMI).</summary>
    public bool PendNmi { get; set; }

    /// <summary>The #VE that TDG.VP.VEINFO.GET tells, or null.</summary>
    public TdVeInfo? Ve { get; set; }
}

/// <summary>TDG.VP.VEINFO.GET: why the guest got its last #VE.</summary>
/// <param name="ExitReason">VMX exit reason; 48 is an EPT violation.</param>
/// <param name="ExitQualification">Of the exit.</param>
/// <param name="Gpa">Guest physical address.</param>
public readonly record struct TdVeInfo(uint ExitReason, ulong ExitQualification, ulong Gpa);
