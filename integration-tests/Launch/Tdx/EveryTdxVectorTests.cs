using System.Text.Json;
using Google.Protobuf;
using SimMachine.Intel;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.Client.Launch;
using VmmService.Client.Launching;
using VmmService.IntegrationTests.Attestation;
using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Launch.Planning;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using Hash384 = VmmService.Client.Digest.Hash384;
using TdInfo = VmmService.V1.TdInfo;
using TdReportVerdict = VmmService.V1.TdReportVerdict;
using TdxReport = VmmService.Client.Attestation.TdxReport;
using VmType = VmmService.V1.VmType;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>
/// Every vector of tdx-vectors.json through the service: the rows are read from the file, so a new vector is a new row, and one of a type that nobody runs fails. A vector whose
/// input is a file that is not here is skipped with the reason. Tests of the single types, which look at more, are next door and in Attestation, Digest and Cli.
/// </summary>
public sealed class EveryTdxVectorTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Base = 0x10_0000;
    private const ulong PageBytes = 4096;

    public static TheoryData<string, string> Vectors
    {
        get
        {
            var rows = new TheoryData<string, string>();
            foreach ((string type, string id) in TdxVectors.Everything())
            {
                rows.Add(type, id);
            }
            return rows;
        }
    }

    [Theory]
    [MemberData(nameof(Vectors))]
    public Task Vector_ThroughTheService_GivesWhatItStates(string type, string id)
    {
        JsonElement vector = TdxVectors.Get(type, id);
        return type switch
        {
            "mrtd" => Mrtd(vector),
            "firmware" => Firmware(vector, TdxVectors.RequireFirmware(vector)),
            "published_mrtd" => PublishedMrtd(vector),
            "tdvf" => Tdvf(vector),
            "td_hob" => TdHob(vector),
            "rtmr" => Rtmr(vector),
            "tdreport" => Report(vector),
            "td_params" => Params(vector),
            "quotes" => Quote(vector, id),
            "simulated_quotes" => SimulatedQuote(vector, id),
            "getquote" => GetQuote(vector),
            "scenarios" => new TdxScenarioTests(daemon).Scenario_OverGrpc_GivesWhatTheKernelGives(id, "K72"),
            "seamcalls" => Seamcall(vector),
            _ => throw new InvalidOperationException($"nobody runs vectors of type {type}"),
        };
    }

    // By SEAMCALLs, so that sequences are run which no ioctl makes.
    private async Task Mrtd(JsonElement vector)
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon, gpaw52: true);
        JsonElement[] ops = [.. vector.GetProperty("ops").EnumerateArray()];
        var added = new HashSet<ulong>();
        foreach (JsonElement op in ops)
        {
            ulong gpa = TdxVectors.Number(op, "gpa");
            switch (TdxVectors.Text(op, "op"))
            {
                case "page_add":
                    await td.Add(gpa, ChunksOf(ops, gpa));
                    break;
                case "mr_extend":
                    await td.Expect(SeamcallLeaf.TDH_MR_EXTEND, gpa, td.Tdr);
                    break;
                default:
                    await AddRegion(td, op, gpa, added);
                    break;
            }
        }
        await td.Run();
        Assert.Equal(TdxVectors.Text(vector, "mrtd"), (await td.Describe()).Mrtd);
    }

    private static async Task AddRegion(HandmadeTd td, JsonElement op, ulong gpa, HashSet<ulong> added)
    {
        int pages = op.GetProperty("pages").GetInt32();
        bool measure = op.GetProperty("measure").GetBoolean();
        bool perRegion = op.TryGetProperty("order", out JsonElement order) && order.GetString() == "per_region";
        byte[] content = TdxVectors.Content(op.GetProperty("content"), pages * (int)PageBytes);
        for (int i = 0; i < pages; i++)
        {
            ulong page = gpa + ((ulong)i * PageBytes);
            if (!added.Add(page))
            {
                // Before the TD runs this needs neither block nor track, and undoes no measurement.
                await td.Expect(SeamcallLeaf.TDH_MEM_PAGE_REMOVE, page, td.Tdr);
            }
            await td.Add(page, content.AsMemory(i * (int)PageBytes, (int)PageBytes));
            if (measure && !perRegion)
            {
                await td.Extend(page, PageBytes);
            }
        }
        if (measure && perRegion)
        {
            await td.Extend(gpa, (ulong)pages * PageBytes);
        }
    }

    // What is known of a page of a raw sequence are the chunks that it extends.
    private static byte[] ChunksOf(JsonElement[] ops, ulong gpa)
    {
        byte[] page = new byte[PageBytes];
        foreach (JsonElement op in ops.Where(op => TdxVectors.Text(op, "op") == "mr_extend" && (TdxVectors.Number(op, "gpa") & ~(PageBytes - 1)) == gpa))
        {
            TdxVectors.Content(op.GetProperty("content"), 256).CopyTo(page, (int)(TdxVectors.Number(op, "gpa") - gpa));
        }
        return page;
    }

    // Launched in both orders.
    private async Task Firmware(JsonElement vector, byte[] image)
    {
        foreach ((string order, string expected) in ((string, string)[])[("per-page", "mrtd_per_page"), ("per-region", "mrtd_per_region")])
        {
            VmmRun run = await Launch(image, "--order", order, "--json");
            Assert.Equal((0, TdxVectors.Text(vector, expected)), (run.ExitCode, run.Json.GetProperty("mrtd").GetString()));
        }
    }

    private async Task PublishedMrtd(JsonElement vector)
    {
        if (vector.TryGetProperty("inputs", out JsonElement inputs))
        {
            Assert.Skip($"a page of it comes out of another project's program: {inputs}");
        }
        byte[] image = TdxVectors.RequireReleasedFirmware(vector);
        VmmRun run = await Launch(image, "--order", TdxVectors.Text(vector, "order").Replace('_', '-'), "--json");
        Assert.Equal(TdxVectors.Text(vector, "mrtd"), run.Json.GetProperty("mrtd").GetString());
    }

    private async Task Tdvf(JsonElement vector)
    {
        byte[] image = TdxVectors.Image(vector);
        if (!vector.TryGetProperty("expect", out _))
        {
            await Firmware(vector, image);
            return;
        }
        VmmRun run = await Launch(image);
        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        new TdvfMetadataTests().Parse_VectorImageThatLies_IsRefusedForTheStatedReason(TdxVectors.Text(vector, "id"));
    }

    private async Task<VmmRun> Launch(byte[] image, params string[] options)
    {
        string file = Path.GetTempFileName();
        try
        {
            await File.WriteAllBytesAsync(file, image);
            return await VmmRun.Invoke(["launch", "tdx", "--firmware", file, "--memory", "2G", "--server", daemon.Address, .. options]);
        }
        finally
        {
            File.Delete(file);
        }
    }

    // A TD with the vector's memory and sections is launched, and reads its own hand-off blocks.
    private async Task TdHob(JsonElement vector)
    {
        ulong gpa = TdxVectors.Number(vector, "hob_gpa");
        ulong memory = vector.GetProperty("ram").EnumerateArray().Aggregate(0UL, (sum, range) => sum + TdxVectors.Number(range[1]));
        List<(uint, ulong, ulong)> sections = [.. vector.GetProperty("accepted_in_metadata_order").EnumerateArray()
            .Select(range => (TdxVectors.Number(range[0]) == gpa ? 2u : 3, TdxVectors.Number(range[0]), TdxVectors.Number(range[1])))];
        var plan = TdxLaunchPlan.Create(FirmwareImage.Parse(TdvfImages.With(sections)), memory);
        byte[] expected = TdxVectors.Bytes(vector, "hob_hex");
        await using RemoteHost host = await daemon.Connection.CreateHostAsync("", 1, new MachineConfig { Platform = V1.Platform.IntelTdx, MemoryBytes = memory + (1UL << 30) });
        await using RemoteProcess process = await host.CreateProcessAsync();
        await using LaunchedTd td = await TdxLauncher.LaunchAsync(process, plan);

        await td.Vcpus[0].LoadProgramAsync([Guest.Read(gpa, (uint)expected.Length, GuestAccess.Private), Guest.Halt()]);
        RunResponse run = await td.Vcpus[0].RunAsync();

        byte[] hob = run.Results[0].Data.ToByteArray();
        Assert.Equal(expected, hob);
        // Firmware measures what comes before the last block.
        Hash384 digest = Hash384.Of(hob.AsSpan(0, vector.GetProperty("measured_length").GetInt32()));
        Assert.Equal(TdxVectors.Text(vector, "td_hob_digest"), digest.ToString());
        Assert.Equal(TdxVectors.Text(vector, "rtmr0_after_only_this_event"), TdEventLog.Extend(default, digest).ToString());
    }

    // The TD extends its registers itself.
    private async Task Rtmr(JsonElement vector)
    {
        await using HandmadeTd td = await HandmadeTd.Build(daemon);
        await td.Add(Base, new byte[PageBytes]);
        await td.Run();
        foreach (JsonElement extend in vector.GetProperty("extends").EnumerateArray())
        {
            await td.Module.StoreAsync(td.Vcpus[0], Base + 64, TdxVectors.Bytes(extend, "digest"));
            await td.Tdcall(TdcallLeaf.TDG_MR_RTMR_EXTEND, Base + 64, extend.GetProperty("rtmr").GetUInt64());
        }
        Assert.Equal(vector.GetProperty("rtmr").EnumerateArray().Select(rtmr => rtmr.GetString()), (await td.Describe()).Rtmr);
    }

    // A report whose host is described is made byte for byte; one of real silicon is read, and not taken for ours.
    private async Task Report(JsonElement vector)
    {
        new TdxQuoteVectorTests().Parse_Report_HashesAreOfItsParts(TdxVectors.Text(vector, "id"));
        byte[] report = TdxVectors.Bytes(vector, "tdreport_hex");
        Assert.Equal(TdxVectors.Text(vector, "tdreport_sha256"), TdxVectors.Sha256(report));
        if (!vector.TryGetProperty("inputs", out _))
        {
            await using RemoteHost other = await daemon.Connection.CreateHostAsync("", 1, new MachineConfig { Platform = V1.Platform.IntelTdx });
            Assert.NotEqual(TdReportVerdict.Genuine, await other.TdxAttestation.VerifyReportAsync(report));
            return;
        }
        await using RemoteHost host = await HostOf(vector);
        Assert.Equal(report, (await Made(host, vector)).Bytes.ToArray());
        Assert.Equal(TdReportVerdict.Genuine, await host.TdxAttestation.VerifyReportAsync(report));
        Assert.Equal(TdxVectors.Text(vector, "quote_body_v4"), Convert.ToHexStringLower(Body(await host.TdxAttestation.GetQuoteAsync(report), 48, 584)));
        Assert.Equal(
            TdxVectors.Text(vector, "quote_body_v5_type3"), Convert.ToHexStringLower(Body(await host.TdxAttestation.GetQuoteAsync(report, QuoteFormat.V5Tdx15), 54, 648)));
    }

    private static byte[] Body(GetQuoteResponse reply, int at, int length) => reply.Quote.ToByteArray()[at..(at + length)];

    private Task<RemoteHost> HostOf(JsonElement report)
    {
        JsonElement inputs = report.GetProperty("inputs");
        return daemon.Connection.CreateHostAsync("", 1, new MachineConfig
        {
            Platform = V1.Platform.IntelTdx,
            Tdx = new TdxConfig
            {
                CpuSvn = Bytes(inputs, "cpusvn"),
                TeeTcbSvn = Bytes(inputs, "tee_tcb_svn"),
                Mrseam = Bytes(inputs, "mrseam"),
                MrsignerSeam = Bytes(inputs, "mrsignerseam"),
                SeamAttributes = TdxVectors.Number(inputs, "seam_attributes"),
                ReportMacKey = Bytes(report, "simulated_mac_key"),
            },
        });
    }

    private static Task<TdxReport> Made(RemoteHost host, JsonElement report)
    {
        JsonElement inputs = report.GetProperty("inputs");
        var td = new TdInfo
        {
            Attributes = TdxVectors.Number(inputs, "attributes"),
            Xfam = TdxVectors.Number(inputs, "xfam"),
            Mrtd = Bytes(inputs, "mrtd"),
            Mrconfigid = Bytes(inputs, "mrconfigid"),
            Mrowner = Bytes(inputs, "mrowner"),
            Mrownerconfig = Bytes(inputs, "mrownerconfig"),
        };
        td.Rtmr.AddRange(inputs.GetProperty("rtmr").EnumerateArray().Select(rtmr => ByteString.CopyFrom(Convert.FromHexString(rtmr.GetString()!))));
        return host.TdxAttestation.MakeReportAsync(td, TdxVectors.Bytes(inputs, "reportdata"));
    }

    private static ByteString Bytes(JsonElement element, string name) => ByteString.CopyFrom(TdxVectors.Bytes(element, name));

    // KVM makes TD_PARAMS of what user space gave.
    private async Task Params(JsonElement vector)
    {
        JsonElement init = vector.GetProperty("init_vm"), about = vector.GetProperty("vm");
        var tdx = new TdxConfig { PresentCpus = about.GetProperty("max_vcpus").GetUInt32(), TscKhz = about.GetProperty("default_tsc_khz").GetUInt32() };
        await using RemoteHost host = await daemon.Connection.CreateHostAsync("", 1, new MachineConfig { Platform = V1.Platform.IntelTdx, Tdx = tdx });
        await using RemoteProcess process = await host.CreateProcessAsync();
        await using Vm vm = await (await process.OpenKvmAsync()).CreateVmAsync(VmType.Tdx);
        var argument = new KvmTdxInitVm
        {
            Attributes = TdxVectors.Number(init, "attributes"),
            Xfam = TdxVectors.Number(init, "xfam"),
            Mrconfigid = Bytes(init, "mrconfigid"),
            Mrowner = Bytes(init, "mrowner"),
            Mrownerconfig = Bytes(init, "mrownerconfig"),
        };
        argument.Cpuid.AddRange(init.GetProperty("cpuid").EnumerateArray().Select(entry => new KvmCpuidEntry2
        {
            Function = (uint)TdxVectors.Number(entry, "function"),
            Index = (uint)TdxVectors.Number(entry, "index"),
            Flags = (uint)TdxVectors.Number(entry, "flags"),
            Eax = (uint)TdxVectors.Number(entry, "eax"),
            Ebx = (uint)TdxVectors.Number(entry, "ebx"),
            Ecx = (uint)TdxVectors.Number(entry, "ecx"),
            Edx = (uint)TdxVectors.Number(entry, "edx"),
        }));
        // The parameters of the second ask for more of CPUID than the module lets a host choose, and it says so; KVM made them all the same.
        TdxInitVmResponse reply = await vm.TdxLaunch().InitVmAsync(argument).Reply;
        Assert.True(reply.Outcome.Errno == 0 || reply.Tdx.HwError == 0xC000_0100_0000_0045, reply.Outcome.Text);

        DescribeTdResponse td = await vm.TdxLaunch().DescribeAsync();
        Assert.Equal(TdxVectors.Text(vector, "td_params_hex"), Convert.ToHexStringLower(td.TdParams.Span));
        Assert.Equal(TdxVectors.Text(vector, "td_params_sha256"), TdxVectors.Sha256(td.TdParams.Span));
        bool wide = (td.TdParams.Span[TdParams.ConfigFlagsAt] & TdParams.Gpaw) != 0;
        Assert.Equal(vector.GetProperty("shared_bit").GetUInt32(), wide ? 51u : 47);
        Assert.True(reply.Outcome.Errno != 0 || td.Gpaw == (wide ? 52 : 48));
    }

    // Read by the client library; judged by the tests' own verifier and by the daemon's.
    private Task Quote(JsonElement vector, string id)
    {
        var quotes = new TdxQuoteVectorTests();
        quotes.Parse_RealQuote_HasEveryStatedField(id);
        quotes.Verify_RealQuote_AgainstItsOwnRoot_Holds(id);
        byte[] quote = TdxVectors.Bytes(vector, "quote_hex");
        return VerifiedQuotes.RealQuoteIsIncomplete(daemon, quote, TdxQuoteVectorTests.RootOf(quote));
    }

    private Task SimulatedQuote(JsonElement vector, string id)
    {
        var quotes = new TdxQuoteVectorTests();
        Assert.Equal(TdxVectors.Text(vector, "sha256"), TdxVectors.Sha256(TdxVectors.Bytes(vector, "quote_hex")));
        quotes.Verify_SimulatedQuote_IsAcceptedWithItsRootOnly(id);
        foreach (JsonElement mutation in vector.GetProperty("mutations").EnumerateArray())
        {
            quotes.Verify_MutatedQuote_IsRefusedForTheStatedReason(
                id, TdxVectors.Text(mutation, "field"), mutation.GetProperty("offset").GetInt32(), mutation.GetProperty("xor").GetInt32(), TdxVectors.Text(mutation, "expect"));
        }
        return VerifiedQuotes.SimulatedQuoteAndItsMutationsAreJudgedAsStated(daemon, vector);
    }

    // The shared buffer and the socket message of a guest's request, each answered with the same quote.
    private async Task GetQuote(JsonElement vector)
    {
        JsonElement synthetic = TdxVectors.All("tdreport").Single(each => TdxVectors.Text(each, "tdreport_sha256") == TdxVectors.Text(vector, "tdreport_sha256"));
        byte[] report = TdxVectors.Bytes(synthetic, "tdreport_hex");
        byte[] buffer = new byte[vector.GetProperty("buffer_bytes").GetInt32()];
        byte[] header = TdxVectors.Bytes(vector, "request_header_hex");
        header.CopyTo(buffer, 0);
        report.CopyTo(buffer, header.Length);
        Assert.Equal(TdxVectors.Text(vector, "request_buffer_sha256"), TdxVectors.Sha256(buffer));
        byte[] message = [.. TdxVectors.Bytes(vector, "qgs_message_prefix_hex"), .. report];
        Assert.Equal(TdxVectors.Text(vector, "qgs_message_sha256"), TdxVectors.Sha256(message));

        await using RemoteHost host = await HostOf(synthetic);
        AnswerGetQuoteResponse answer = await host.TdxAttestation.AnswerGetQuoteAsync(0x10000, buffer);
        AskQuoteServiceResponse asked = await daemon.Stubs.TdxAttestation.AskQuoteServiceAsync(new AskQuoteServiceRequest { Host = host.Id, Message = ByteString.CopyFrom(message) });

        Assert.Equal((0UL, 0UL), (answer.Ret, answer.Status));
        byte[] quote = (await host.TdxAttestation.GetQuoteAsync(report)).Quote.ToByteArray();
        Assert.Equal(quote, answer.Buffer.ToByteArray()[header.Length..(header.Length + quote.Length)]);
        Assert.Equal(quote, asked.Message.ToByteArray()[^quote.Length..]);
    }

    // One call on an entry in a given state.
    private async Task Seamcall(JsonElement vector)
    {
        string sept = TdxVectors.Text(vector, "sept");
        int vcpus = vector.TryGetProperty("vcpus", out JsonElement count) ? count.GetInt32() : 1;
        await using HandmadeTd td = await HandmadeTd.Build(daemon, vcpus);
        await Prepare(td, vector, sept);

        (string status, ulong rdx) = await Execute(td, vector);

        Assert.Equal(TdxVectors.Text(vector, "status"), status);
        if (vector.TryGetProperty("rdx", out JsonElement expected))
        {
            Assert.Equal(TdxVectors.Number(expected), rdx);
        }
        Assert.Equal(TdxVectors.Text(vector, "sept_after"), await td.StateOf(Base));
    }

    private static async Task Prepare(HandmadeTd td, JsonElement vector, string sept)
    {
        if (sept != "NO_TABLE")
        {
            await td.AddTables(Base);
        }
        if (sept is "MAPPED" or "BLOCKED")
        {
            await td.Add(Base, new byte[PageBytes]);
        }
        if (TdxVectors.Text(vector, "td_state") == "RUNNABLE")
        {
            await td.Expect(SeamcallLeaf.TDH_MR_FINALIZE, td.Tdr);
        }
        if (sept == "PENDING")
        {
            await td.Expect(SeamcallLeaf.TDH_MEM_PAGE_AUG, Base, td.Tdr, await td.Page());
        }
        if (sept == "BLOCKED")
        {
            await td.Expect(SeamcallLeaf.TDH_MEM_RANGE_BLOCK, Base, td.Tdr);
            if (!vector.TryGetProperty("tracked_since_block", out JsonElement tracked) || tracked.GetBoolean())
            {
                await td.Expect(SeamcallLeaf.TDH_MEM_TRACK, td.Tdr);
            }
        }
    }

    private static async Task<(string Status, ulong Rdx)> Execute(HandmadeTd td, JsonElement vector)
    {
        ulong gpa = TdxVectors.Number(vector, "gpa");
        string call = TdxVectors.Text(vector, "call");
        if (call == "TDG.MEM.PAGE.ACCEPT")
        {
            await td.Expect(SeamcallLeaf.TDH_VP_ENTER, td.Vcpus[0]);
            TdcallResponse reply = await td.Module.TdcallAsync(td.Vcpus[0], new V1.TdcallRegisters { Rax = (ulong)TdcallLeaf.TDG_MEM_PAGE_ACCEPT, Rcx = gpa });
            Assert.Equal(vector.TryGetProperty("eeq_type", out JsonElement type) ? type.GetUInt64() : 0, reply.ExtendedExitQualification & 0xf);
            return (reply.Came == TdVcpuOutcome.EptViolation ? "TD_EXIT_EPT_VIOLATION" : $"0x{reply.Registers.Rax:x}", 0);
        }
        SeamcallLeaf leaf = Enum.Parse<SeamcallLeaf>(call.Replace('.', '_'));
        SeamcallResponse answer = leaf switch
        {
            SeamcallLeaf.TDH_MEM_PAGE_ADD => await td.Try(leaf, gpa, td.Tdr, await td.Page(), await td.Page()),
            SeamcallLeaf.TDH_MEM_PAGE_AUG => await td.Try(leaf, gpa, td.Tdr, await td.Page()),
            SeamcallLeaf.TDH_MR_FINALIZE => await td.Try(leaf, td.Tdr),
            _ => await td.Try(leaf, gpa, td.Tdr),
        };
        return ($"0x{answer.Registers.Rax:x}", answer.Registers.Rdx);
    }
}
