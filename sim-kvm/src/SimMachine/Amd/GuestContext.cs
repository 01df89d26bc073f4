using SimMachine.Measurement;

namespace SimMachine.Amd;

/// <summary>State of an SNP guest context (SNP firmware ABI, chapter 4).</summary>
public enum GuestContextState
{
    /// <summary>After SNP_GCTX_CREATE. Accepts LAUNCH_START.</summary>
    Init,

    /// <summary>After SNP_LAUNCH_START. Pages may be added; the launch digest grows. Accepts ACTIVATE, LAUNCH_UPDATE, LAUNCH_FINISH.</summary>
    Launch,

    /// <summary>After SNP_LAUNCH_FINISH. The launch digest is final; the guest may send messages.</summary>
    Running,
}

/// <summary>
/// What firmware keeps of one SNP guest (GCTX), in a page that only firmware can read. Created by SNP_GCTX_CREATE, gone with SNP_DECOMMISSION.
/// </summary>
internal sealed class GuestContext
{
    public GuestContextState State { get; set; } = GuestContextState.Init;

    public ulong Policy { get; set; }

    /// <summary>0 until SNP_ACTIVATE.</summary>
    public uint Asid { get; set; }

    public SnpLaunchDigest Digest { get; } = new();

    public MeasurementTranscript Transcript { get; } = new();

    /// <summary>VM platform communication keys, one for each VMPL, 32 bytes each.</summary>
    public byte[] Vmpck { get; } = new byte[4 * 32];

    /// <summary>REPORT_ID, 32 bytes.</summary>
    public byte[] ReportId { get; } = new byte[32];

    /// <summary>Root of keys that follow the VM, 32 bytes.</summary>
    public byte[] Vmrk { get; } = new byte[32];

    /// <summary>Guest OS-visible workarounds, as given to LAUNCH_START.</summary>
    public byte[] Gosvw { get; } = new byte[16];

    public byte[] HostData { get; } = new byte[32];

    public bool VcekDisabled { get; set; }

    /// <summary>What the ID block said; zeros without one.</summary>
    public IdBlockResult IdBlock { get; set; } = IdBlockResult.None;

    public bool AuthorKeyEnabled { get; set; }

    /// <summary>Messages exchanged so far under each VMPCK, requests and responses: the sequence number last seen.</summary>
    public ulong[] MessageCounts { get; } = new ulong[4];
}

/// <summary>For people and attestation: what firmware would tell of a guest (SNP_GUEST_STATUS), with the measurement so far.</summary>
/// <param name="State">Firmware state.</param>
/// <param name="Policy">As given to LAUNCH_START.</param>
/// <param name="Asid">0 until activated.</param>
/// <param name="LaunchDigest">48 bytes.</param>
/// <param name="Transcript">Every measured step.</param>
public sealed record SnpGuestStatus(GuestContextState State, ulong Policy, uint Asid, byte[] LaunchDigest, MeasurementTranscript Transcript);
