using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Amd;

/// <summary>
/// The AMD Secure Processor with its SEV-SNP firmware: platform state, guest contexts, ASIDs, and the commands of an SNP launch. Names, order of parameters and
/// statuses are those of the SNP firmware ABI (56860). One command at a time: the operating system serialises by its own mutex.
/// </summary>
/// <remarks>
/// Every command checks in this order: platform state, the guest context page, the guest's state, then its parameters; nothing is changed unless all pass
/// (LAUNCH_UPDATE's correction of a CPUID page is the one exception, and the ABI's).
/// The launch commands are in <c>Psp.Launch.cs</c>.
/// </remarks>
public sealed partial class Psp
{
    private static readonly StepLabel CommandStep = new("psp command");

    public static readonly Rule PlatformNotInitialised = new(
        "psp.platform-state", "the SNP firmware is not initialised", "56860, SNP_INIT",
        "issue SNP_INIT first; KVM does so at KVM_SEV_INIT2", "command");

    public static readonly Rule NotAContext = new(
        "psp.guest-context", "the page is not a guest context", "56860, common checks",
        "create the context with SNP_GCTX_CREATE", "gctx_pfn");

    public static readonly Rule WrongGuestState = new(
        "psp.guest-state", "the guest is in a state that does not accept this command (0 INIT, 1 LAUNCH, 2 RUNNING)", "56860 chapter 4",
        "follow LAUNCH_START, LAUNCH_UPDATE, LAUNCH_FINISH in order; after LAUNCH_FINISH nothing can be measured any more", "command", "state#");

    public static readonly Rule ContextPageNotFirmware = new(
        "psp.gctx-create.page-state", "the page given for the guest context is not a Firmware page", "56860, SNP_GCTX_CREATE",
        "make the page a Firmware page by RMPUPDATE first", "pfn", "state#");

    public static readonly Rule AsidInUse = new(
        "psp.activate.asid", "the ASID belongs to another guest", "56860, SNP_ACTIVATE", "use a free ASID", "asid#");

    public static readonly Rule AsidOwnsPages = new(
        "psp.activate.asid-pages", "the RMP still assigns pages to the ASID", "56860, SNP_ACTIVATE", "make the pages of the guest that had it shared first", "asid#", "pages#");

    public static readonly Rule AsidOutOfRange = new(
        "psp.activate.asid-range", "the ASID is outside the range of SNP guests", "56860, SNP_ACTIVATE",
        "use an ASID in [1, min_sev_asid - 1]", "asid#", "min_sev_asid#");

    public static readonly Rule AsidNotFlushed = new(
        "psp.activate.df-flush", "the ASID was used by a guest that is gone and caches were not flushed since", "56860, SNP_ACTIVATE",
        "issue SNP_DF_FLUSH", "asid#");

    public static readonly Rule AlreadyActive = new(
        "psp.activate.active", "the guest has an ASID already", "56860, SNP_ACTIVATE", "activate a guest once", "asid#");

    public static readonly Rule NotReclaimable = new(
        "psp.page-reclaim.state", "the page is in a state that firmware does not reclaim", "56860, SNP_PAGE_RECLAIM",
        "reclaim only pages of firmware or pages being launched", "pfn", "state#");

    public static readonly Rule LargePageUnaligned = new(
        "psp.page-address", "a large page is named by its first frame", "56860, common checks", "give the aligned frame", "pfn", "level#");

    public static readonly Rule ReclaimSize = new(
        "psp.page-reclaim.size", "the size differs from that of the RMP entry", "56860, SNP_PAGE_RECLAIM",
        "give the entry's size", "pfn", "level#", "entry_level#");

    private readonly Machine _machine;
    private readonly Dictionary<ulong, GuestContext> _guests = [];
    private readonly Dictionary<uint, ulong> _asidOwners = [];
    private readonly HashSet<uint> _asidsToFlush = [];
    private bool _initialised;

    internal Psp(Machine machine) => _machine = machine;

    /// <summary>SNP_INIT (0x81). A second one is harmless, as the driver skips it.</summary>
    public SevStatus SnpInit(SimThread thread)
    {
        thread.Step(CommandStep, (ulong)PspCommand.SNP_INIT);
        _initialised = true;
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_GCTX_CREATE (0x93): turns a Firmware page into a guest context.</summary>
    public SevStatus SnpGctxCreate(SimThread thread, Pfn gctx)
    {
        thread.Step(CommandStep, (ulong)PspCommand.SNP_GCTX_CREATE, gctx.Value);
        if (!_initialised)
        {
            return thread.Fail(SevStatus.INVALID_PLATFORM_STATE, PlatformNotInitialised, (ulong)PspCommand.SNP_GCTX_CREATE);
        }
        RmpEntry entry = _machine.Rmp.Entry(gctx);
        if (entry.State != RmpPageState.Firmware)
        {
            return thread.Fail(SevStatus.INVALID_PAGE_STATE, ContextPageNotFirmware, gctx.Value, (ulong)entry.State);
        }
        _machine.Rmp.Set(gctx, entry with { Vmsa = true, WrittenByCall = (uint)thread.Call });
        _guests.Add(gctx.Value, new GuestContext());
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_ACTIVATE (0x91): binds an ASID to the guest.</summary>
    public SevStatus SnpActivate(SimThread thread, Pfn gctx, uint asid)
    {
        SevStatus status = Enter(thread, PspCommand.SNP_ACTIVATE, gctx, out GuestContext guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State == GuestContextState.Init)
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongGuestState, (ulong)PspCommand.SNP_ACTIVATE, (ulong)guest.State);
        }
        if (guest.Asid != 0)
        {
            return thread.Fail(SevStatus.ACTIVE, AlreadyActive, guest.Asid);
        }
        if (asid == 0 || asid >= _machine.Config.MinSevAsid)
        {
            return thread.Fail(SevStatus.INVALID_ASID, AsidOutOfRange, asid, _machine.Config.MinSevAsid);
        }
        if (_asidOwners.ContainsKey(asid))
        {
            return thread.Fail(SevStatus.ASID_OWNED, AsidInUse, asid);
        }
        if (_machine.Rmp.CountOwned(asid) is > 0 and var pages)
        {
            return thread.Fail(SevStatus.ASID_OWNED, AsidOwnsPages, asid, (ulong)pages);
        }
        if (_asidsToFlush.Contains(asid))
        {
            return thread.Fail(SevStatus.DFFLUSH_REQUIRED, AsidNotFlushed, asid);
        }
        _asidOwners.Add(asid, gctx.Value);
        guest.Asid = asid;
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_DF_FLUSH (0x84): ASIDs of guests that are gone may be used again.</summary>
    public SevStatus SnpDfFlush(SimThread thread) => DfFlush(thread, PspCommand.SNP_DF_FLUSH);

    /// <summary>DF_FLUSH (0x0A): the same, on a platform without SNP.</summary>
    public SevStatus DfFlush(SimThread thread) => DfFlush(thread, PspCommand.DF_FLUSH);

    private SevStatus DfFlush(SimThread thread, PspCommand command)
    {
        thread.Step(CommandStep, (ulong)command);
        if (!_initialised)
        {
            return thread.Fail(SevStatus.INVALID_PLATFORM_STATE, PlatformNotInitialised, (ulong)command);
        }
        _asidsToFlush.Clear();
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_DECOMMISSION (0x90): forgets the guest, frees its ASID, and makes the context page a Firmware page again.</summary>
    public SevStatus SnpDecommission(SimThread thread, Pfn gctx)
    {
        SevStatus status = Enter(thread, PspCommand.SNP_DECOMMISSION, gctx, out _);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        Forget(gctx);
        _machine.Rmp.Set(gctx, _machine.Rmp.Entry(gctx) with { Vmsa = false, WrittenByCall = (uint)thread.Call });
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_PAGE_RECLAIM (0xC7): takes a page away from firmware; RMPUPDATE can then make it shared.</summary>
    public SevStatus SnpPageReclaim(SimThread thread, Pfn page, PageLevel level)
    {
        thread.Step(CommandStep, (ulong)PspCommand.SNP_PAGE_RECLAIM, page.Value);
        if (!_initialised)
        {
            return thread.Fail(SevStatus.INVALID_PLATFORM_STATE, PlatformNotInitialised, (ulong)PspCommand.SNP_PAGE_RECLAIM);
        }
        RmpEntry entry = _machine.Rmp.Entry(page);
        if (entry.State is not (RmpPageState.PreGuest or RmpPageState.Firmware or RmpPageState.Metadata or RmpPageState.Context))
        {
            return thread.Fail(SevStatus.INVALID_PAGE_STATE, NotReclaimable, page.Value, (ulong)entry.State);
        }
        if (entry.Level != level)
        {
            return thread.Fail(SevStatus.INVALID_PAGE_SIZE, ReclaimSize, page.Value, (ulong)level, (ulong)entry.Level);
        }
        if (!level.IsAligned(page))
        {
            return thread.Fail(SevStatus.INVALID_ADDRESS, LargePageUnaligned, page.Value, (ulong)level);
        }
        if (entry.State == RmpPageState.Context)
        {
            Forget(page);
        }
        ulong count = level.PagesPerLevel();
        for (ulong i = 0; i < count; i++)
        {
            _machine.Rmp.Set(
                new Pfn(page.Value + i),
                new RmpEntry { Assigned = true, Is2M = entry.Is2M, WrittenByCall = (uint)thread.Call });
        }
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_GUEST_STATUS (0x92), and what the ABI keeps to itself: the digest and each measured step. Null where the page is no context.</summary>
    public SnpGuestStatus? GuestStatus(Pfn gctx) => _guests.TryGetValue(gctx.Value, out GuestContext? guest)
        ? new SnpGuestStatus(guest.State, guest.Policy, guest.Asid, guest.Digest.Current.ToArray(), guest.Transcript)
        : null;

    // The guest is gone; its ASID can be used again after a flush.
    private void Forget(Pfn gctx)
    {
        if (_guests.Remove(gctx.Value, out GuestContext? guest) && guest.Asid != 0)
        {
            _asidOwners.Remove(guest.Asid);
            _asidsToFlush.Add(guest.Asid);
        }
    }

    private SevStatus Enter(SimThread thread, PspCommand command, Pfn gctx, out GuestContext guest)
    {
        thread.Step(CommandStep, (ulong)command, gctx.Value);
        guest = null!;
        if (!_initialised)
        {
            return thread.Fail(SevStatus.INVALID_PLATFORM_STATE, PlatformNotInitialised, (ulong)command);
        }
        if (!_guests.TryGetValue(gctx.Value, out GuestContext? found))
        {
            return thread.Fail(SevStatus.INVALID_GUEST, NotAContext, gctx.Value);
        }
        guest = found;
        return SevStatus.SUCCESS;
    }
}

/// <summary>Firmware command numbers (Linux psp-sev.h).</summary>
public enum PspCommand
{
    FACTORY_RESET = 0x03,
    PEK_GEN = 0x05,
    PEK_CSR = 0x06,
    PEK_CERT_IMPORT = 0x07,
    PDH_CERT_EXPORT = 0x08,
    PDH_GEN = 0x09,
    DF_FLUSH = 0x0A,
    GET_ID = 0x0C,
    DECOMMISSION = 0x20,
    ACTIVATE = 0x21,
    GUEST_STATUS = 0x23,
    LAUNCH_START = 0x30,
    LAUNCH_UPDATE_DATA = 0x31,
    LAUNCH_UPDATE_VMSA = 0x32,
    LAUNCH_MEASURE = 0x33,
    LAUNCH_UPDATE_SECRET = 0x34,
    LAUNCH_FINISH = 0x35,
    ATTESTATION_REPORT = 0x36,
    SEND_START = 0x40,
    SEND_UPDATE_DATA = 0x41,
    SEND_FINISH = 0x43,
    SEND_CANCEL = 0x44,
    RECEIVE_START = 0x50,
    RECEIVE_UPDATE_DATA = 0x51,
    RECEIVE_FINISH = 0x53,
    DBG_DECRYPT = 0x60,
    DBG_ENCRYPT = 0x61,
    SNP_INIT = 0x81,
    SNP_PLATFORM_STATUS = 0x83,
    SNP_DF_FLUSH = 0x84,
    SNP_DECOMMISSION = 0x90,
    SNP_ACTIVATE = 0x91,
    SNP_GUEST_STATUS = 0x92,
    SNP_GCTX_CREATE = 0x93,
    SNP_GUEST_REQUEST = 0x94,
    SNP_LAUNCH_START = 0xA0,
    SNP_LAUNCH_UPDATE = 0xA1,
    SNP_LAUNCH_FINISH = 0xA2,
    SNP_PAGE_RECLAIM = 0xC7,
    SNP_CONFIG = 0xC9,
    SNP_COMMIT = 0xCB,
    SNP_VLEK_LOAD = 0xCD,
}
