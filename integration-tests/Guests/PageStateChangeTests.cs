using System.Buffers.Binary;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Guests;

/// <summary>Page state changes by a GHCB, and a VMM that follows (snp.md 6.3): the list, how it is merged into exits, how far it went when something fails.</summary>
public sealed class PageStateChangeTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Generic = 0x100UL << 32;
    private const ulong BadHeader = (1UL << 32) | 1;
    private const ulong BadEntry = (1UL << 32) | 2;

    // The whole life of a page, as a guest with SWIOTLB lives it: taken as private memory, given to the host for a buffer, taken back.
    [Fact]
    public async Task AGuestConvertsPagesBackAndForth_WhileTheVmmFollowsWithAttributesAndPunchHole()
    {
        const ulong gpa = 16 * SnpGuest.Page, pages = 8;
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        List<(ulong Gpa, ulong Pages, bool Private)> asked = [];
        void Asked(ulong at, ulong count, bool isPrivate) => asked.Add((at, count, isPrivate));

        // Private: the guest accepts its pages and keeps a secret in them. The VMM cannot see it.
        IReadOnlyList<GuestStepResult> results = await guest.RunWithFollowingVmm(
            Asked,
            GhcbGuest.RegisterGhcb(SnpGuest.Ghcb),
            GhcbGuest.PageStates(SnpGuest.Ghcb, gpa, pages, isPrivate: true),
            Guest.Fill(gpa, pages * SnpGuest.Page, "secret"u8),
            Guest.Compare(gpa, "secret"u8, pages * SnpGuest.Page),
            // Memory that nobody wrote: from here on the host has a zero page, so that frames can be counted.
            Guest.Read(SnpGuest.Certificates, 1, GuestAccess.Shared));
        Assert.Equal([(gpa, pages, true)], asked);
        Assert.Equal((0UL, 0UL, 0UL), (results[1].Rax, results[1].Ghcb.ExitInfo1, results[1].Ghcb.ExitInfo2));
        Assert.False(results[3].HasMismatchAt);
        Assert.Equal(new byte[16], (await guest.Process.ReadAsync(guest.Backing + gpa, 16)).ToArray());
        ulong frames = (await guest.Host.GetStateAsync()).AllocatedPages;

        // Shared: the guest gives them up first; the VMM clears the attribute and punches the hole, so the private pages are the host's again, and both see what either writes.
        asked.Clear();
        results = await guest.RunWithFollowingVmm(
            Asked,
            GhcbGuest.PageStates(SnpGuest.Ghcb, gpa, pages, isPrivate: false),
            Guest.Read(gpa, 6, GuestAccess.Shared),
            Guest.Fill(gpa, pages * SnpGuest.Page, "packet"u8, GuestAccess.Shared));
        Assert.Equal([(gpa, pages, false)], asked);
        Assert.Equal(new byte[6], results[1].Data.ToByteArray());
        Assert.Equal("packet"u8.ToArray(), (await guest.Process.ReadAsync(guest.Backing + gpa, 6)).ToArray());
        // As many frames as before: the private ones went, shared ones came.
        Assert.Equal(frames, (await guest.Host.GetStateAsync()).AllocatedPages);
        await guest.Process.WriteAsync(guest.Backing + gpa, "answer"u8.ToArray());

        // And private again: new pages, which the guest has to accept anew; nothing of before is in them.
        asked.Clear();
        results = await guest.RunWithFollowingVmm(
            Asked,
            Guest.Read(gpa, 6, GuestAccess.Shared),
            GhcbGuest.PageStates(SnpGuest.Ghcb, gpa, pages, isPrivate: true, validate: false),
            Guest.Read(gpa, 6),
            GhcbGuest.Pvalidate(gpa),
            Guest.Read(gpa, 6));
        Assert.Equal("answer"u8.ToArray(), results[0].Data.ToByteArray());
        Assert.Equal(("#VC", 0x404UL, gpa), (results[2].Exception.Name, results[2].Exception.Code, results[2].Exception.Gpa));
        Assert.Equal(0UL, results[3].Rax);
        Assert.DoesNotContain(results[4].Data.ToStringUtf8(), new[] { "secret", "packet", "answer" });
        Assert.Empty(await guest.Findings());
    }

    [Fact]
    public async Task NeighboursOfOneKind_AreOneExit_AndEachChangeOfKindOrGapIsAnother()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        List<(ulong Gfn, ulong Pages, bool Private)> asked = [];
        IReadOnlyList<GuestStepResult> results = await guest.RunWithFollowingVmm(
            (gpa, pages, isPrivate) => asked.Add((gpa / SnpGuest.Page, pages, isPrivate)),
            GhcbGuest.RegisterGhcb(SnpGuest.Ghcb),
            GhcbGuest.PageStates(
                SnpGuest.Ghcb, [Entry(16, 1), Entry(17, 1), Entry(18, 2), Entry(20, 2), Entry(21, 7), Entry(512, 1, large: true), Entry(1024 - 512 + 512, 1)], validate: false));
        Assert.Equal([(16UL, 2UL, true), (18, 1, false), (20, 1, false), (512, 512, true), (1024, 1, true)], asked);
        Assert.Equal((0UL, 0UL), (results[1].Ghcb.ExitInfo1, results[1].Ghcb.ExitInfo2));

        // cur_entry is behind the last entry, and each entry says how many of its pages are done.
        byte[] list = results[1].Data.ToByteArray();
        Assert.Equal(7, BinaryPrimitives.ReadUInt16LittleEndian(list));
        Assert.Equal([1, 1, 1, 1, 1, 512, 1], Enumerable.Range(0, 7).Select(i => CurPage(list, i)));
    }

    [Fact]
    public async Task A2MiBEntry_SaysSoInTheExit_AndWhatIsLeftOfOneGoesOnIn4KiBPages()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        await guest.RunToHalt(GhcbGuest.RegisterGhcb(SnpGuest.Ghcb));
        RunResponse run = await guest.Run(GhcbGuest.PageStates(SnpGuest.Ghcb, [Entry(512, 1, large: true)], validate: false), Guest.Halt());
        Assert.Equal([512 * SnpGuest.Page, 512, 0x11UL], run.Run.Hypercall.Args.Take(3));

        run = await guest.Run(GhcbGuest.PageStates(SnpGuest.Ghcb, [Entry(512, 1, large: true, done: 100)], validate: false), Guest.Halt());
        // The exit still names the entry's own page size, as KVM does.
        Assert.Equal([612 * SnpGuest.Page, 412, 0x11UL], run.Run.Hypercall.Args.Take(3));
    }

    [Fact]
    public async Task AVmmThatRefusesTheSecondRange_LeavesTheFirstDone_AndTheListSaysHowFarItWent()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        await guest.RunToHalt(GhcbGuest.RegisterGhcb(SnpGuest.Ghcb));
        RunResponse run = await guest.Run(GhcbGuest.PageStates(SnpGuest.Ghcb, [Entry(16, 1), Entry(17, 1), Entry(30, 1)], validate: false), Guest.Halt());
        run = await guest.Continue(new RunPageUpdate { HypercallRet = 0 });
        Assert.Equal([30 * SnpGuest.Page, 1UL], run.Run.Hypercall.Args.Take(2));
        run = await guest.Continue(new RunPageUpdate { HypercallRet = unchecked((ulong)-22L) });
        Assert.Equal((0UL, Generic), (run.Results[0].Ghcb.ExitInfo1, run.Results[0].Ghcb.ExitInfo2));
        byte[] list = run.Results[0].Data.ToByteArray();
        Assert.Equal(2, BinaryPrimitives.ReadUInt16LittleEndian(list));
        Assert.Equal([1, 1, 0], Enumerable.Range(0, 3).Select(i => CurPage(list, i)));
    }

    [Fact]
    public async Task MoreThan253Entries_GoInSeveralLists()
    {
        const ulong pages = 600;
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        List<(ulong, ulong)> asked = [];
        IReadOnlyList<GuestStepResult> results = await guest.RunWithFollowingVmm(
            (gpa, count, _) => asked.Add((gpa / SnpGuest.Page, count)),
            GhcbGuest.RegisterGhcb(SnpGuest.Ghcb), GhcbGuest.PageStates(SnpGuest.Ghcb, 16 * SnpGuest.Page, pages, isPrivate: true));
        Assert.Equal([(16UL, 253UL), (269UL, 253UL), (522UL, 94UL)], asked);
        Assert.Equal((0UL, 0UL), (results[1].Rax, results[1].Ghcb.ExitInfo2));
    }

    [Fact]
    public async Task ALargePageThatTheHostBacksInSmallOnes_IsValidatedPieceByPiece()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        IReadOnlyList<GuestStepResult> results = await guest.RunWithFollowingVmm(
            (_, _, _) => { },
            GhcbGuest.RegisterGhcb(SnpGuest.Ghcb),
            GhcbGuest.PageStates(SnpGuest.Ghcb, [Entry(512, 1, large: true)]),
            Guest.Fill(512 * SnpGuest.Page, 512 * SnpGuest.Page, [1]));
        Assert.Equal(0UL, results[1].Rax);
        Assert.Null(results[2].Exception);
    }

    public static TheoryData<ulong, byte[]> BadLists => new()
    {
        { BadHeader, List(253, Word(16, 1)) },
        { BadHeader, List(0xffff, Word(16, 1)) },
        { BadEntry, List(0, Word(16, 1) | 2) },
        { BadEntry, List(0, Word(513, 1) | (1UL << 56)) },
        { BadEntry, List(0, Word(512, 1) | (1UL << 56) | 513) },
    };

    [Theory]
    [MemberData(nameof(BadLists))]
    public async Task AListThatCannotBe_IsAnsweredWithItsCode_WithoutAnExit(ulong code, byte[] list)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(GhcbGuest.RegisterGhcb(SnpGuest.Ghcb), Psc(list));
        Assert.Equal((0UL, code), (results[1].Ghcb.ExitInfo1, results[1].Ghcb.ExitInfo2));
        Assert.Equal(code == BadHeader ? "sev.psc.header" : "sev.psc.entry", results[1].Causes[^1].Rule);
    }

    [Fact]
    public async Task AListOutsideTheGhcb_ComesBackWithWhatIsDone()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        byte[] list = List(0, Word(16, 2));
        var call = new GuestGhcbCall { GhcbGpa = SnpGuest.Ghcb, ExitCode = 0x8000_0010, ExitInfo2 = (ulong)list.Length, Scratch = SnpGuest.Certificates };
        IReadOnlyList<GuestStepResult> results = await guest.RunWithFollowingVmm(
            (_, _, _) => { },
            GhcbGuest.RegisterGhcb(SnpGuest.Ghcb), Guest.Write(SnpGuest.Certificates, list, GuestAccess.Shared), GhcbGuest.Call(call),
            Guest.Read(SnpGuest.Certificates, (ulong)list.Length, GuestAccess.Shared));
        byte[] after = results[3].Data.ToByteArray();
        Assert.Equal((1, 1), (BinaryPrimitives.ReadUInt16LittleEndian(after), CurPage(after, 0)));
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(SnpGuest.Ghcb + 0x7f8)]
    [InlineData(SnpGuest.Ghcb + 0xff0)]
    [InlineData(0xffff_ffff_ffff_ff00UL)]
    public async Task AScratchAreaThatCannotBe_IsMalformed(ulong scratch)
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        var call = new GuestGhcbCall { GhcbGpa = SnpGuest.Ghcb, ExitCode = 0x8000_0010, ExitInfo2 = 0x1000, Scratch = scratch };
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(GhcbGuest.RegisterGhcb(SnpGuest.Ghcb), GhcbGuest.Call(call));
        Assert.Equal((2UL, 3UL), (results[1].Ghcb.ExitInfo1, results[1].Ghcb.ExitInfo2));
        Assert.Equal("sev.vmgexit.scratch", results[1].Causes[^1].Rule);
    }

    [Fact]
    public async Task WithoutTheHypercallExit_TheGuestGetsAnErrorAtOnce()
    {
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon, hypercallExits: false);
        IReadOnlyList<GuestStepResult> results = await guest.RunToHalt(GhcbGuest.RegisterGhcb(SnpGuest.Ghcb), GhcbGuest.PageStates(SnpGuest.Ghcb, 16 * SnpGuest.Page, 1, isPrivate: true));
        Assert.Equal((0UL, Generic), (results[1].Ghcb.ExitInfo1, results[1].Ghcb.ExitInfo2));
    }

    // Implicit conversion: the guest does not ask, it just uses the page the other way, and the VMM sees a memory fault.
    [Fact]
    public async Task AGuestThatDoesNotAsk_IsAMemoryFault_AndCanGoOnWhenTheVmmConverts()
    {
        const ulong gpa = 16 * SnpGuest.Page;
        await using SnpGuest guest = await SnpGuest.LaunchAsync(daemon);
        RunResponse run = await guest.Run(Guest.Write(gpa, "hello"u8, GuestAccess.Shared), Guest.Halt());
        Assert.Equal(("EFAULT", KernelNumbers.KVM_EXIT_MEMORY_FAULT, 0UL, gpa), (run.Outcome.ErrnoName, run.Run.ExitReason, run.Run.MemoryFault.Flags, run.Run.MemoryFault.Gpa));
        await guest.Convert(gpa, 1, isPrivate: false);
        Assert.Equal(KernelNumbers.KVM_EXIT_HLT, (await guest.Continue()).Run.ExitReason);
        Assert.Equal("hello"u8.ToArray(), (await guest.Process.ReadAsync(guest.Backing + gpa, 5)).ToArray());
    }

    private static GuestStep Psc(byte[] list)
    {
        var call = new GuestGhcbCall { GhcbGpa = SnpGuest.Ghcb, ExitCode = 0x8000_0010, SharedBuffer = Google.Protobuf.ByteString.CopyFrom(list) };
        return GhcbGuest.Call(call);
    }

    private static PageStateEntry Entry(ulong gfn, uint operation, bool large = false, uint done = 0) => new() { Gfn = gfn, Operation = operation, Large = large, CurPage = done };

    private static ulong Word(ulong gfn, ulong operation) => (gfn << 12) | (operation << 52);

    private static byte[] List(ushort end, params ulong[] entries)
    {
        byte[] list = new byte[8 + (entries.Length * 8)];
        BinaryPrimitives.WriteUInt16LittleEndian(list.AsSpan(2), end);
        for (int i = 0; i < entries.Length; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(list.AsSpan(8 + (i * 8)), entries[i]);
        return list;
    }

    private static int CurPage(byte[] list, int entry) => (int)(BinaryPrimitives.ReadUInt64LittleEndian(list.AsSpan(8 + (entry * 8))) & 0xfff);
}
