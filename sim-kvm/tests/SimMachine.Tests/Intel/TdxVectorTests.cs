using System.Security.Cryptography;
using System.Text.Json;
using SimMachine.Addressing;
using SimMachine.Intel;
using Xunit;

namespace SimMachine.Tests.Intel;

/// <summary>The module against the vectors: single calls on a given entry, measurements, run-time registers, reports.</summary>
public sealed class TdxVectorTests
{
    private const ulong Base = 0x10_0000;
    private static readonly byte[] s_page = new byte[PageSize.Bytes];

    public static TheoryData<string> Seamcalls => [.. TdxVectors.IdsOf("seamcalls")];

    public static TheoryData<string> Mrtds => [.. TdxVectors.IdsOf("mrtd")];

    public static TheoryData<string> Rtmrs => [.. TdxVectors.IdsOf("rtmr")];

    [Theory]
    [MemberData(nameof(Seamcalls))]
    public void Call_OnAGivenEntry_AnswersTheStatusAndLeavesTheState(string id)
    {
        JsonElement vector = TdxVectors.Get("seamcalls", id);
        bool tracked = !vector.TryGetProperty("tracked_since_block", out JsonElement since) || since.GetBoolean();
        using TdBench bench = Prepared(vector, tracked);
        ulong gpa = vector.Hex("gpa");

        (string status, ulong? rdx) = Execute(bench, vector.GetProperty("call").GetString()!, gpa);

        Assert.Equal(vector.GetProperty("status").GetString(), status);
        if (vector.TryGetProperty("rdx", out JsonElement expected))
        {
            Assert.Equal(TdxVectors.Hex(expected.GetString()!), rdx);
        }
        string after = vector.GetProperty("sept_after").GetString()!;
        Assert.Equal(after == "NO_TABLE" ? "FREE" : after, bench.StateOf(Base).ToString());
        Assert.Equal(after == "NO_TABLE", bench.Module.Look(bench.Tdr, Base).Level > 0);
    }

    [Theory]
    [MemberData(nameof(Mrtds))]
    public void Build_BySeamcalls_GivesTheMrtd(string id)
    {
        JsonElement vector = TdxVectors.Get("mrtd", id);
        using TdBench bench = new TdBench().Initialize(TdBench.Params(gpaw52: true));
        var contents = new Dictionary<ulong, byte[]>();
        foreach (JsonElement op in vector.GetProperty("ops").EnumerateArray())
        {
            string name = op.GetProperty("op").GetString()!;
            if (name == "mr_extend")
            {
                ulong chunk = op.Hex("gpa");
                ulong page = chunk & ~PageSize.OffsetMask;
                contents.TryAdd(page, new byte[PageSize.Bytes]);
                TdxVectors.Content(op.GetProperty("content"), 256).CopyTo(contents[page], (int)(chunk - page));
            }
        }
        foreach (JsonElement op in vector.GetProperty("ops").EnumerateArray())
        {
            Execute(bench, op, contents);
        }
        bench.Run();

        Assert.Equal(vector.GetProperty("mrtd").GetString(), Convert.ToHexStringLower(bench.Module.Describe(bench.Tdr)!.Mrtd));
    }

    [Theory]
    [MemberData(nameof(Rtmrs))]
    public void RtmrExtend_OfTheDigests_GivesTheRegisters(string id)
    {
        JsonElement vector = TdxVectors.Get("rtmr", id);
        using TdBench bench = new TdBench().Initialize();
        bench.AddTables(Base);
        Pfn page = bench.Add(Base, s_page);
        bench.Run();
        foreach (JsonElement extend in vector.GetProperty("extends").EnumerateArray())
        {
            bench.Machine.GuestWrite(bench.Module.KeyOf(bench.Tdr), page, 64, extend.Bytes("digest"));
            var registers = new TdcallRegisters { Rcx = Base + 64, Rdx = (ulong)extend.GetProperty("rtmr").GetInt32() };
            Assert.Equal(TdGuestOutcome.Completed, bench.Tdcall(TdcallLeaf.TDG_MR_RTMR_EXTEND, ref registers));
            Assert.Equal(0UL, registers.Rax);
        }

        Assert.Equal(
            vector.GetProperty("rtmr").EnumerateArray().Select(rtmr => rtmr.GetString()), bench.Module.Describe(bench.Tdr)!.Rtmr.Select(Convert.ToHexStringLower));
    }

    [Fact]
    public void Report_OfTheSyntheticTd_IsTheVectorsByteForByte()
    {
        JsonElement vector = TdxVectors.Get("tdreport", "tdreport-synthetic-1");
        JsonElement inputs = vector.GetProperty("inputs");
        var config = new TdxModuleConfig
        {
            CpuSvn = inputs.Bytes("cpusvn"),
            TeeTcbSvn = inputs.Bytes("tee_tcb_svn"),
            Mrseam = inputs.Bytes("mrseam"),
            MrsignerSeam = inputs.Bytes("mrsignerseam"),
            SeamAttributes = inputs.Hex("seam_attributes"),
            ReportMacKey = vector.Bytes("simulated_mac_key"),
        };
        using var machine = new Machine(new MachineConfig { Platform = Platform.IntelTdx, Tdx = config }, seed: 0);
        var td = new Td
        {
            Sept = new Sept(machine, 4),
            Tdr = new Pfn(1),
            Hkid = 1,
            Attributes = inputs.Hex("attributes"),
            Xfam = inputs.Hex("xfam"),
            FinalMrtd = inputs.Bytes("mrtd"),
            Mrconfigid = inputs.Bytes("mrconfigid"),
            Mrowner = inputs.Bytes("mrowner"),
            Mrownerconfig = inputs.Bytes("mrownerconfig"),
        };
        string[] rtmrs = [.. inputs.GetProperty("rtmr").EnumerateArray().Select(rtmr => rtmr.GetString()!)];
        for (int i = 0; i < rtmrs.Length; i++)
        {
            Convert.FromHexString(rtmrs[i]).CopyTo(td.Rtmr[i], 0);
        }

        byte[] report = machine.TdxIdentity.Report(td.Info(), inputs.Bytes("reportdata")).ToArray();

        Assert.Equal(vector.GetProperty("tdreport_sha256").GetString(), Convert.ToHexStringLower(SHA256.HashData(report)));
    }

    // The entry in the state that the vector asks for, the TD in its.
    private static TdBench Prepared(JsonElement vector, bool tracked)
    {
        string sept = vector.GetProperty("sept").GetString()!;
        bool runnable = vector.GetProperty("td_state").GetString() == "RUNNABLE";
        int vcpus = vector.TryGetProperty("vcpus", out JsonElement count) ? count.GetInt32() : 1;
        TdBench bench = new TdBench().Initialize(vcpus: vcpus);
        if (sept != "NO_TABLE")
        {
            bench.AddTables(Base);
        }
        if (sept is "MAPPED" or "BLOCKED")
        {
            bench.Add(Base, s_page);
        }
        if (runnable)
        {
            bench.Run();
        }
        if (sept == "PENDING")
        {
            bench.Aug(Base);
        }
        if (sept == "BLOCKED")
        {
            TdBench.Expect(bench.Module.MemRangeBlock(bench.Thread, bench.Tdr, Base, out _));
            if (tracked)
            {
                TdBench.Expect(bench.Module.MemTrack(bench.Thread, bench.Tdr));
            }
        }
        return bench;
    }

    private static (string Status, ulong? Rdx) Execute(TdBench bench, string call, ulong gpa)
    {
        TdxModule module = bench.Module;
        SeptInfo info = default;
        TdxStatus status;
        switch (call)
        {
            case "TDH.MEM.PAGE.ADD":
                status = module.MemPageAdd(bench.Thread, bench.Tdr, gpa, bench.Page(), bench.Page(s_page), out info);
                break;
            case "TDH.MR.EXTEND":
                status = module.MrExtend(bench.Thread, bench.Tdr, gpa, out info);
                break;
            case "TDH.MEM.PAGE.AUG":
                status = module.MemPageAug(bench.Thread, bench.Tdr, gpa, bench.Page(), out info);
                break;
            case "TDH.MEM.RANGE.BLOCK":
                status = module.MemRangeBlock(bench.Thread, bench.Tdr, gpa, out info);
                break;
            case "TDH.MEM.PAGE.REMOVE":
                status = module.MemPageRemove(bench.Thread, bench.Tdr, gpa, out info);
                break;
            case "TDH.MR.FINALIZE":
                status = module.MrFinalize(bench.Thread, bench.Tdr);
                break;
            case "TDG.MEM.PAGE.ACCEPT":
                var registers = new TdcallRegisters { Rcx = gpa };
                return bench.Tdcall(TdcallLeaf.TDG_MEM_PAGE_ACCEPT, ref registers) == TdGuestOutcome.EptViolation
                    ? ("TD_EXIT_EPT_VIOLATION", null)
                    : ($"0x{registers.Rax:x}", null);
            default:
                throw new InvalidOperationException($"no call {call}");
        }
        return ($"0x{(ulong)status:x}", info.Rdx);
    }

    private static void Execute(TdBench bench, JsonElement op, Dictionary<ulong, byte[]> contents)
    {
        ulong gpa = op.Hex("gpa");
        switch (op.GetProperty("op").GetString())
        {
            case "page_add":
                bench.AddTables(gpa, top: 4);
                bench.Add(gpa, contents.GetValueOrDefault(gpa, s_page));
                break;
            case "mr_extend":
                TdBench.Expect(bench.Module.MrExtend(bench.Thread, bench.Tdr, gpa, out _));
                break;
            case "region":
                AddRegion(bench, op, gpa);
                break;
            case { } other:
                throw new InvalidOperationException($"no operation {other}");
        }
    }

    private static void AddRegion(TdBench bench, JsonElement op, ulong gpa)
    {
        int pages = op.GetProperty("pages").GetInt32();
        bool measure = op.GetProperty("measure").GetBoolean();
        bool perRegion = op.TryGetProperty("order", out JsonElement order) && order.GetString() == "per_region";
        byte[] content = TdxVectors.Content(op.GetProperty("content"), pages * PageSize.Bytes);
        for (int i = 0; i < pages; i++)
        {
            ulong page = gpa + ((ulong)i << PageSize.Shift);
            bench.AddTables(page, top: 4);
            if (bench.StateOf(page) == SeptState.MAPPED)
            {
                // Removing a page before TDH.MR.FINALIZE needs neither block nor track, and undoes no measurement.
                TdBench.Expect(bench.Module.MemPageRemove(bench.Thread, bench.Tdr, page, out _));
            }
            bench.Add(page, content.AsSpan(i * PageSize.Bytes, PageSize.Bytes));
            if (measure && !perRegion)
            {
                Extend(bench, page, 1);
            }
        }
        if (measure && perRegion)
        {
            Extend(bench, gpa, pages);
        }
    }

    private static void Extend(TdBench bench, ulong gpa, int pages)
    {
        for (ulong chunk = gpa; chunk < gpa + ((ulong)pages << PageSize.Shift); chunk += 256)
        {
            TdBench.Expect(bench.Module.MrExtend(bench.Thread, bench.Tdr, chunk, out _));
        }
    }
}
