using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Amd;

/// <summary>
/// The reverse map: layout of an entry, states, RMPUPDATE and PSMASH with all their results, and what a host suffers that touches or frees a page that is not its
/// own (snp.md 5).
/// </summary>
public sealed class RmpTests : IDisposable
{
    private const ulong Gpa = 0x40_0000;
    private const uint Asid = 5;

    // A 2 MiB-aligned frame, far from those that the machine hands out.
    private static readonly Pfn Head = new(0x200);

    private readonly Machine _machine = new(new MachineConfig { MemoryBytes = 0xC00 * 4096 }, 1);
    private readonly MachineThread _thread;

    public RmpTests()
    {
        _thread = new MachineThread(_machine);
        _thread.BeginCall(1);
    }

    public static TheoryData<RmpPageState> AllStates => [.. Enum.GetValues<RmpPageState>()];

    public static TheoryData<RmpPageState> AssignedStates => [.. Enum.GetValues<RmpPageState>().Where(state => state != RmpPageState.Hypervisor)];

    // From each state by RMPUPDATE to what it may ask for: the result, and the state then.
    public static TheoryData<RmpPageState, string, RmpResult, RmpPageState> Transitions
    {
        get
        {
            var data = new TheoryData<RmpPageState, string, RmpResult, RmpPageState>();
            foreach (RmpPageState from in Enum.GetValues<RmpPageState>())
            {
                bool immutable = from is RmpPageState.Firmware or RmpPageState.Context or RmpPageState.Metadata or RmpPageState.PreGuest or RmpPageState.PreSwap;
                foreach ((string to, RmpPageState then) in new[]
                {
                    ("shared", RmpPageState.Hypervisor), ("guest", RmpPageState.GuestInvalid), ("pre-guest", RmpPageState.PreGuest),
                    ("firmware", RmpPageState.Firmware), ("metadata", RmpPageState.Metadata), ("reclaim", RmpPageState.Reclaim),
                })
                {
                    data.Add(from, to, immutable ? RmpResult.FAIL_PERMISSION : RmpResult.OK, immutable ? from : then);
                }
            }
            return data;
        }
    }

    public void Dispose()
    {
        _machine.Rmp.CheckInvariants();
        _machine.Dispose();
    }

    // Section 5.1: each field alone, and its bits in the low quadword.
    [Fact]
    public void Entry_HasTheRawLayoutOfZen3()
    {
        Assert.Equal(1UL << 0, new RmpEntry { Assigned = true }.Raw);
        Assert.Equal(1UL << 1, new RmpEntry { Is2M = true }.Raw);
        Assert.Equal(1UL << 2, new RmpEntry { Immutable = true }.Raw);
        Assert.Equal(0x0007_ffff_ffff_f000UL, new RmpEntry { Gpa = ulong.MaxValue }.Raw);
        Assert.Equal(0x1234_5000UL, new RmpEntry { Gpa = 0x1234_5000 }.Raw);
        Assert.Equal(5UL << 51, new RmpEntry { Asid = 5 }.Raw);
        Assert.Equal(0x3ffUL << 51, new RmpEntry { Asid = 1023 }.Raw);
        Assert.Equal(1UL << 61, new RmpEntry { Vmsa = true }.Raw);
        Assert.Equal(1UL << 62, new RmpEntry { Validated = true }.Raw);
        var all = new RmpEntry { Assigned = true, Is2M = true, Immutable = true, Gpa = 0xffff_ffff_f000, Asid = 1023, Vmsa = true, Validated = true };
        Assert.Equal((true, true, true, 0xffff_ffff_f000UL, 1023u, true, true), (all.Assigned, all.Is2M, all.Immutable, all.Gpa, all.Asid, all.Vmsa, all.Validated));
        Assert.Equal(0UL, (all with { Assigned = false, Is2M = false, Immutable = false, Gpa = 0, Asid = 0, Vmsa = false, Validated = false }).Raw);
    }

    // Section 5.1, the table of page states: assigned, validated, ASID, immutable, gpa, VMSA.
    [Theory]
    [InlineData(false, false, 0, false, 0, false, RmpPageState.Hypervisor)]
    [InlineData(true, false, 0, true, 0, false, RmpPageState.Firmware)]
    [InlineData(true, false, 0, false, 0, false, RmpPageState.Reclaim)]
    [InlineData(true, false, 0, false, 0x1000, true, RmpPageState.Reclaim)]
    [InlineData(true, false, 0, true, 0, true, RmpPageState.Context)]
    [InlineData(true, false, 0, true, 0x1000, false, RmpPageState.Metadata)]
    [InlineData(true, false, 5, true, 0x1000, false, RmpPageState.PreGuest)]
    [InlineData(true, false, 5, true, 0, true, RmpPageState.PreGuest)]
    [InlineData(true, false, 5, false, 0x1000, false, RmpPageState.GuestInvalid)]
    [InlineData(true, true, 5, false, 0x1000, false, RmpPageState.GuestValid)]
    [InlineData(true, true, 5, false, 0x1000, true, RmpPageState.GuestValid)]
    [InlineData(true, true, 5, true, 0x1000, false, RmpPageState.PreSwap)]
    public void Entry_IsInTheStateOfItsBits(bool assigned, bool validated, uint asid, bool immutable, ulong gpa, bool vmsa, RmpPageState state)
    {
        Assert.Equal(
            state,
            new RmpEntry { Assigned = assigned, Validated = validated, Asid = asid, Immutable = immutable, Gpa = gpa, Vmsa = vmsa }.State);
    }

    [Theory]
    [MemberData(nameof(Transitions))]
    public void Rmpupdate_OfEachState(RmpPageState from, string to, RmpResult result, RmpPageState then)
    {
        Put(Head, from);
        RmpEntry before = _machine.Rmp.Entry(Head);
        Assert.Equal(result, _machine.Rmp.Update(_thread, Head, Request(to)));
        RmpEntry after = _machine.Rmp.Entry(Head);
        Assert.Equal(then, after.State);
        if (result == RmpResult.OK)
        {
            Assert.Equal((false, false), (after.Validated, after.Vmsa));
            Assert.Equal(to == "shared" ? 0 : RmpEntry.PermissionsAfterUpdate, after.Permissions);
            Assert.Empty(_thread.Causes);
        }
        else
        {
            Assert.Equal(before, after);
            Assert.Same(Rmp.Immutable, Assert.Single(_thread.Causes).Rule);
        }
    }

    // Frame, level, gpa, ASID, and the rule that refuses; all are FAIL_INPUT.
    [Theory]
    [InlineData(0xC01, PageLevel.Page4K, 0x1000, 5, "rmp.not-covered")]
    [InlineData(0xffff_ffff_ffff, PageLevel.Page4K, 0x1000, 5, "rmp.not-covered")]
    [InlineData(0x201, PageLevel.Page2M, 0x20_0000, 5, "rmp.misaligned")]
    [InlineData(0x200, PageLevel.Page2M, 0x20_1000, 5, "rmp.misaligned")]
    [InlineData(0xC00, PageLevel.Page2M, 0x20_0000, 5, "rmp.misaligned")]
    [InlineData(0x200, PageLevel.Page4K, 0x1001, 5, "rmp.bad-input")]
    [InlineData(0x200, PageLevel.Page4K, 0x8_0000_0000_0000, 5, "rmp.bad-input")]
    [InlineData(0x200, PageLevel.Page4K, 0x1000, 510, "rmp.bad-input")]
    [InlineData(0x200, PageLevel.Page4K, 0x1000, uint.MaxValue, "rmp.bad-input")]
    public void Rmpupdate_WithBadInput_IsFailInput(ulong pfn, PageLevel level, ulong gpa, uint asid, string rule)
    {
        Assert.Equal(RmpResult.FAIL_INPUT, _machine.Rmp.Update(_thread, new Pfn(pfn), new RmpState(true, level, false, asid, gpa)));
        Assert.Equal(rule, Assert.Single(_thread.Causes).Rule.Id);
        Assert.Empty(_machine.Rmp.Owned(asid));
    }

    [Fact]
    public void Rmpupdate_OfALargePage_CountsTheGpasUp()
    {
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, Head, Large(false)));
        for (ulong i = 0; i < 512; i++)
        {
            Assert.True(_machine.Rmp.TryRead(Head + i, out RmpState state));
            Assert.Equal(new RmpState(true, PageLevel.Page2M, false, Asid, Gpa + (i << 12)), state);
        }
        Assert.False(_machine.Rmp.Entry(Head + 512).Assigned);
    }

    // What stands at the head or behind it, and what is asked for there: overlap in both directions, with shared as well.
    [Theory]
    [InlineData(true, 0, PageLevel.Page4K, true)]
    [InlineData(true, 0, PageLevel.Page4K, false)]
    [InlineData(true, 511, PageLevel.Page4K, true)]
    [InlineData(true, 511, PageLevel.Page4K, false)]
    [InlineData(false, 0, PageLevel.Page2M, true)]
    [InlineData(false, 300, PageLevel.Page2M, true)]
    [InlineData(false, 511, PageLevel.Page2M, false)]
    public void Rmpupdate_ThatWouldMixSizes_IsFailOverlap_AndChangesNothing(bool largeStands, ulong at, PageLevel asked, bool assign)
    {
        RmpState standing = largeStands ? Large(false) : new RmpState(true, PageLevel.Page4K, false, Asid, Gpa + (at << 12));
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, largeStands ? Head : Head + at, standing));
        string before = Dump();
        Pfn target = asked == PageLevel.Page2M ? Head : Head + at;
        RmpState request = assign ? new RmpState(true, asked, false, Asid, asked == PageLevel.Page2M ? Gpa : Gpa + (at << 12)) : RmpState.Shared(asked);
        Assert.Equal(RmpResult.FAIL_OVERLAP, _machine.Rmp.Update(_thread, target, request));
        Assert.Same(Rmp.Overlap, _thread.Causes[^1].Rule);
        Assert.Equal(before, Dump());
    }

    [Fact]
    public void Rmpupdate_OfALargePage_WithOneImmutableInside_ChangesNothing()
    {
        Put(Head + 511, RmpPageState.PreGuest);
        string before = Dump();
        RmpResult result = _machine.Rmp.Update(_thread, Head, Large(false));
        Assert.True(result is RmpResult.FAIL_PERMISSION or RmpResult.FAIL_OVERLAP, $"{result}");
        Assert.Equal(before, Dump());
    }

    [Fact]
    public void Rmpupdate_OfALargePageBackToShared_FreesAll()
    {
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, Head, Large(false)));
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, Head, RmpState.Shared(PageLevel.Page2M)));
        Assert.Equal("", Dump());
    }

    // Offset from the head, what is there, and PSMASH's answer.
    [Theory]
    [InlineData(0, "large", RmpResult.OK)]
    [InlineData(1, "large", RmpResult.FAIL_INPUT)]
    [InlineData(511, "large", RmpResult.FAIL_INPUT)]
    [InlineData(0, "nothing", RmpResult.FAIL_OVERLAP)]
    [InlineData(0, "small", RmpResult.FAIL_OVERLAP)]
    [InlineData(0, "immutable", RmpResult.FAIL_PERMISSION)]
    public void Psmash_ByWhatIsThere(ulong offset, string what, RmpResult result)
    {
        if (what != "nothing")
        {
            RmpState state = what == "small" ? new RmpState(true, PageLevel.Page4K, false, Asid, Gpa) : Large(what == "immutable");
            Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, Head, state));
        }
        string before = Dump();
        Assert.Equal(result, _machine.Rmp.Psmash(_thread, Head + offset));
        if (result != RmpResult.OK)
        {
            Assert.Same(Rmp.NotSmashable, Assert.Single(_thread.Causes).Rule);
            Assert.Equal(before, Dump());
        }
    }

    [Fact]
    public void Psmash_OutsideTheRmp_IsFailInput() =>
        Assert.Equal(RmpResult.FAIL_INPUT, _machine.Rmp.Psmash(_thread, new Pfn(0x10_0000)));

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Psmash_KeepsOwnerAndValidated_AndCountsTheGpasUp(bool validated)
    {
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, Head, Large(false)));
        for (ulong i = 0; i < 512; i++)
        {
            _machine.Rmp.Set(Head + i, _machine.Rmp.Entry(Head + i) with { Validated = validated });
        }
        Assert.Equal(RmpResult.OK, _machine.Rmp.Psmash(_thread, Head));
        for (ulong i = 0; i < 512; i++)
        {
            RmpEntry entry = _machine.Rmp.Entry(Head + i);
            Assert.Equal((true, false, Asid, Gpa + (i << 12), validated), (entry.Assigned, entry.Is2M, entry.Asid, entry.Gpa, entry.Validated));
        }
        // Now a small page can be taken out of the middle.
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, Head + 17, RmpState.Shared(PageLevel.Page4K)));
    }

    [Fact]
    public void Rmpread_OutsideTheMachine_FindsNothing()
    {
        Assert.False(_machine.Rmp.TryRead(new Pfn(0xC01), out _));
        Assert.True(_machine.Rmp.TryRead(new Pfn(0xC00), out RmpState state));
        Assert.Equal(new RmpState(false, PageLevel.Page4K, false, 0, 0), state);
    }

    [Theory]
    [MemberData(nameof(AssignedStates))]
    public void HostStore_IntoAPageThatIsNotItsOwn_StoresNothing_AndIsAFindingWithBlame(RmpPageState state)
    {
        Pfn page = Frame();
        Pfn source = Frame();
        Assert.True(_machine.HostWrite(_thread, page, 0, [1, 2, 3, 4]));
        _thread.BeginCall(21);
        Put(page, state);
        _thread.BeginCall(22);

        Assert.False(_machine.HostWrite(_thread, page, 0, [9, 9]));
        Assert.False(_machine.HostZero(_thread, page));
        Assert.False(_machine.HostCopy(_thread, source, page));
        byte[] content = new byte[4];
        _machine.HostRead(page, 0, content);
        Assert.Equal([1, 2, 3, 4], content);

        Assert.Equal(3, _machine.Findings.All.Count);
        foreach (Finding finding in _machine.Findings.All)
        {
            Assert.Equal(("host-rmp-fault", 22UL), (finding.Kind, finding.Call));
            RmpEntry entry = _machine.Rmp.Entry(page);
            Assert.Equal(
                [("pfn", page.Value), ("gpa", entry.Gpa), ("asid", entry.Asid), ("error_code", 0x8000_0003UL)],
                finding.Operands.Select(operand => (operand.Name, operand.Value)));
            Assert.Equal(2, finding.Blame.Count);
            Assert.Contains("call 21", finding.Blame[0], StringComparison.Ordinal);
            Assert.Contains("call 22", finding.Blame[1], StringComparison.Ordinal);
        }
        _machine.Rmp.Set(page, default);
    }

    [Fact]
    public void HostStore_IntoItsOwnPage_IsNoFinding()
    {
        Pfn page = Frame();
        Pfn other = Frame();
        Put(page, RmpPageState.GuestValid);
        Assert.Equal(RmpResult.OK, _machine.Rmp.Update(_thread, page, RmpState.Shared(PageLevel.Page4K)));
        Assert.True(_machine.HostWrite(_thread, page, 0, [1]));
        // Copying out of a private page reads, and reading is allowed.
        Put(other, RmpPageState.GuestValid);
        Assert.True(_machine.HostCopy(_thread, other, page));
        Assert.True(_machine.HostZero(_thread, page));
        Assert.Empty(_machine.Findings.All);
        _machine.Rmp.Set(other, default);
    }

    [Fact]
    public void HostRead_OfAnEncryptedPage_IsStableAndNoPlaintext()
    {
        Pfn page = Frame();
        byte[] plain = new byte[4096];
        Array.Fill(plain, (byte)0x77);
        Assert.True(_machine.HostWrite(_thread, page, 0, plain));
        _machine.Memory.Encrypt(page, Asid);
        byte[] first = new byte[4096];
        byte[] second = new byte[4096];
        _machine.HostRead(page, 0, first);
        _machine.HostRead(page, 0, second);
        Assert.Equal(first, second);
        Assert.NotEqual(plain, first);
        Assert.False(_machine.TryHostView(page, out _));
    }

    [Theory]
    [MemberData(nameof(AllStates))]
    public void Free_OfAPageThatIsNotTheHosts_IsAFinding_AndThePageStaysOutOfUse(RmpPageState state)
    {
        Pfn page = Frame();
        _thread.BeginCall(31);
        Put(page, state);
        _thread.BeginCall(32);
        _machine.FreeFrame(_thread, page);
        if (state == RmpPageState.Hypervisor)
        {
            Assert.Empty(_machine.Findings.All);
            Assert.Equal(page, Frame());
            return;
        }
        Finding finding = Assert.Single(_machine.Findings.All);
        Assert.Equal("page-freed-while-private", finding.Kind);
        Assert.Contains("call 31", finding.Blame[0], StringComparison.Ordinal);
        Assert.Contains("call 32", finding.Blame[1], StringComparison.Ordinal);
        Assert.Equal(1, _machine.LeakedPages);
        Assert.NotEqual(page, Frame());
    }

    [Fact]
    public void LeakedFrame_IsNeverHandedOutAgain_AndFreeingItIsNoFinding()
    {
        Pfn page = Frame();
        Put(page, RmpPageState.PreGuest);
        _machine.LeakFrame(page);
        Assert.Equal(1, _machine.LeakedPages);
        _machine.FreeFrame(_thread, page);
        Assert.Empty(_machine.Findings.All);
        Assert.Equal(1, _machine.LeakedPages);
        Assert.NotEqual(page, Frame());
    }

    [Fact]
    public void Owned_ListsThePagesOfOneAsid_InFrameOrder()
    {
        _machine.Rmp.Update(_thread, new Pfn(9), new RmpState(true, PageLevel.Page4K, false, 5, 0x3000));
        _machine.Rmp.Update(_thread, new Pfn(4), new RmpState(true, PageLevel.Page4K, true, 5, 0x8000));
        _machine.Rmp.Update(_thread, new Pfn(6), new RmpState(true, PageLevel.Page4K, true, 6, 0x9000));
        Assert.Equal([(0x8000UL, RmpPageState.PreGuest, false), (0x3000UL, RmpPageState.GuestInvalid, false)], _machine.Rmp.Owned(5));
    }

    private static RmpState Large(bool immutable) => new(true, PageLevel.Page2M, immutable, Asid, Gpa);

    private static RmpState Request(string to) => to switch
    {
        "guest" => new RmpState(true, PageLevel.Page4K, false, Asid, Gpa),
        "pre-guest" => new RmpState(true, PageLevel.Page4K, true, Asid, Gpa),
        "firmware" => new RmpState(true, PageLevel.Page4K, true, 0, 0),
        "metadata" => new RmpState(true, PageLevel.Page4K, true, 0, Gpa),
        "reclaim" => new RmpState(true, PageLevel.Page4K, false, 0, 0),
        _ => RmpState.Shared(PageLevel.Page4K),
    };

    private Pfn Frame() => _machine.TryAllocateFrame(out Pfn pfn) ? pfn : throw new InvalidOperationException("no frame left");

    private void Put(Pfn pfn, RmpPageState state) => _machine.Rmp.Set(pfn, RmpStates.Entry(state, Asid, Gpa) with { WrittenByCall = Written(state) });

    private uint Written(RmpPageState state) => state == RmpPageState.Hypervisor ? 0 : (uint)_thread.Call;

    private string Dump() => string.Join('\n', Enumerable.Range(0, 0xC01).Select(i => (i, Entry: _machine.Rmp.Entry(new Pfn((ulong)i))))
        .Where(page => page.Entry != default).Select(page => $"{page.i:x} {page.Entry}"));
}
