using System.Text;
using SimMachine.Amd.Attestation;
using SimMachine.Stepping;

namespace SimMachine.Amd;

/// <summary>State of the platform as SEV's firmware has it.</summary>
public enum SevPlatformState : byte
{
    UNINIT = 0,
    INIT = 1,

    /// <summary>It has guests.</summary>
    WORKING = 2,
}

/// <summary>What PLATFORM_STATUS and SNP_PLATFORM_STATUS tell.</summary>
/// <param name="State">Of SEV's firmware.</param>
/// <param name="SevGuests">Guests of SEV and SEV-ES.</param>
/// <param name="SnpGuests">Guests of SEV-SNP.</param>
public readonly record struct PlatformStatus(SevPlatformState State, uint SevGuests, uint SnpGuests);

// Commands that concern the platform and no guest: status, keys, what reports say.
public sealed partial class Psp
{
    /// <summary>Bytes of a wrapped VLEK.</summary>
    public const int WrappedVlekSize = 432;

    private const int CspIdAt = 16;
    private const int CspIdSize = 64;

    public static readonly Rule PlatformHasGuests = new(
        "psp.platform.guests", "the command wants a platform without guests", "SEV API 55766, platform state machine", "destroy the guests first", "command", "guests#");

    public static readonly Rule ConfigTcb = new(
        "psp.snp-config.tcb", "the reported TCB version must not be newer than the committed one in any part, nor have reserved bits", "56860, SNP_CONFIG (UNVERIFIED)",
        "use the committed version, an older one, or 0", "reported_tcb", "committed_tcb");

    public static readonly Rule ConfigReserved = new("psp.snp-config.reserved", "bits that have no meaning must be 0", "56860, SNP_CONFIG", "use bits 0 and 1", "mask");

    public static readonly Rule VlekNotWrapped = new(
        "psp.vlek-load.wrapped", "the blob is no VLEK wrapped for this chip", "56860, SNP_VLEK_LOAD",
        "a simulated one is the 16 bytes \"SIMULATED VLEK\", two zeros, then the provider's id in printable ASCII, zeros to 432 bytes");

    private static ReadOnlySpan<byte> WrappedVlekMark => "SIMULATED VLEK\0\0"u8;

    /// <summary>PLATFORM_STATUS (0x04), SNP_PLATFORM_STATUS (0x83).</summary>
    public PlatformStatus Status => new(
        !_initialised ? SevPlatformState.UNINIT : _sevGuests.Count > 0 ? SevPlatformState.WORKING : SevPlatformState.INIT, (uint)_sevGuests.Count, (uint)_guests.Count);

    /// <summary>FACTORY_RESET (0x03), with the shutdown before it: keys are made anew, the platform has to be initialised again.</summary>
    public SevStatus FactoryReset(SimThread thread)
    {
        SevStatus status = WithoutGuests(thread, PspCommand.FACTORY_RESET);
        if (status == SevStatus.SUCCESS)
        {
            _initialised = false;
            MakePlatformKeys();
        }
        return status;
    }

    /// <summary>PEK_GEN (0x05): a new platform endorsement key, and so a new Diffie-Hellman key.</summary>
    public SevStatus PekGen(SimThread thread)
    {
        SevStatus status = WithoutGuests(thread, PspCommand.PEK_GEN);
        if (status == SevStatus.SUCCESS)
        {
            MakePlatformKeys();
        }
        return status;
    }

    /// <summary>PDH_GEN (0x09): a new Diffie-Hellman key. Sessions that were made for the old one cannot start guests any more.</summary>
    public SevStatus PdhGen(SimThread thread)
    {
        SevStatus status = WhenInitialised(thread, PspCommand.PDH_GEN);
        _pdhGeneration += status == SevStatus.SUCCESS ? 1 : 0;
        return status;
    }

    /// <summary>SNP_COMMIT (0xCB): the running firmware's version becomes the oldest that the platform goes back to.</summary>
    public SevStatus SnpCommit(SimThread thread)
    {
        SevStatus status = WhenInitialised(thread, PspCommand.SNP_COMMIT);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        _machine.Identity.Commit();
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_CONFIG (0xC9): which TCB version reports name and are signed for, and what of the chip they hide.</summary>
    /// <param name="reportedTcb">0 is the current one (UNVERIFIED).</param>
    /// <param name="mask">Bit 0 chip id, 1 signature.</param>
    public SevStatus SnpConfig(SimThread thread, ulong reportedTcb, uint mask)
    {
        SevStatus status = WhenInitialised(thread, PspCommand.SNP_CONFIG);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (mask > 3)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, ConfigReserved, mask);
        }
        PlatformIdentity identity = _machine.Identity;
        EpycProduct product = identity.Product;
        TcbVersion reported = reportedTcb == 0 ? identity.CurrentTcb : TcbVersion.Decode(product, reportedTcb);
        if ((reportedTcb & TcbVersion.ReservedBits(product)) != 0 || (reportedTcb != 0 && !reported.IsWithin(identity.CommittedTcb)))
        {
            return thread.Fail(SevStatus.INVALID_PARAM, ConfigTcb, reportedTcb, identity.CommittedTcb.Encode(product));
        }
        identity.Configure(reported, maskChipId: (mask & 1) != 0, maskChipKey: (mask & 2) != 0);
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_VLEK_LOAD (0xCD): a cloud provider's key signs from now on, where the VCEK is not asked for.</summary>
    /// <param name="wrapped">432 bytes. On silicon they are encrypted for the chip; a simulated chip takes the provider's id in plain, behind a mark.</param>
    public SevStatus SnpVlekLoad(SimThread thread, ReadOnlySpan<byte> wrapped)
    {
        SevStatus status = WhenInitialised(thread, PspCommand.SNP_VLEK_LOAD);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        ReadOnlySpan<byte> id = wrapped.Slice(CspIdAt, CspIdSize).TrimEnd((byte)0);
        bool printable = !id.IsEmpty && id.IndexOfAnyExceptInRange((byte)' ', (byte)'~') < 0;
        if (!wrapped.StartsWith(WrappedVlekMark) || !printable || wrapped[(CspIdAt + CspIdSize)..].IndexOfAnyExcept((byte)0) >= 0)
        {
            return thread.Fail(SevStatus.BAD_MEASUREMENT, VlekNotWrapped);
        }
        _machine.Identity.LoadVlek(Encoding.ASCII.GetString(id));
        return SevStatus.SUCCESS;
    }

    private SevStatus WithoutGuests(SimThread thread, PspCommand command)
    {
        thread.Step(CommandStep, (ulong)command);
        return _sevGuests.Count + _guests.Count > 0
            ? thread.Fail(SevStatus.INVALID_PLATFORM_STATE, PlatformHasGuests, (ulong)command, (ulong)(_sevGuests.Count + _guests.Count))
            : SevStatus.SUCCESS;
    }
}
