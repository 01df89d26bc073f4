using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Intel;

/// <summary>The TDX module beyond the vectors: lives of TDs, tracking of translations, page sizes, keys, and answers instead of waiting (tdx.md 3).</summary>
public sealed class TdxModuleTests
{
    private const ulong Gpa = 0x4000_0000;
    private const ulong Huge = 0x8000_0000;
    private static readonly byte[] s_page = [.. Enumerable.Range(0, 4096).Select(i => (byte)i)];

    [Fact]
    public void Life_FromCreateToReclaim_GivesEveryPageBack()
    {
        using TdBench bench = Built().Run();
        TdxModule module = bench.Module;
        TdBench.Expect(module.VpEnter(bench.Thread, bench.Vcpus[0]));
        module.VpExit(bench.Vcpus[0]);

        Assert.Equal(TdxStatus.FLUSHVP_NOT_DONE, module.MngVpflushdone(bench.Thread, bench.Tdr));
        AssertReason(bench, TdxModule.VcpuStillAssociated);
        TdBench.Expect(module.VpFlush(bench.Thread, bench.Vcpus[0]));
        Assert.Equal(TdxStatus.VCPU_NOT_ASSOCIATED, module.VpFlush(bench.Thread, bench.Vcpus[0]));
        AssertReason(bench, TdxModule.NotAssociated);
        TdBench.Expect(module.MngVpflushdone(bench.Thread, bench.Tdr));
        Assert.Equal(TdxStatus.KEY_STATE_INCORRECT, module.MngKeyFreeid(bench.Thread, bench.Tdr).Class());
        AssertReason(bench, TdxModule.CacheNotWritten);
        TdBench.Expect(module.PhymemCacheWb(bench.Thread, 0));
        Assert.Equal(TdxStatus.LIFECYCLE_STATE_INCORRECT, module.PhymemPageReclaim(bench.Thread, bench.Tdr, out _, out _, out _));
        AssertReason(bench, TdxModule.WrongLifecycle);
        TdBench.Expect(module.MngKeyFreeid(bench.Thread, bench.Tdr));
        Assert.Equal(TdxStatus.TD_ASSOCIATED_PAGES_EXIST, module.PhymemPageReclaim(bench.Thread, bench.Tdr, out _, out _, out _));
        AssertReason(bench, TdxModule.HasChildren);

        for (ulong pfn = 1; pfn < 0x4000; pfn++)
        {
            if (new Pfn(pfn) != bench.Tdr && bench.Machine.IsAllocated(new Pfn(pfn)) && module.PhymemPageRdmd(bench.Thread, new Pfn(pfn), out TdxPageType type, out _, out _) == 0 && type != TdxPageType.NDA)
            {
                TdBench.Expect(module.PhymemPageReclaim(bench.Thread, new Pfn(pfn), out _, out Pfn owner, out _));
                Assert.Equal(bench.Tdr, owner);
            }
        }
        TdBench.Expect(module.PhymemPageReclaim(bench.Thread, bench.Tdr, out TdxPageType last, out _, out _));
        Assert.Equal((TdxPageType.TDR, null), (last, module.Describe(bench.Tdr)));
    }

    [Fact]
    public void KeyId_IsFreeOnlyAfterItsKeyIsFreed()
    {
        using TdBench bench = Built();
        Pfn other = bench.Page();

        Assert.Equal(TdxStatus.HKID_NOT_FREE, bench.Module.MngCreate(bench.Thread, other, bench.Config.FirstGuestHkid));
        AssertReason(bench, TdxModule.HkidInUse);
        Assert.Equal(TdxStatus.OPERAND_INVALID.With(TdxOperand.RDX), bench.Module.MngCreate(bench.Thread, other, bench.Config.FirstGuestHkid - 1));
        AssertReason(bench, TdxModule.HkidOutOfRange);
        TdBench.Expect(bench.Module.MngVpflushdone(bench.Thread, Flushed(bench)));
        Assert.Equal(TdxStatus.HKID_NOT_FREE, bench.Module.MngCreate(bench.Thread, other, bench.Config.FirstGuestHkid));
        AssertReason(bench, TdxModule.HkidInUse);
        TdBench.Expect(bench.Module.PhymemCacheWb(bench.Thread, 0));
        TdBench.Expect(bench.Module.MngKeyFreeid(bench.Thread, bench.Tdr));
        TdBench.Expect(bench.Module.MngCreate(bench.Thread, other, bench.Config.FirstGuestHkid));
    }

    [Fact]
    public void PrivatePage_IsCiphertextToTheHost_AndItsStoreIsAFinding()
    {
        using TdBench bench = Built();
        Pfn page = bench.Add(Gpa, s_page);
        byte[] seen = new byte[4096];

        bench.Machine.HostRead(page, 0, seen);
        Assert.NotEqual(s_page, seen);
        bench.Machine.GuestRead(bench.Module.KeyOf(bench.Tdr), page, 0, seen);
        Assert.Equal(s_page, seen);
        bench.Machine.HostWrite(bench.Thread, page, 0, [1]);
        Assert.Equal("tdx-private-page-poisoned", Assert.Single(bench.Machine.Findings.All).Kind);
    }

    [Fact]
    public void Track_WithAVcpuInside_WaitsForNobody_AndRemoveWaitsForIt()
    {
        using TdBench bench = Built();
        bench.Add(Gpa, s_page);
        bench.Run();
        TdxModule module = bench.Module;
        TdBench.Expect(module.VpEnter(bench.Thread, bench.Vcpus[0]));
        TdBench.Expect(module.MemRangeBlock(bench.Thread, bench.Tdr, Gpa, out _));

        // The epoch goes on, and the vCPU that entered before may still have the translation.
        TdBench.Expect(module.MemTrack(bench.Thread, bench.Tdr));
        Assert.Equal(TdxStatus.TLB_TRACKING_NOT_DONE.With(TdxOperand.RCX), module.MemPageRemove(bench.Thread, bench.Tdr, Gpa, out _));
        AssertReason(bench, TdxModule.NotTracked);
        Assert.Equal(TdxStatus.PREVIOUS_TLB_EPOCH_BUSY, module.MemTrack(bench.Thread, bench.Tdr));
        AssertReason(bench, TdxModule.PreviousEpoch);
        Assert.Equal(TdxStatus.TLB_TRACKING_NOT_DONE.With(TdxOperand.SEPT_TREE), module.MemRangeUnblock(bench.Thread, bench.Tdr, Gpa, out _));
        AssertReason(bench, TdxModule.NotTracked);

        module.VpExit(bench.Vcpus[0]);
        TdBench.Expect(module.MemPageRemove(bench.Thread, bench.Tdr, Gpa, out _));
    }

    [Fact]
    public void HugePage_DemotedAcceptedInPartAndPromotedAgain_KeepsItsFrames()
    {
        using TdBench bench = Built().Run();
        TdxModule module = bench.Module;
        bench.AddTables(Huge, downTo: 2);
        bench.Machine.TryAllocateHugeFrame(PageLevel.Page2M, out Pfn huge);
        ulong large = TdxModule.Mapping(Huge, 1);
        TdBench.Expect(module.MemPageAug(bench.Thread, bench.Tdr, large, huge, out _));
        Assert.Equal(0UL, bench.Accept(Huge, level: 1));

        Assert.Equal(TdxStatus.GPA_RANGE_NOT_BLOCKED.With(TdxOperand.RCX), module.MemPageDemote(bench.Thread, bench.Tdr, large, bench.Page(), out _));
        AssertReason(bench, TdxModule.NotBlocked);
        TdBench.Expect(module.MemRangeBlock(bench.Thread, bench.Tdr, large, out _));
        TdBench.Expect(module.MemTrack(bench.Thread, bench.Tdr));
        Pfn table = bench.Page();
        TdBench.Expect(module.MemPageDemote(bench.Thread, bench.Tdr, large, table, out _));
        Assert.Equal(new SeptPage(Huge + 0x5000, 0, SeptState.MAPPED, huge + 5), module.Look(bench.Tdr, Huge + 0x5000));

        TdBench.Expect(module.MemRangeBlock(bench.Thread, bench.Tdr, large, out _));
        TdBench.Expect(module.MemTrack(bench.Thread, bench.Tdr));
        TdBench.Expect(module.MemPagePromote(bench.Thread, bench.Tdr, large, out Pfn freed, out _));
        Assert.Equal((table, new SeptPage(Huge, 1, SeptState.MAPPED, huge)), (freed, module.Look(bench.Tdr, Huge)));
    }

    /// <summary>What of 512 pages of 4 KiB is different, so that they do not make one of 2 MiB.</summary>
    public static TheoryData<string> Unlike => ["one is not there", "one is pending, the others are accepted", "two have changed places", "they do not begin at 2 MiB"];

    /// <summary>A leaf about an entry, or a page, that is not what the leaf wants: the call, its status and the rule. Gpa is mapped, and nothing is finalised.</summary>
    public static TheoryData<string, TdxStatus, string> WrongEntries => new()
    {
        { "PAGE.ADD where there is a page", TdxStatus.EPT_ENTRY_STATE_INCORRECT.With(TdxOperand.RCX), "tdx.sept.state" },
        { "PAGE.ADD from a page of the TD", TdxStatus.OPERAND_INVALID.With(TdxOperand.R9), "tdx.page-add.source" },
        { "SEPT.ADD where there is a table", TdxStatus.EPT_ENTRY_STATE_INCORRECT.With(TdxOperand.RCX), "tdx.sept.state" },
        { "RANGE.BLOCK of what is blocked", TdxStatus.GPA_RANGE_ALREADY_BLOCKED.With(TdxOperand.RCX), "tdx.sept.already-blocked" },
        { "RANGE.UNBLOCK of what is not", TdxStatus.EPT_ENTRY_STATE_INCORRECT.With(TdxOperand.RCX), "tdx.sept.state" },
        { "MR.EXTEND of half a chunk", TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX), "tdx.mr-extend.gpa" },
        { "MR.EXTEND of shared memory", TdxStatus.OPERAND_INVALID.With(TdxOperand.RCX), "tdx.mr-extend.gpa" },
        { "MR.EXTEND where there is no page", TdxStatus.EPT_ENTRY_NOT_PRESENT, "tdx.mr-extend.not-present" },
        { "MR.EXTEND where there is no table", TdxStatus.EPT_ENTRY_NOT_PRESENT.With(TdxOperand.RCX), "tdx.mr-extend.not-present" },
        { "VP.FLUSH of what is inside", TdxStatus.OPERAND_BUSY.With(TdxOperand.RCX), "tdx.vcpu.inside" },
    };

    [Theory]
    [MemberData(nameof(WrongEntries))]
    public void Leaf_AboutWhatIsInAnotherState_IsRefused_AndNothingMoves(string call, TdxStatus expected, string rule)
    {
        using TdBench bench = Built();
        TdxModule module = bench.Module;
        Pfn page = bench.Add(Gpa, s_page);
        switch (call)
        {
            case "RANGE.BLOCK of what is blocked":
                TdBench.Expect(module.MemRangeBlock(bench.Thread, bench.Tdr, Gpa, out _));
                break;
            case "VP.FLUSH of what is inside":
                TdBench.Expect(module.VpEnter(bench.Run().Thread, bench.Vcpus[0]));
                break;
        }
        TdSummary before = module.Describe(bench.Tdr)!;
        bench.Thread.BeginCall(2);

        TdxStatus status = call switch
        {
            "PAGE.ADD where there is a page" => module.MemPageAdd(bench.Thread, bench.Tdr, Gpa, bench.Page(), bench.Page(), out _),
            "PAGE.ADD from a page of the TD" => module.MemPageAdd(bench.Thread, bench.Tdr, Gpa + 0x1000, bench.Page(), page, out _),
            "SEPT.ADD where there is a table" => module.MemSeptAdd(bench.Thread, bench.Tdr, TdxModule.Mapping(Gpa, 1), bench.Page(), out _),
            "RANGE.BLOCK of what is blocked" => module.MemRangeBlock(bench.Thread, bench.Tdr, Gpa, out _),
            "RANGE.UNBLOCK of what is not" => module.MemRangeUnblock(bench.Thread, bench.Tdr, Gpa, out _),
            "MR.EXTEND of half a chunk" => module.MrExtend(bench.Thread, bench.Tdr, Gpa + 128, out _),
            "MR.EXTEND of shared memory" => module.MrExtend(bench.Thread, bench.Tdr, Gpa | TdBench.SharedBit48, out _),
            "MR.EXTEND where there is no page" => module.MrExtend(bench.Thread, bench.Tdr, Gpa + 0x1000, out _),
            "MR.EXTEND where there is no table" => module.MrExtend(bench.Thread, bench.Tdr, Huge, out _),
            _ => module.VpFlush(bench.Thread, bench.Vcpus[0]),
        };

        Assert.Equal((expected, rule), (status, Assert.Single(bench.Thread.Causes).Rule.Id));
        TdSummary after = module.Describe(bench.Tdr)!;
        Assert.Equal((before.Pages, Convert.ToHexString(before.Mrtd)), (after.Pages, Convert.ToHexString(after.Mrtd)));
        module.VpExit(bench.Vcpus[0]);
    }

    [Fact]
    public void Finalize_WithoutAVcpu_IsRefused()
    {
        using TdBench bench = new TdBench().Initialize(vcpus: 0);
        Assert.Equal(TdxStatus.NO_VCPUS, bench.Module.MrFinalize(bench.Thread, bench.Tdr));
        AssertReason(bench, TdxModule.NoVcpus);
    }

    [Theory]
    [MemberData(nameof(Unlike))]
    public void Promote_OfPagesThatDoNotMakeAHugeOne_IsRefused(string unlike)
    {
        using TdBench bench = Built();
        TdxModule module = bench.Module;
        bench.AddTables(Huge);
        bench.Machine.TryAllocateHugeFrame(PageLevel.Page2M, out Pfn run);
        bench.Machine.TryAllocateHugeFrame(PageLevel.Page2M, out Pfn next);
        Assert.Equal(run + SlotBits.Slots, next);
        bench.Run();
        for (ulong i = 0; i < SlotBits.Slots; i++)
        {
            Pfn page = run + unlike switch
            {
                "two have changed places" => i ^ (i < 2 ? 1UL : 0),
                "they do not begin at 2 MiB" => i + 1,
                _ => i,
            };
            ulong gpa = Huge + (i << PageSize.Shift);
            if (i == 7 && unlike == "one is not there")
            {
                continue;
            }
            TdBench.Expect(module.MemPageAug(bench.Thread, bench.Tdr, gpa, page, out _));
            if (i != 7 || unlike != "one is pending, the others are accepted")
            {
                Assert.Equal(0UL, bench.Accept(gpa));
            }
        }
        ulong large = TdxModule.Mapping(Huge, 1);
        TdBench.Expect(module.MemRangeBlock(bench.Thread, bench.Tdr, large, out _));
        TdBench.Expect(module.MemTrack(bench.Thread, bench.Tdr));
        bench.Thread.BeginCall(2);

        TdxStatus status = module.MemPagePromote(bench.Thread, bench.Tdr, large, out _, out _);

        Assert.Equal((TdxStatus.EPT_INVALID_PROMOTE_CONDITIONS.With(TdxOperand.RCX), "tdx.promote.conditions"), (status, Assert.Single(bench.Thread.Causes).Rule.Id));
        Assert.Equal(0, module.Look(bench.Tdr, Huge).Level);
    }

    [Fact]
    public void LargeAccept_OverSmallPages_IsASizeMismatch()
    {
        using TdBench bench = Built().Run();
        bench.Aug(Gpa);

        Assert.Equal(0xC0000B0B00000001, bench.Accept(Gpa, level: 1));
    }

    // The host's walk goes through a table that is blocked, the TD's ends there.
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Accept_BelowATableThatIsBlocked_IsAnEptViolation(bool accepted)
    {
        using TdBench bench = Built().Run();
        bench.Aug(Gpa);
        if (accepted)
        {
            Assert.Equal(0UL, bench.Accept(Gpa));
        }
        TdBench.Expect(bench.Module.MemRangeBlock(bench.Thread, bench.Tdr, TdxModule.Mapping(Gpa, 1), out _));
        SeptState before = bench.StateOf(Gpa);

        var registers = new TdcallRegisters { Rcx = Gpa };
        Assert.Equal(TdGuestOutcome.EptViolation, bench.Tdcall(TdcallLeaf.TDG_MEM_PAGE_ACCEPT, ref registers));
        Assert.Equal(before, bench.StateOf(Gpa));
    }

    [Fact]
    public void Table_IsRemovedOnlyWhenItIsEmpty()
    {
        using TdBench bench = Built();
        bench.Add(Gpa, s_page);
        ulong table = TdxModule.Mapping(Gpa, 1);

        Assert.Equal(TdxStatus.EPT_ENTRY_NOT_FREE.With(TdxOperand.RCX), bench.Module.MemSeptRemove(bench.Thread, bench.Tdr, table, out _));
        AssertReason(bench, TdxModule.TableInUse);
        TdBench.Expect(bench.Module.MemPageRemove(bench.Thread, bench.Tdr, Gpa, out _));
        TdBench.Expect(bench.Module.MemSeptRemove(bench.Thread, bench.Tdr, table, out _));
    }

    /// <summary>A leaf before the TD or vCPU is ready for it, or once too often: how far the TD is built, the leaf, its status and the rule.</summary>
    public static TheoryData<Stage, SeamcallLeaf, TdxStatus, string> OutOfTurn => new()
    {
        { Stage.Created, SeamcallLeaf.TDH_MNG_ADDCX, TdxStatus.TD_KEYS_NOT_CONFIGURED, "tdx.td.keys" },
        { Stage.Created, SeamcallLeaf.TDH_MNG_INIT, TdxStatus.TD_KEYS_NOT_CONFIGURED, "tdx.td.keys" },
        { Stage.OneKey, SeamcallLeaf.TDH_MNG_KEY_CONFIG, TdxStatus.KEY_CONFIGURED, "tdx.key-config.again" },
        { Stage.OneKey, SeamcallLeaf.TDH_MNG_ADDCX, TdxStatus.TD_KEYS_NOT_CONFIGURED, "tdx.td.keys" },
        { Stage.Keys, SeamcallLeaf.TDH_MNG_KEY_CONFIG, TdxStatus.LIFECYCLE_STATE_INCORRECT, "tdx.td.lifecycle" },
        { Stage.Keys, SeamcallLeaf.TDH_MNG_INIT, TdxStatus.TDCS_NOT_ALLOCATED, "tdx.td.tdcs" },
        { Stage.Keys, SeamcallLeaf.TDH_VP_CREATE, TdxStatus.TDCS_NOT_ALLOCATED, "tdx.td.tdcs" },
        { Stage.AllPages, SeamcallLeaf.TDH_MNG_ADDCX, TdxStatus.TDCX_NUM_INCORRECT, "tdx.addcx.count" },
        { Stage.AllPages, SeamcallLeaf.TDH_VP_CREATE, TdxStatus.OP_STATE_INCORRECT, "tdx.td.op-state" },
        { Stage.Vcpu, SeamcallLeaf.TDH_VP_INIT, TdxStatus.TDCX_NUM_INCORRECT, "tdx.addcx.count" },
        { Stage.VcpuWithPages, SeamcallLeaf.TDH_VP_ADDCX, TdxStatus.TDCX_NUM_INCORRECT, "tdx.addcx.count" },
        { Stage.TooManyVcpus, SeamcallLeaf.TDH_VP_INIT, TdxStatus.MAX_VCPUS_EXCEEDED, "tdx.vp-init.max-vcpus" },
    };

    [Theory]
    [MemberData(nameof(OutOfTurn))]
    public void Leaf_OutOfTurn_NamesWhatIsMissingOrTooMuch(Stage stage, SeamcallLeaf leaf, TdxStatus expected, string rule)
    {
        using var bench = new TdBench(new TdxModuleConfig { Packages = 2 });
        TdxModule module = bench.Module;
        (Pfn tdr, Pfn tdvpr) = BuildTo(stage, bench);
        bench.Thread.BeginCall(2);

        TdxStatus status = leaf switch
        {
            SeamcallLeaf.TDH_MNG_KEY_CONFIG => module.MngKeyConfig(bench.Thread, tdr, 0),
            SeamcallLeaf.TDH_MNG_ADDCX => module.MngAddcx(bench.Thread, bench.Page(), tdr),
            SeamcallLeaf.TDH_MNG_INIT => module.MngInit(bench.Thread, tdr, TdBench.Params(), out _),
            SeamcallLeaf.TDH_VP_CREATE => module.VpCreate(bench.Thread, bench.Page(), tdr),
            SeamcallLeaf.TDH_VP_ADDCX => module.VpAddcx(bench.Thread, bench.Page(), tdvpr),
            _ => module.VpInit(bench.Thread, tdvpr, 0, null),
        };

        Assert.Equal((expected, rule), (status, Assert.Single(bench.Thread.Causes).Rule.Id));
    }

    // Each leaf that comes between the steps of another, while that one holds its locks.
    [Theory]
    [InlineData(SeamcallLeaf.TDH_MEM_RANGE_BLOCK, TdxOperand.SEPT_TREE)]
    [InlineData(SeamcallLeaf.TDH_MEM_PAGE_AUG, TdxOperand.RCX)]
    [InlineData(SeamcallLeaf.TDH_MR_FINALIZE, TdxOperand.RCX)]
    public void Leaf_ThatFindsItsOperandTaken_AnswersBusy(SeamcallLeaf leaf, TdxOperand operand)
    {
        using TdBench bench = Built();
        var other = new MachineThread(bench.Machine, 1);
        Pfn first = bench.Page(), second = bench.Page();
        TdxStatus between = TdxStatus.SUCCESS;
        bench.Machine.Baton = new Once("seamcall holds its locks", () => between = leaf switch
        {
            SeamcallLeaf.TDH_MEM_RANGE_BLOCK => bench.Module.MemRangeBlock(other, bench.Tdr, Gpa, out _),
            SeamcallLeaf.TDH_MEM_PAGE_AUG => bench.Module.MemPageAug(other, bench.Tdr, Gpa, second, out _),
            _ => bench.Module.MrFinalize(other, bench.Tdr),
        });

        TdBench.Expect(bench.Module.MemPageAug(bench.Thread, bench.Tdr, Gpa, first, out _));

        Assert.Equal(TdxStatus.OPERAND_BUSY.With(operand), between);
        Assert.Same(TdxModule.Busy, Assert.Single(other.Causes).Rule);
        bench.Machine.Baton = null;
    }

    [Theory]
    [InlineData(TdParams.AttributesAt, 0x02, TdxOperand.ATTRIBUTES)]
    [InlineData(TdParams.AttributesAt + 3, 0x20, null)] // MIGRATABLE alone
    [InlineData(TdParams.XfamAt, 0x01, TdxOperand.XFAM)]
    [InlineData(TdParams.XfamAt, 0x23, TdxOperand.XFAM)] // a part of AVX-512
    [InlineData(TdParams.MaxVcpusAt, 0, TdxOperand.MAX_VCPUS)]
    [InlineData(TdParams.NumL2VmsAt, 4, TdxOperand.NUM_L2_VMS)]
    [InlineData(20, 1, TdxOperand.RDX)]
    [InlineData(TdParams.ConfigFlagsAt, 0x0c, TdxOperand.EXEC_CONTROLS)]
    [InlineData(TdParams.ConfigFlagsAt, 0x05, TdxOperand.EPTP_CONTROLS)] // 52 bits over four levels
    [InlineData(TdParams.EptpControlsAt, 0x1d, TdxOperand.EPTP_CONTROLS)]
    [InlineData(TdParams.TscFrequencyAt, 3, TdxOperand.TSC_FREQUENCY)]
    [InlineData(79, 1, TdxOperand.RDX)]
    [InlineData(255, 1, TdxOperand.RDX)]
    [InlineData(TdParams.CpuidValuesAt + 3, 0xf0, TdxOperand.CPUID_CONFIG)]
    [InlineData(TdParams.CpuidValuesAt + (5 * 16) + 4, 0x10, TdxOperand.CPUID_CONFIG)] // HLE without RTM
    [InlineData(1023, 1, TdxOperand.RDX)]
    public void MngInit_ByteThatCannotBe_IsNamedByItsOperand(int at, byte value, TdxOperand? operand)
    {
        using var bench = new TdBench();
        bench.Create();
        byte[] tdParams = TdBench.Params();
        tdParams[at] = value;

        TdxStatus status = bench.Module.MngInit(bench.Thread, bench.Tdr, tdParams, out _);

        Assert.Equal(operand is { } named ? TdxStatus.OPERAND_INVALID.With(named) : TdxStatus.SUCCESS, status);
        Assert.Equal(operand is null ? [] : [TdxModule.BadTdParams], bench.Thread.Causes.Select(cause => cause.Rule));
    }

    [Fact]
    public void Report_VerifiesOnItsOwnMachineOnly()
    {
        using TdBench bench = Built();
        Pfn page = bench.Add(Gpa, s_page);
        bench.Run();
        var registers = new TdcallRegisters { Rcx = Gpa, Rdx = Gpa + 0xFC0 };
        Assert.Equal(TdGuestOutcome.Completed, bench.Tdcall(TdcallLeaf.TDG_MR_REPORT, ref registers));
        registers = new TdcallRegisters { Rcx = Gpa };
        bench.Tdcall(TdcallLeaf.TDG_MR_VERIFYREPORT, ref registers);
        Assert.Equal(0UL, registers.Rax);

        uint key = bench.Module.KeyOf(bench.Tdr);
        byte[] mac = new byte[1];
        bench.Machine.GuestRead(key, page, 224, mac);
        bench.Machine.GuestWrite(key, page, 224, [(byte)(mac[0] ^ 1)]);
        registers = new TdcallRegisters { Rcx = Gpa };
        bench.Tdcall(TdcallLeaf.TDG_MR_VERIFYREPORT, ref registers);
        Assert.Equal((ulong)TdxStatus.INVALID_REPORTMACSTRUCT, registers.Rax);
    }

    /// <summary>How far a TD is built when a leaf comes out of turn.</summary>
    public enum Stage
    {
        /// <summary>TDH.MNG.CREATE.</summary>
        Created,

        /// <summary>The key is configured on the first of two packages.</summary>
        OneKey,

        /// <summary>Keys are configured, and there is no control page besides the TDR.</summary>
        Keys,

        /// <summary>As many control pages as the module takes.</summary>
        AllPages,

        /// <summary>A vCPU with its TDVPR only.</summary>
        Vcpu,

        /// <summary>A vCPU with all of its pages, not yet initialised.</summary>
        VcpuWithPages,

        /// <summary>The same, of a TD that has as many vCPUs as TD_PARAMS allows.</summary>
        TooManyVcpus,
    }

    private static (Pfn Tdr, Pfn Tdvpr) BuildTo(Stage stage, TdBench bench)
    {
        TdxModule module = bench.Module;
        if (stage >= Stage.Vcpu)
        {
            bench.Initialize(TdBench.Params(maxVcpus: 1), vcpus: stage == Stage.TooManyVcpus ? 1 : 0);
            Pfn tdvpr = bench.Page();
            TdBench.Expect(module.VpCreate(bench.Thread, tdvpr, bench.Tdr));
            for (int i = 1; stage != Stage.Vcpu && i < bench.Config.TdvpsPages; i++)
            {
                TdBench.Expect(module.VpAddcx(bench.Thread, bench.Page(), tdvpr));
            }
            return (bench.Tdr, tdvpr);
        }
        Pfn tdr = bench.Page();
        TdBench.Expect(module.MngCreate(bench.Thread, tdr, bench.Config.FirstGuestHkid));
        for (int package = 0; package < (stage == Stage.Created ? 0 : stage == Stage.OneKey ? 1 : bench.Config.Packages); package++)
        {
            TdBench.Expect(module.MngKeyConfig(bench.Thread, tdr, package));
        }
        for (int i = 0; stage == Stage.AllPages && i < bench.Config.MaxTdcsPages; i++)
        {
            TdBench.Expect(module.MngAddcx(bench.Thread, bench.Page(), tdr));
        }
        return (tdr, default);
    }

    private static void AssertReason(TdBench bench, Rule rule) => Assert.Same(rule, bench.Thread.Causes[^1].Rule);

    private static Pfn Flushed(TdBench bench)
    {
        foreach (Pfn vcpu in bench.Vcpus)
        {
            TdBench.Expect(bench.Module.VpFlush(bench.Thread, vcpu));
        }
        return bench.Tdr;
    }

    private static TdBench Built()
    {
        TdBench bench = new TdBench().Initialize();
        bench.AddTables(Gpa);
        return bench;
    }

    // Does something once, when a step of that name comes.
    private sealed class Once(string label, Action act) : Baton
    {
        private bool _done;

        public override void Pass(SimThread current, StepLabel at)
        {
            if (!_done && at.Name == label)
            {
                _done = true;
                act();
            }
        }
    }
}
