using SimMachine.Intel;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using TdcallRegisters = VmmService.V1.TdcallRegisters;
using TdLifecycle = VmmService.V1.TdLifecycle;
using TdxModule = VmmService.Client.TdxModule;
using VmType = VmmService.V1.VmType;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>TdxModuleService: driving the TDX module by hand, what it refuses, and that nothing of others can be touched through it.</summary>
public sealed class TdxModuleServiceTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Base = 0x10_0000;
    private const ulong PageBytes = 4096;
    private const ulong CpuidValues = 0x9410_0003_0000_0000;

    /// <summary>A call on a TD that is built, with one operand wrong: leaf, operands with {tdr}, {vcpu} and {page} in them, status and rule.</summary>
    public static TheoryData<SeamcallLeaf, string, string, string, ulong, string> Refusals => new()
    {
        { SeamcallLeaf.TDH_MNG_CREATE, "{page}", "32", "0", 0xC000_0100_0000_0002, "tdx.mng-create.hkid" },
        { SeamcallLeaf.TDH_MNG_CREATE, "{page}", "33", "0", 0xC000_0820_0000_0000, "tdx.mng-create.hkid-in-use" },
        { SeamcallLeaf.TDH_MNG_CREATE, "{tdr}", "34", "0", 0xC000_0300_0000_0001, "tdx.page.not-free" },
        { SeamcallLeaf.TDH_MNG_CREATE, "1", "34", "0", 0xC000_0100_0000_0001, "tdx.seamcall.alignment" },
        { SeamcallLeaf.TDH_MNG_CREATE, "0x7ffffffffffff000", "34", "0", 0xC000_0101_0000_0001, "tdx.seamcall.range" },
        { SeamcallLeaf.TDH_MNG_KEY_CONFIG, "{tdr}", "0", "0", 0xC000_0607_0000_0000, "tdx.td.lifecycle" },
        { SeamcallLeaf.TDH_MNG_ADDCX, "{page}", "{tdr}", "0", 0xC000_0608_0000_0000, "tdx.td.op-state" },
        { SeamcallLeaf.TDH_MNG_ADDCX, "{page}", "{page}", "0", 0xC000_0300_0000_0002, "tdx.tdr.type" },
        { SeamcallLeaf.TDH_MNG_INIT, "{tdr}", "{page}", "0", 0xC000_0608_0000_0000, "tdx.td.op-state" },
        { SeamcallLeaf.TDH_MEM_SEPT_ADD, "0", "{tdr}", "{page}", 0xC000_0100_0000_0001, "tdx.mem.mapping" },
        { SeamcallLeaf.TDH_MEM_SEPT_ADD, "0x100003", "{tdr}", "{page}", 0xC000_0100_0000_0001, "tdx.mem.mapping" },
        { SeamcallLeaf.TDH_MEM_SEPT_ADD, "5", "{tdr}", "{page}", 0xC000_0100_0000_0001, "tdx.mem.mapping" },
        { SeamcallLeaf.TDH_MEM_SEPT_ADD, "1", "{tdr}", "{page}", 0xC000_0B00_0000_0001, "tdx.sept.walk" },
        { SeamcallLeaf.TDH_MEM_SEPT_ADD, "3", "{tdr}", "{tdr}", 0xC000_0300_0000_0008, "tdx.page.not-free" },
        { SeamcallLeaf.TDH_MEM_PAGE_ADD, "8", "{tdr}", "{page}", 0xC000_0100_0000_0001, "tdx.mem.mapping" },
        { SeamcallLeaf.TDH_MEM_PAGE_ADD, "0x8000000000000000", "{tdr}", "{page}", 0xC000_0100_0000_0001, "tdx.mem.mapping" },
        { SeamcallLeaf.TDH_MEM_PAGE_REMOVE, "3", "{tdr}", "0", 0xC000_0100_0000_0001, "tdx.mem.mapping" },
        { SeamcallLeaf.TDH_MEM_TRACK, "{page}", "0", "0", 0xC000_0300_0000_0001, "tdx.tdr.type" },
        { SeamcallLeaf.TDH_VP_ADDCX, "{page}", "{vcpu}", "0", 0xC000_0700_0000_0000, "tdx.vcpu.state" },
        { SeamcallLeaf.TDH_VP_INIT, "{vcpu}", "0", "0", 0xC000_0700_0000_0000, "tdx.vcpu.state" },
        { SeamcallLeaf.TDH_VP_INIT, "{page}", "0", "0", 0xC000_0300_0000_0001, "tdx.tdvpr.type" },
        { SeamcallLeaf.TDH_VP_ENTER, "{vcpu}", "0", "0", 0xC000_0608_0000_0000, "tdx.td.op-state" },
        { SeamcallLeaf.TDH_MNG_VPFLUSHDONE, "{tdr}", "0", "0", 0x8000_0824_0000_0000, "tdx.vpflushdone.associated" },
        { SeamcallLeaf.TDH_MNG_KEY_FREEID, "{tdr}", "0", "0", 0xC000_0607_0000_0000, "tdx.td.lifecycle" },
        { SeamcallLeaf.TDH_PHYMEM_CACHE_WB, "0", "0", "0", 0x0000_0821_0000_0000, "tdx.cache-wb.nothing" },
        { SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM, "{page}", "0", "0", 0xC000_0300_0000_0001, "tdx.reclaim.type" },
        { SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM, "{tdr}", "0", "0", 0xC000_0607_0000_0000, "tdx.td.lifecycle" },
        { SeamcallLeaf.TDH_PHYMEM_PAGE_WBINVD, "{tdr}", "0", "0", 0xC000_0300_0000_0001, "tdx.page.not-free" },
        { SeamcallLeaf.TDH_MNG_RD, "{tdr}", "1", "0", 0xC000_0C02_0000_0000, "tdx.metadata.not-readable" },
        { SeamcallLeaf.TDH_VP_RD, "{vcpu}", "1", "0", 0xC000_0C02_0000_0000, "tdx.metadata.not-readable" },
        { SeamcallLeaf.TDH_VP_WR, "{vcpu}", "1", "0", 0xC000_0C01_0000_0000, "tdx.metadata.not-writable" },
        { (SeamcallLeaf)5, "0", "0", "0", 0xC000_0100_0000_0000, "tdx.seamcall.leaf" },
        { (SeamcallLeaf)0x1_0002, "0", "{tdr}", "{page}", 0xC000_0100_0000_0000, "tdx.seamcall.leaf" },
    };

    [Theory]
    [MemberData(nameof(Refusals))]
    public async Task Seamcall_ThatCannotBe_AnswersItsStatusAndTheReason(SeamcallLeaf leaf, string rcx, string rdx, string r8, ulong status, string rule)
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        ulong page = await td.Page();

        SeamcallResponse answer = await td.Try(leaf, Operand(rcx), Operand(rdx), Operand(r8));

        Assert.Equal($"0x{status:x}", $"0x{answer.Registers.Rax:x}");
        Assert.Equal("EIO", answer.Outcome.ErrnoName);
        Assert.Equal("tdx.module.status", answer.Outcome.Causes[^1].Rule);
        Assert.Equal(rule, answer.Outcome.Causes[0].Rule);
        Assert.StartsWith("TDX_", answer.StatusName, StringComparison.Ordinal);

        ulong Operand(string text) => text switch { "{tdr}" => td.Tdr, "{vcpu}" => td.Vcpus[0], "{page}" => page, _ => TdxScenarios.Number(text) };
    }

    [Fact]
    public async Task EveryLeaf_IsListedAndNamedByTheManual()
    {
        ListSeamcallLeavesResponse reply = await daemon.Stubs.TdxModule.ListSeamcallLeavesAsync(new ListSeamcallLeavesRequest());

        Assert.Equal(Enum.GetValues<SeamcallLeaf>().Select(leaf => (ulong)leaf), reply.Leaves.Select(leaf => leaf.Leaf));
        Assert.All(reply.Leaves, leaf => Assert.StartsWith("TDH.", leaf.Name, StringComparison.Ordinal));
        Assert.Equal("TDH.MEM.PAGE.ADD: RCX RDX R8 R9", Row(reply.Leaves.Single(leaf => leaf.Leaf == 2)));

        static string Row(SeamcallLeafInfo leaf) => $"{leaf.Name}: {string.Join(' ', leaf.Operands.Select(operand => operand.Register))}";
    }

    [Fact]
    public async Task ATd_LivesAndIsTornDownByHand()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        ulong memory = await td.Add(Base, new byte[PageBytes]);
        await td.Run();
        Assert.Equal((TdLifecycle.KeysConfigured, V1.TdState.Runnable), ((await td.Describe()).Lifecycle, (await td.Describe()).OpState));
        ulong vcpu = td.Vcpus[0];

        await td.Module.KickAsync(vcpu);
        await td.Expect(SeamcallLeaf.TDH_VP_FLUSH, vcpu);
        await td.Expect(SeamcallLeaf.TDH_MNG_VPFLUSHDONE, td.Tdr);
        Assert.Equal(0xC000_0811_0000_00BA, (await td.Try(SeamcallLeaf.TDH_MNG_KEY_FREEID, td.Tdr)).Registers.Rax);
        await td.Expect(SeamcallLeaf.TDH_PHYMEM_CACHE_WB);
        await td.Expect(SeamcallLeaf.TDH_MNG_KEY_FREEID, td.Tdr);
        Assert.Equal(0xC000_0400_0000_0000, (await td.Try(SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM, td.Tdr)).Registers.Rax);
        TdcallRegisters reclaimed = await td.Expect(SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM, memory);

        Assert.Equal(((ulong)TdxPageType.REG, td.Tdr, 0ul), (reclaimed.Rcx, reclaimed.Rdx, reclaimed.R8));
        await td.Module.FreeAsync([memory]);
        Assert.Equal(TdLifecycle.Teardown, (await td.Describe()).Lifecycle);
    }

    [Fact]
    public async Task Closing_TearsDownWhatWasBuiltAndFreesEveryPage()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        ulong before = (await td.Host.GetStateAsync()).AllocatedPages;
        await td.Add(Base, new byte[PageBytes]);
        await td.Run();

        await td.Module.CloseAsync();

        Host after = await td.Host.GetStateAsync();
        Assert.True(after.AllocatedPages < before, $"{after.AllocatedPages} pages are still in use");
        Assert.Equal((0ul, 0ul), (after.LeakedPages, after.Findings));
        if (daemon.App is { } app)
        {
            Microsoft.Extensions.DependencyInjection.ServiceProviderServiceExtensions.GetRequiredService<Server.Sessions.HostRegistry>(app.Services).Get(td.Host.Id).Run(sim =>
            {
                sim.CheckInvariants();
                return true;
            });
        }
    }

    [Fact]
    public async Task PagesOfOthers_AreNotTaken()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        // Another descriptor's pages are another's too.
        await using TdxModule other = await td.Process.OpenTdxModuleAsync();
        ulong foreign = await other.AllocateAsync();

        foreach (KvmCall<SeamcallResponse, TdcallRegisters> call in (KvmCall<SeamcallResponse, TdcallRegisters>[])
            [td.Module.SeamcallAsync((ulong)SeamcallLeaf.TDH_MNG_CREATE, foreign, 40), td.Module.SeamcallAsync((ulong)SeamcallLeaf.TDH_MEM_PAGE_ADD, Base, td.Tdr, await td.Page(), foreign), other.SeamcallAsync((ulong)SeamcallLeaf.TDH_MR_FINALIZE, td.Tdr)])
        {
            Outcome outcome = (await call.Reply).Outcome;
            Assert.Equal(("EPERM", "tdx.module.foreign-page"), (outcome.ErrnoName, outcome.Causes[^1].Rule));
        }
        Assert.Equal("EPERM", (await td.Module.ReadAsync(foreign, 1).Reply).Outcome.ErrnoName);
        Assert.Equal("EPERM", (await td.Module.WriteAsync(foreign, new byte[1]).Reply).Outcome.ErrnoName);
        Assert.Equal("EPERM", (await td.Module.FreeAsync([foreign]).Reply).Outcome.ErrnoName);
        Outcome busy = (await td.Module.FreeAsync([td.Tdr]).Reply).Outcome;
        Assert.Equal(("EBUSY", "tdx.module.page-in-use"), (busy.ErrnoName, busy.Causes[^1].Rule));
        // Looking is free.
        Assert.Equal((ulong)TdxPageType.NDA, (await td.Expect(SeamcallLeaf.TDH_PHYMEM_PAGE_RDMD, foreign)).Rcx);
    }

    [Fact]
    public async Task KvmAndHand_DoNotTakeTheSameKeyId()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        await using Vm vm = await (await td.Process.OpenKvmAsync()).CreateVmAsync(VmType.Tdx);
        await vm.EnableSplitIrqchipAsync();
        await vm.TdxLaunch().InitVmAsync(new KvmTdxInitVm { Xfam = 3, Cpuid = { new KvmCpuidEntry2 { Function = 0x8000_0008, Eax = 48 << 16 } } });
        Assert.Equal((33u, 34u), ((await td.Describe()).Hkid, (await vm.TdxLaunch().DescribeAsync()).Hkid));

        await td.Module.CloseAsync();
        await using TdxModule again = await td.Process.OpenTdxModuleAsync();
        await again.SeamcallAsync((ulong)SeamcallLeaf.TDH_MNG_CREATE, await again.AllocateAsync(), 33);
        Assert.Equal(0xC000_0820_0000_0000, (await again.SeamcallAsync((ulong)SeamcallLeaf.TDH_MNG_CREATE, await again.AllocateAsync(), 34).Reply).Registers.Rax);
    }

    [Fact]
    public async Task PrivateMemory_IsCiphertextForTheHostAndPlainForTheTd()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        byte[] content = [.. Enumerable.Range(0, (int)PageBytes).Select(i => (byte)(i * 7))];
        ulong page = await td.Add(Base, content);
        await td.Run();

        Assert.Equal(content, (await td.Module.LoadAsync(td.Vcpus[0], Base, (uint)PageBytes)).Data.ToByteArray());
        Assert.NotEqual(content, (await td.Module.ReadAsync(page, (uint)PageBytes)).ToArray());
        await td.Module.StoreAsync(td.Vcpus[0], Base + 5, new byte[] { 0xee });
        Assert.Equal(0xee, (await td.Module.LoadAsync(td.Vcpus[0], Base + 5, 1)).Data[0]);
        // The host's store is a finding with blame.
        Assert.Equal("tdx-private-page-poisoned", (await td.Module.WriteAsync(page, new byte[1]).Reply).Outcome.Findings.Single().Kind);
    }

    [Fact]
    public async Task AVcpu_LeavesWithAnExitAndWithAKick()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        await td.AddTables(Base);
        await td.Run();
        ulong vcpu = td.Vcpus[0];

        Assert.Equal(TdVcpuOutcome.EptViolation, (await td.Module.LoadAsync(vcpu, Base, 1)).Came);
        Assert.Equal("tdx.module.outside", (await td.Module.LoadAsync(vcpu, Base, 1).Reply).Outcome.Causes[^1].Rule);
        await td.Expect(SeamcallLeaf.TDH_MEM_PAGE_AUG, Base, td.Tdr, await td.Page());
        await td.Expect(SeamcallLeaf.TDH_VP_ENTER, vcpu);
        Assert.Equal(0x8000_0200_0000_0001, (await td.Try(SeamcallLeaf.TDH_VP_ENTER, vcpu)).Registers.Rax);

        // Pending memory is a #VE for a TD without SEPT_VE_DISABLE, until it accepts.
        Assert.Equal(TdVcpuOutcome.VirtualizationException, (await td.Module.LoadAsync(vcpu, Base, 1)).Came);
        Assert.Equal((48ul, Base), (await td.Tdcall(TdcallLeaf.TDG_VP_VEINFO_GET) is var ve ? (ve.Rcx, ve.R9) : default));
        await td.Tdcall(TdcallLeaf.TDG_MEM_PAGE_ACCEPT, Base);
        Assert.Equal(TdVcpuOutcome.Completed, (await td.Module.LoadAsync(vcpu, Base, 1)).Came);

        TdcallResponse vmcall = await td.Module.TdcallAsync(vcpu, new TdcallRegisters { Rax = (ulong)TdcallLeaf.TDG_VP_VMCALL, R11 = 10, R12 = 1 });
        Assert.Equal((TdVcpuOutcome.Vmcall, 10ul, 1ul), (vmcall.Came, vmcall.Registers.R11, vmcall.Registers.R12));
        await td.Expect(SeamcallLeaf.TDH_VP_ENTER, vcpu);
        await td.Module.KickAsync(vcpu);
        await td.Expect(SeamcallLeaf.TDH_VP_FLUSH, vcpu);
    }

    [Fact]
    public async Task Tracking_WaitsForThoseWhoEnteredBefore()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        await td.Add(Base, new byte[PageBytes]);
        await td.Run();
        await td.Expect(SeamcallLeaf.TDH_MEM_RANGE_BLOCK, Base, td.Tdr);
        await td.Expect(SeamcallLeaf.TDH_MEM_TRACK, td.Tdr);

        Assert.Equal(0xC000_0B08_0000_0092, (await td.Try(SeamcallLeaf.TDH_MEM_RANGE_UNBLOCK, Base, td.Tdr)).Registers.Rax);
        Assert.Equal(0xC000_0B08_0000_0001, (await td.Try(SeamcallLeaf.TDH_MEM_PAGE_REMOVE, Base, td.Tdr)).Registers.Rax);
        Assert.Equal(0x8000_0201_0000_0000, (await td.Try(SeamcallLeaf.TDH_MEM_TRACK, td.Tdr)).Registers.Rax);
        await td.Module.KickAsync(td.Vcpus[0]);
        await td.Expect(SeamcallLeaf.TDH_MEM_RANGE_UNBLOCK, Base, td.Tdr);
        await td.Expect(SeamcallLeaf.TDH_MEM_RANGE_BLOCK, Base, td.Tdr);
        await td.Expect(SeamcallLeaf.TDH_MEM_TRACK, td.Tdr);
        await td.Expect(SeamcallLeaf.TDH_MEM_PAGE_REMOVE, Base, td.Tdr);
        Assert.Equal("FREE", await td.StateOf(Base));
    }

    [Fact]
    public async Task AHugePage_IsAugmentedSplitMergedAndReclaimedWhole()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        const ulong huge = 2 << 20;
        for (uint level = 3; level >= 2; level--)
        {
            await td.Expect(SeamcallLeaf.TDH_MEM_SEPT_ADD, level, td.Tdr, await td.Page());
        }
        await td.Expect(SeamcallLeaf.TDH_MR_FINALIZE, td.Tdr);
        ulong run = (await td.Module.AllocateAsync(1, huge: true))[0];
        // The first page of a run that is not all there, or not aligned.
        Assert.Equal(0xC000_0100_0000_0008, (await td.Try(SeamcallLeaf.TDH_MEM_PAGE_AUG, huge | 1, td.Tdr, run + PageBytes)).Registers.Rax);
        await td.Expect(SeamcallLeaf.TDH_MEM_PAGE_AUG, huge | 1, td.Tdr, run);
        Assert.Equal(0xC000_0B06_0000_0001, (await td.Try(SeamcallLeaf.TDH_MEM_PAGE_DEMOTE, huge | 1, td.Tdr, await td.Page())).Registers.Rax);
        await Block();
        ulong table = await td.Page();
        await td.Expect(SeamcallLeaf.TDH_MEM_PAGE_DEMOTE, huge | 1, td.Tdr, table);
        Assert.Equal("PENDING", await td.StateOf(huge + (511 * PageBytes)));
        await Block();
        Assert.Equal(table, (await td.Expect(SeamcallLeaf.TDH_MEM_PAGE_PROMOTE, huge | 1, td.Tdr)).Rcx);

        await td.Expect(SeamcallLeaf.TDH_VP_FLUSH, td.Vcpus[0]);
        await td.Expect(SeamcallLeaf.TDH_MNG_VPFLUSHDONE, td.Tdr);
        await td.Expect(SeamcallLeaf.TDH_PHYMEM_CACHE_WB);
        await td.Expect(SeamcallLeaf.TDH_MNG_KEY_FREEID, td.Tdr);
        SeamcallResponse inside = await td.Try(SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM, run + PageBytes);
        Assert.Equal((0xC000_0100_0000_0001, "tdx.reclaim.size"), (inside.Registers.Rax, inside.Outcome.Causes[0].Rule));
        Assert.Equal(1ul, (await td.Expect(SeamcallLeaf.TDH_PHYMEM_PAGE_RECLAIM, run)).R8);
        Assert.Equal((ulong)TdxPageType.NDA, (await td.Expect(SeamcallLeaf.TDH_PHYMEM_PAGE_RDMD, run + (511 * PageBytes))).Rcx);

        async Task Block()
        {
            await td.Expect(SeamcallLeaf.TDH_MEM_RANGE_BLOCK, huge | 1, td.Tdr);
            await td.Expect(SeamcallLeaf.TDH_MEM_TRACK, td.Tdr);
        }
    }

    [Fact]
    public async Task Metadata_IsReadAndWrittenByFieldId()
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        await td.Run();

        // Leaf 0x21 has sub-leaf 0: "IntelTDX    ".
        const ulong field = CpuidValues | (0x21 << 9);
        Assert.Equal(0x65746E49ul, (await td.Expect(SeamcallLeaf.TDH_MNG_RD, td.Tdr, field)).R8 >> 32);
        Assert.Equal(0x5844546C_20202020ul, (await td.Expect(SeamcallLeaf.TDH_MNG_RD, td.Tdr, field | 1)).R8);
        const ulong pendNmi = 0x2000_0000_0000_000B;
        Assert.Equal(0ul, (await td.Expect(SeamcallLeaf.TDH_VP_WR, td.Vcpus[0], pendNmi, 1, 1)).R8);
        Assert.Equal(1ul, (await td.Expect(SeamcallLeaf.TDH_VP_RD, td.Vcpus[0], pendNmi)).R8);
        // The TD sees CONFIG_FLAGS: NO_RBP_MOD.
        Assert.Equal(4ul, (await td.Tdcall(TdcallLeaf.TDG_VM_RD, 0, 0x1110_0003_0000_0016)).R8);
    }

    [Fact]
    public async Task TdParams_ThatTheModuleDoesNotTake_AreNamedByTheStatus()
    {
        await using HandmadeTd td = await HandmadeTd.Open(daemon);
        await td.Create();
        foreach ((int offset, byte value, uint operand) in ((int, byte, uint)[])
            [(0, 2, 64), (8, 0, 65), (9, 8, 65), (16, 0, 68), (18, 4, 71), (20, 1, 2), (32, 8, 66), (24, 0x1f, 67), (40, 3, 70), (42, 1, 2), (232, 1, 2), (256, 1, 69), (1023, 1, 2)])
        {
            byte[] bytes = HandmadeTd.Params();
            bytes[offset] = value;
            SeamcallResponse answer = await td.Try(SeamcallLeaf.TDH_MNG_INIT, td.Tdr, await td.Page(bytes));
            Assert.Equal($"0x{0xC000_0100_0000_0000 | operand:x}", $"0x{answer.Registers.Rax:x}");
            if (operand == 69)
            {
                Assert.Equal(0xffff_ffff_0000_0001, answer.Registers.Rcx);
            }
        }
        Assert.Equal(0xC000_0100_0000_0002, (await td.Try(SeamcallLeaf.TDH_MNG_INIT, td.Tdr, await td.Page() + 8)).Registers.Rax);
        SeamcallResponse nowhere = await td.Try(SeamcallLeaf.TDH_MNG_INIT, td.Tdr, 0x7fff_0000);
        Assert.Equal((0xC000_0100_0000_0002, "tdx.mng-init.address"), (nowhere.Registers.Rax, nowhere.Outcome.Causes[0].Rule));
    }

    [Fact]
    public async Task WhatCannotBeAsked_IsRefused()
    {
        await using HandmadeTd td = await HandmadeTd.Open(daemon);
        await using RemoteHost amd = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await amd.CreateProcessAsync();

        AssertRefused((await process.OpenTdxModuleAsync().Reply).Outcome, "ENODEV", "tdx.module.none");
        AssertRefused((await Fill(td.Module)).Outcome, "ENOMEM", "tdx.module.pages");
        await Assert.ThrowsAsync<VmmServiceException>(() => td.Module.SeamcallAsync(new TdcallRegisters(), package: 1).Reply);
        await Assert.ThrowsAsync<VmmServiceException>(() => td.Module.AllocateAsync(0).Reply);
        await Assert.ThrowsAsync<VmmServiceException>(() => td.Module.LoadAsync(0, 0xfff, 2).Reply);
        await Assert.ThrowsAsync<VmmServiceException>(() => td.Module.DescribeAsync(0x1000));
        AssertRefused((await td.Module.TdcallAsync(0x1000, new TdcallRegisters()).Reply).Outcome, "EINVAL", "tdx.module.vcpu");

        static void AssertRefused(Outcome outcome, string errno, string rule) => Assert.Equal((errno, rule), (outcome.ErrnoName, outcome.Causes[^1].Rule));

        static async Task<AllocateTdxPagesResponse> Fill(TdxModule module)
        {
            for (int i = 0; i < 8; i++)
            {
                await module.AllocateAsync(4096);
            }
            return await module.AllocateAsync(1).Reply;
        }
    }
}
