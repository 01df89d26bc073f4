using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Measurement;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Amd;

/// <summary>SEV-SNP firmware: which command is taken in which state, ASIDs and their flushes, policies, reclaim, pages of a launch (snp.md 5.3, 10).</summary>
public sealed class PspTests : IDisposable
{
    private const ulong Policy = 0x30000;
    private const uint Asid = 5;
    private const ulong Gpa = 0x8000;

    private readonly Machine _machine = new(new MachineConfig(), 1);
    private readonly MachineThread _thread;

    public PspTests() => _thread = new MachineThread(_machine);

    public static TheoryData<string> Commands => ["START", "ACTIVATE", "UPDATE", "FINISH", "DECOMMISSION"];

    // Section 10.1: each command in each state of a guest context.
    public static TheoryData<string, GuestContextState, SevStatus> CommandsByState => new()
    {
        { "START", GuestContextState.Init, SevStatus.SUCCESS },
        { "START", GuestContextState.Launch, SevStatus.INVALID_GUEST_STATE },
        { "START", GuestContextState.Running, SevStatus.INVALID_GUEST_STATE },
        { "ACTIVATE", GuestContextState.Init, SevStatus.INVALID_GUEST_STATE },
        { "ACTIVATE", GuestContextState.Launch, SevStatus.SUCCESS },
        { "ACTIVATE", GuestContextState.Running, SevStatus.SUCCESS },
        { "UPDATE", GuestContextState.Init, SevStatus.INVALID_GUEST_STATE },
        { "UPDATE", GuestContextState.Launch, SevStatus.INACTIVE },
        { "UPDATE", GuestContextState.Running, SevStatus.INVALID_GUEST_STATE },
        { "FINISH", GuestContextState.Init, SevStatus.INVALID_GUEST_STATE },
        { "FINISH", GuestContextState.Launch, SevStatus.SUCCESS },
        { "FINISH", GuestContextState.Running, SevStatus.INVALID_GUEST_STATE },
        { "DECOMMISSION", GuestContextState.Init, SevStatus.SUCCESS },
        { "DECOMMISSION", GuestContextState.Launch, SevStatus.SUCCESS },
        { "DECOMMISSION", GuestContextState.Running, SevStatus.SUCCESS },
    };

    public static TheoryData<RmpPageState, SevStatus> Reclaims => new()
    {
        { RmpPageState.Hypervisor, SevStatus.INVALID_PAGE_STATE },
        { RmpPageState.Firmware, SevStatus.SUCCESS },
        { RmpPageState.Reclaim, SevStatus.INVALID_PAGE_STATE },
        { RmpPageState.Context, SevStatus.SUCCESS },
        { RmpPageState.Metadata, SevStatus.SUCCESS },
        { RmpPageState.PreGuest, SevStatus.SUCCESS },
        { RmpPageState.GuestInvalid, SevStatus.INVALID_PAGE_STATE },
        { RmpPageState.GuestValid, SevStatus.INVALID_PAGE_STATE },
    };

    public static TheoryData<RmpPageState> NotPreGuest => [.. Enum.GetValues<RmpPageState>().Where(state => state != RmpPageState.PreGuest)];

    public void Dispose()
    {
        _machine.Rmp.CheckInvariants();
        _machine.Dispose();
    }

    [Theory]
    [MemberData(nameof(Commands))]
    public void Command_BeforeSnpInit_IsInvalidPlatformState(string command)
    {
        Assert.Equal(SevStatus.INVALID_PLATFORM_STATE, Issue(command, Page(RmpPageState.Firmware)));
        Assert.Same(Psp.PlatformNotInitialised, Assert.Single(_thread.Causes).Rule);
    }

    [Fact]
    public void OtherCommands_BeforeSnpInit_AreInvalidPlatformStateToo()
    {
        Assert.Equal(SevStatus.INVALID_PLATFORM_STATE, _machine.Psp.SnpGctxCreate(_thread, Page(RmpPageState.Firmware)));
        Assert.Equal(SevStatus.INVALID_PLATFORM_STATE, _machine.Psp.SnpDfFlush(_thread));
        Assert.Equal(SevStatus.INVALID_PLATFORM_STATE, _machine.Psp.SnpPageReclaim(_thread, Page(RmpPageState.Firmware), PageLevel.Page4K));
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpInit(_thread));
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpInit(_thread));
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpDfFlush(_thread));
    }

    [Theory]
    [MemberData(nameof(Commands))]
    public void Command_OnAPageThatIsNoContext_IsInvalidGuest(string command)
    {
        _machine.Psp.SnpInit(_thread);
        Assert.Equal(SevStatus.INVALID_GUEST, Issue(command, Page(RmpPageState.Firmware)));
        Assert.Same(Psp.NotAContext, Assert.Single(_thread.Causes).Rule);
    }

    [Theory]
    [MemberData(nameof(CommandsByState))]
    public void Command_InEachState(string command, GuestContextState state, SevStatus status)
    {
        Pfn gctx = Context(state);
        Assert.Equal(status, Issue(command, gctx));
        GuestContextState? then = _machine.Psp.GuestStatus(gctx)?.State;
        Assert.Equal(
            (command, status) switch
            {
                ("START", SevStatus.SUCCESS) => GuestContextState.Launch,
                ("FINISH", SevStatus.SUCCESS) => GuestContextState.Running,
                ("DECOMMISSION", _) => null,
                _ => state,
            },
            then);
        if (status != SevStatus.SUCCESS)
        {
            Assert.Same(status == SevStatus.INACTIVE ? Psp.GuestInactive : Psp.WrongGuestState, Assert.Single(_thread.Causes).Rule);
        }
    }

    [Theory]
    [InlineData(RmpPageState.Firmware, SevStatus.SUCCESS, RmpPageState.Context)]
    [InlineData(RmpPageState.Hypervisor, SevStatus.INVALID_PAGE_STATE, RmpPageState.Hypervisor)]
    [InlineData(RmpPageState.Reclaim, SevStatus.INVALID_PAGE_STATE, RmpPageState.Reclaim)]
    [InlineData(RmpPageState.PreGuest, SevStatus.INVALID_PAGE_STATE, RmpPageState.PreGuest)]
    [InlineData(RmpPageState.GuestValid, SevStatus.INVALID_PAGE_STATE, RmpPageState.GuestValid)]
    public void GctxCreate_WantsAFirmwarePage(RmpPageState state, SevStatus status, RmpPageState then)
    {
        _machine.Psp.SnpInit(_thread);
        Pfn page = Page(state);
        Assert.Equal(status, _machine.Psp.SnpGctxCreate(_thread, page));
        Assert.Equal(then, _machine.Rmp.Entry(page).State);
        // A page that is a context cannot become one again.
        Assert.Equal(SevStatus.INVALID_PAGE_STATE, _machine.Psp.SnpGctxCreate(_thread, page));
        AssertReason(Psp.ContextPageNotFirmware);
    }

    [Fact]
    public void Decommission_GivesTheContextPageBackToFirmware()
    {
        Pfn gctx = Context(GuestContextState.Running);
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpDecommission(_thread, gctx));
        Assert.Equal(RmpPageState.Firmware, _machine.Rmp.Entry(gctx).State);
        Assert.Null(_machine.Psp.GuestStatus(gctx));
        Assert.Equal(SevStatus.INVALID_GUEST, _machine.Psp.SnpDecommission(_thread, gctx));
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpGctxCreate(_thread, gctx));
    }

    [Theory]
    [MemberData(nameof(Reclaims))]
    public void Reclaim_OfEachState(RmpPageState state, SevStatus status)
    {
        _machine.Psp.SnpInit(_thread);
        Pfn page = state == RmpPageState.Context ? Context(GuestContextState.Init) : Page(state);
        Assert.Equal(status, _machine.Psp.SnpPageReclaim(_thread, page, PageLevel.Page4K));
        Assert.Equal(status == SevStatus.SUCCESS ? RmpPageState.Reclaim : state, _machine.Rmp.Entry(page).State);
        if (status != SevStatus.SUCCESS)
        {
            AssertReason(Psp.NotReclaimable);
        }
        else
        {
            Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, page, RmpState.Shared(PageLevel.Page4K)));
            Assert.True(_machine.HostWrite(_thread, page, 0, [1]));
        }
    }

    [Fact]
    public void ReclaimedContext_IsNoGuestAnyMore()
    {
        Pfn gctx = Context(GuestContextState.Launch);
        if (_machine.Psp.SnpPageReclaim(_thread, gctx, PageLevel.Page4K) == SevStatus.SUCCESS)
        {
            Assert.Equal(SevStatus.INVALID_GUEST, Issue("FINISH", gctx));
        }
    }

    [Fact]
    public void Reclaim_OfAnotherSizeThanTheEntrys_IsInvalidPageSize()
    {
        _machine.Psp.SnpInit(_thread);
        Pfn head = LargePage(immutable: true);
        Assert.Equal(SevStatus.INVALID_PAGE_SIZE, _machine.Psp.SnpPageReclaim(_thread, head, PageLevel.Page4K));
        AssertReason(Psp.ReclaimSize);
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpPageReclaim(_thread, head, PageLevel.Page2M));
        Assert.Equal(RmpPageState.Reclaim, _machine.Rmp.Entry(head + 511).State);
        Assert.Equal(SevStatus.INVALID_PAGE_SIZE, _machine.Psp.SnpPageReclaim(_thread, Page(RmpPageState.PreGuest), PageLevel.Page2M));
    }

    // An address in the middle of a large page is none that these commands could mean.
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void LargePage_NamedByAnInnerFrame_IsRefused_AndNothingBehindItChanges(bool reclaim)
    {
        Pfn gctx = Activated(Asid);
        Pfn head = LargePage(immutable: true);
        SevStatus status = reclaim
            ? _machine.Psp.SnpPageReclaim(_thread, head + 1, PageLevel.Page2M)
            : _machine.Psp.SnpLaunchUpdate(_thread, gctx, head + 1, PageLevel.Page2M, SnpPageType.NORMAL);
        Assert.NotEqual(SevStatus.SUCCESS, status);
        AssertReason(Psp.LargePageUnaligned);
        Assert.Equal(RmpPageState.PreGuest, _machine.Rmp.Entry(head + 511).State);
        Assert.Equal(RmpPageState.Hypervisor, _machine.Rmp.Entry(head + 512).State);
    }

    [Theory]
    [InlineData(0, SevStatus.INVALID_ASID)]
    [InlineData(1, SevStatus.SUCCESS)]
    [InlineData(99, SevStatus.SUCCESS)]
    [InlineData(100, SevStatus.INVALID_ASID)]
    [InlineData(509, SevStatus.INVALID_ASID)]
    [InlineData(uint.MaxValue, SevStatus.INVALID_ASID)]
    public void Activate_TakesAsidsBelowThoseOfSev(uint asid, SevStatus status)
    {
        Pfn gctx = Context(GuestContextState.Launch);
        Assert.Equal(status, _machine.Psp.SnpActivate(_thread, gctx, asid));
        Assert.Equal(status == SevStatus.SUCCESS ? asid : 0, _machine.Psp.GuestStatus(gctx)!.Asid);
        Assert.Equal(status == SevStatus.SUCCESS ? [] : [Psp.AsidOutOfRange], _thread.Causes.Select(cause => cause.Rule));
    }

    [Fact]
    public void Activate_Twice_IsActive_AndOfAnothersAsidIsAsidOwned()
    {
        Pfn first = Activated(Asid);
        Assert.Equal(SevStatus.ACTIVE, _machine.Psp.SnpActivate(_thread, first, Asid));
        Assert.Equal(SevStatus.ACTIVE, _machine.Psp.SnpActivate(_thread, first, Asid + 1));
        AssertReason(Psp.AlreadyActive);
        Pfn second = Context(GuestContextState.Launch);
        SevStatus status = _machine.Psp.SnpActivate(_thread, second, Asid);
        Assert.True(status is SevStatus.ASID_OWNED or SevStatus.INVALID_CONFIG, $"{status}");
        AssertReason(Psp.AsidInUse);
        Assert.Equal(0u, _machine.Psp.GuestStatus(second)!.Asid);
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpActivate(_thread, second, Asid + 1));
    }

    [Fact]
    public void AsidOfAGuestThatIsGone_WaitsForAFlush()
    {
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpDecommission(_thread, Activated(Asid)));
        Pfn gctx = Context(GuestContextState.Launch);
        Assert.Equal(SevStatus.DFFLUSH_REQUIRED, _machine.Psp.SnpActivate(_thread, gctx, Asid));
        Assert.Same(Psp.AsidNotFlushed, Assert.Single(_thread.Causes).Rule);
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpDfFlush(_thread));
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpActivate(_thread, gctx, Asid));
    }

    [Fact]
    public void GuestThatWasNeverActive_LeavesNoAsidToFlush()
    {
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpDecommission(_thread, Context(GuestContextState.Launch)));
        Activated(Asid);
    }

    // Section 10.1: an ASID that the RMP still has pages of is no free ASID.
    [Fact]
    public void Activate_OfAnAsidThatStillOwnsPages_IsRefused()
    {
        Pfn gctx = Context(GuestContextState.Launch);
        Page(RmpPageState.GuestValid);
        SevStatus status = _machine.Psp.SnpActivate(_thread, gctx, Asid);
        Assert.True(status is SevStatus.INVALID_CONFIG or SevStatus.ASID_OWNED, $"{status}");
        AssertReason(Psp.AsidOwnsPages);
        Assert.Equal(0u, _machine.Psp.GuestStatus(gctx)!.Asid);
    }

    // Section 10.2: policy, SMT of the host, the status. Firmware 1.55; the bits of newer features are not reported by it.
    [Theory]
    [InlineData(0x30000, true, SevStatus.SUCCESS)]
    [InlineData(0x20000, true, SevStatus.POLICY_FAILURE, "psp.launch-start.policy-smt")]
    [InlineData(0x20000, false, SevStatus.SUCCESS)]
    [InlineData(0x30000, false, SevStatus.SUCCESS)]
    [InlineData(0x30137, true, SevStatus.SUCCESS)]
    [InlineData(0x30138, true, SevStatus.POLICY_FAILURE, "psp.launch-start.policy-abi")]
    [InlineData(0x30200, true, SevStatus.POLICY_FAILURE, "psp.launch-start.policy-abi")]
    [InlineData(0x300ff, true, SevStatus.SUCCESS)]
    [InlineData(0x70000, true, SevStatus.SUCCESS)]
    [InlineData(0xb0000, true, SevStatus.SUCCESS)]
    [InlineData(0x130000, true, SevStatus.SUCCESS)]
    [InlineData(0x10000, true, SevStatus.INVALID_PARAM, "psp.launch-start.policy-reserved")]
    [InlineData(0x4030000, true, SevStatus.INVALID_PARAM, "psp.launch-start.policy-reserved")]
    [InlineData(0x8000000000030000, true, SevStatus.INVALID_PARAM, "psp.launch-start.policy-reserved")]
    [InlineData(0, true, SevStatus.INVALID_PARAM, "psp.launch-start.policy-reserved")]
    public void Start_JudgesThePolicy(ulong policy, bool smt, SevStatus status, string? reason = null)
    {
        using var machine = new Machine(new MachineConfig { Smt = smt }, 1);
        var thread = new MachineThread(machine);
        Pfn gctx = NewContext(machine, thread);
        Assert.Equal(status, machine.Psp.SnpLaunchStart(thread, gctx, policy, new byte[16]));
        Assert.Equal(reason is null ? [] : [reason], thread.Causes.Select(cause => cause.Rule.Id));
        Assert.Equal(status == SevStatus.SUCCESS ? GuestContextState.Launch : GuestContextState.Init, machine.Psp.GuestStatus(gctx)!.State);
        // After a refusal the context takes another policy.
        Assert.Equal(
            status == SevStatus.SUCCESS ? SevStatus.INVALID_GUEST_STATE : SevStatus.SUCCESS, machine.Psp.SnpLaunchStart(thread, gctx, Policy, new byte[16]));
    }

    // Bits 21 to 25 exist only where firmware reports them, and this one does not.
    [Theory]
    [InlineData(21)]
    [InlineData(22)]
    [InlineData(23)]
    [InlineData(24)]
    [InlineData(25)]
    public void Start_WithAFeatureThatIsNotReported_IsRefused(int bit)
    {
        Pfn gctx = Context(GuestContextState.Init);
        SevStatus status = _machine.Psp.SnpLaunchStart(_thread, gctx, Policy | (1UL << bit), new byte[16]);
        Assert.True(status is SevStatus.INVALID_PARAM or SevStatus.POLICY_FAILURE, $"{status}");
    }

    [Theory]
    [MemberData(nameof(NotPreGuest))]
    public void Update_OfAPageThatIsNotPreGuest_IsInvalidPageState(RmpPageState state)
    {
        Pfn gctx = Activated(Asid);
        Pfn page = Page(state);
        Assert.Equal(SevStatus.INVALID_PAGE_STATE, Update(gctx, page));
        AssertReason(Psp.PageNotPreGuest);
        Assert.Equal(state, _machine.Rmp.Entry(page).State);
        Assert.Equal(0, _machine.Psp.GuestStatus(gctx)!.Transcript.Count);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(7)]
    [InlineData(-1)]
    [InlineData(256)]
    public void Update_OfAnUnknownType_IsInvalidParam(int type)
    {
        Pfn gctx = Activated(Asid);
        Assert.Equal(SevStatus.INVALID_PARAM, _machine.Psp.SnpLaunchUpdate(_thread, gctx, Page(RmpPageState.PreGuest), PageLevel.Page4K, (SnpPageType)type));
        AssertReason(Psp.BadPageType);
    }

    [Fact]
    public void Update_OfAnotherGuestsPage_IsInvalidPageOwner()
    {
        Pfn gctx = Activated(Asid + 1);
        Pfn page = Page(RmpPageState.PreGuest);
        Assert.Equal(SevStatus.INVALID_PAGE_OWNER, Update(gctx, page));
        AssertReason(Psp.PageOwnerDiffers);
        Assert.Equal(RmpPageState.PreGuest, _machine.Rmp.Entry(page).State);
    }

    [Theory]
    [InlineData(SnpPageType.NORMAL, true)]
    [InlineData(SnpPageType.ZERO, true)]
    [InlineData(SnpPageType.UNMEASURED, true)]
    [InlineData(SnpPageType.VMSA, false)]
    [InlineData(SnpPageType.SECRETS, false)]
    [InlineData(SnpPageType.CPUID, false)]
    public void Update_OfALargePage_IsForTypesThatComeInThatSize(SnpPageType type, bool large)
    {
        Pfn gctx = Activated(Asid);
        Pfn head = LargePage(immutable: true);
        Assert.Equal(SevStatus.INVALID_PAGE_SIZE, _machine.Psp.SnpLaunchUpdate(_thread, gctx, head, PageLevel.Page4K, type));
        AssertReason(Psp.PageSizeDiffers);
        Assert.Equal(
            large ? SevStatus.SUCCESS : SevStatus.INVALID_PAGE_SIZE, _machine.Psp.SnpLaunchUpdate(_thread, gctx, head, PageLevel.Page2M, type));
        Assert.Equal(large ? RmpPageState.GuestValid : RmpPageState.PreGuest, _machine.Rmp.Entry(head + 511).State);
        Assert.Equal(large ? 512 : 0, _machine.Psp.GuestStatus(gctx)!.Transcript.Count);
        Assert.Equal(SevStatus.INVALID_PAGE_SIZE, _machine.Psp.SnpLaunchUpdate(_thread, gctx, Page(RmpPageState.PreGuest), PageLevel.Page2M, SnpPageType.NORMAL));
    }

    [Theory]
    [InlineData(SnpPageType.NORMAL)]
    [InlineData(SnpPageType.VMSA)]
    [InlineData(SnpPageType.ZERO)]
    [InlineData(SnpPageType.UNMEASURED)]
    [InlineData(SnpPageType.SECRETS)]
    [InlineData(SnpPageType.CPUID)]
    public void Update_MakesThePageTheGuests_AndExtendsTheDigest(SnpPageType type)
    {
        Pfn gctx = Activated(Asid);
        Pfn page = Frame();
        byte[] content = new byte[4096];
        if (type != SnpPageType.CPUID)
        {
            Array.Fill(content, (byte)0x3c);
        }
        Assert.True(_machine.HostWrite(_thread, page, 0, content));
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, page, new RmpState(true, PageLevel.Page4K, true, Asid, Gpa)));
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpLaunchUpdate(_thread, gctx, page, PageLevel.Page4K, type));

        RmpEntry entry = _machine.Rmp.Entry(page);
        Assert.Equal((RmpPageState.GuestValid, type == SnpPageType.VMSA, Asid, Gpa), (entry.State, entry.Vmsa, entry.Asid, entry.Gpa));
        Assert.Equal(RmpEntry.PermissionsAfterUpdate, entry.Permissions);
        Assert.Equal(Asid, _machine.Memory.KeyOf(page));
        byte[] guestSees = new byte[4096];
        _machine.Memory.Read(page, 0, guestSees, Asid);
        if (type is SnpPageType.ZERO)
        {
            Assert.Equal(new byte[4096], guestSees);
        }
        else if (type != SnpPageType.SECRETS)
        {
            Assert.Equal(content, guestSees);
        }
        var digest = new SnpLaunchDigest();
        byte[] hash = new byte[48];
        SnpLaunchDigest.ContentHash(type, content, hash);
        digest.Extend(type, Gpa, hash);
        Assert.Equal(digest.Current.ToArray(), _machine.Psp.GuestStatus(gctx)!.LaunchDigest);
    }

    [Fact]
    public void RefusedCpuidPage_StaysPlainAndPreGuest_WithTheCorrectedValues()
    {
        Pfn gctx = Activated(Asid);
        Pfn page = Frame();
        byte[] content = new byte[4096];
        content[0] = 1;
        BitConverter.TryWriteBytes(content.AsSpan(16), 0xffffu);
        Array.Fill(content, (byte)0xff, 40, 16);
        Assert.True(_machine.HostWrite(_thread, page, 0, content));
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, page, new RmpState(true, PageLevel.Page4K, true, Asid, Gpa)));
        Assert.Equal(SevStatus.INVALID_PARAM, _machine.Psp.SnpLaunchUpdate(_thread, gctx, page, PageLevel.Page4K, SnpPageType.CPUID));
        Assert.Equal(RmpPageState.PreGuest, _machine.Rmp.Entry(page).State);
        byte[] then = new byte[4096];
        _machine.HostRead(page, 0, then);
        Array.Clear(content, 40, 16);
        Assert.Equal(content, then);
        Assert.Equal(new byte[48], _machine.Psp.GuestStatus(gctx)!.LaunchDigest);
    }

    [Fact]
    public void RefusedIdBlock_LeavesTheLaunchOpen()
    {
        Pfn gctx = Activated(Asid);
        byte[] block = new byte[96];
        block[0] = 1;
        Assert.Equal(SevStatus.BAD_MEASUREMENT, _machine.Psp.SnpLaunchFinish(_thread, gctx, block, new byte[4096], false, false, new byte[32]));
        Assert.Equal(GuestContextState.Launch, _machine.Psp.GuestStatus(gctx)!.State);
        Assert.Equal(SevStatus.SUCCESS, Issue("FINISH", gctx));
    }

    private void AssertReason(Rule rule) => Assert.Same(rule, _thread.Causes[^1].Rule);

    private SevStatus Issue(string command, Pfn gctx) => command switch
    {
        "START" => _machine.Psp.SnpLaunchStart(_thread, gctx, Policy, new byte[16]),
        "ACTIVATE" => _machine.Psp.SnpActivate(_thread, gctx, Asid),
        "UPDATE" => _machine.Psp.SnpLaunchUpdate(_thread, gctx, Page(RmpPageState.PreGuest), PageLevel.Page4K, SnpPageType.NORMAL),
        "FINISH" => _machine.Psp.SnpLaunchFinish(_thread, gctx, [], [], false, false, new byte[32]),
        _ => _machine.Psp.SnpDecommission(_thread, gctx),
    };

    private SevStatus Update(Pfn gctx, Pfn page) => _machine.Psp.SnpLaunchUpdate(_thread, gctx, page, PageLevel.Page4K, SnpPageType.NORMAL);

    private Pfn Frame() => _machine.TryAllocateFrame(out Pfn pfn) ? pfn : throw new InvalidOperationException("no frame left");

    private Pfn Page(RmpPageState state)
    {
        Pfn page = Frame();
        _machine.Rmp.Set(page, RmpStates.Entry(state, Asid, Gpa));
        return page;
    }

    private Pfn LargePage(bool immutable)
    {
        Pfn pfn = Frame();
        while (pfn.Value % 512 != 0)
        {
            pfn = Frame();
        }
        for (int i = 0; i < 512; i++)
        {
            Frame();
        }
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, pfn, new RmpState(true, PageLevel.Page2M, immutable, Asid, 0x20_0000)));
        return pfn;
    }

    // Linux psp-sev.h, enum sev_cmd: what traces show.
    [Theory]
    [InlineData(PspCommand.FACTORY_RESET, 0x03)]
    [InlineData(PspCommand.PEK_GEN, 0x05)]
    [InlineData(PspCommand.PEK_CSR, 0x06)]
    [InlineData(PspCommand.PEK_CERT_IMPORT, 0x07)]
    [InlineData(PspCommand.PDH_CERT_EXPORT, 0x08)]
    [InlineData(PspCommand.PDH_GEN, 0x09)]
    [InlineData(PspCommand.DF_FLUSH, 0x0A)]
    [InlineData(PspCommand.GET_ID, 0x0C)]
    public void PlatformCommand_HasTheNumberOfTheAbi(PspCommand command, int number) => Assert.Equal(number, (int)command);

    private static Pfn NewContext(Machine machine, MachineThread thread)
    {
        machine.Psp.SnpInit(thread);
        Assert.True(machine.TryAllocateFrame(out Pfn page));
        Assert.Equal(RmpResult.OK, machine.Rmp.Update(thread, page, new RmpState(true, PageLevel.Page4K, true, 0, 0)));
        Assert.Equal(SevStatus.SUCCESS, machine.Psp.SnpGctxCreate(thread, page));
        return page;
    }

    private Pfn Context(GuestContextState state)
    {
        Pfn gctx = NewContext(_machine, _thread);
        if (state != GuestContextState.Init)
        {
            Assert.Equal(SevStatus.SUCCESS, Issue("START", gctx));
        }
        if (state == GuestContextState.Running)
        {
            Assert.Equal(SevStatus.SUCCESS, Issue("FINISH", gctx));
        }
        return gctx;
    }

    private Pfn Activated(uint asid)
    {
        Pfn gctx = Context(GuestContextState.Launch);
        Assert.Equal(SevStatus.SUCCESS, _machine.Psp.SnpActivate(_thread, gctx, asid));
        return gctx;
    }
}
