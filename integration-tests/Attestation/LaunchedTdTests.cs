using System.Buffers.Binary;
using System.Globalization;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Cli;
using VmmService.IntegrationTests.Launch.Tdx;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using Vcpu = VmmService.Client.Vcpu;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The whole way: a TD is launched, extends a register, reports, asks its VMM for a quote, and a verifier judges it.</summary>
public sealed class LaunchedTdTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Private = 0x100000;
    private const ulong Report = Private + 0x1000;
    private const ulong Shared = 0x200000;
    private const ulong SharedBit = 1UL << 47;
    private const int BufferSize = 8192;

    [Fact]
    public async Task Quote_ThatAGuestAsksItsVmmFor_IsAcceptedAndMeasuresTheLaunch()
    {
        await using TdBench bench = await TdBench.Start(daemon, "", ["td_vm", "init_vm", "vcpu0", $"gmem 0x{Private:x} 2", $"private 0x{Private:x} 2", "source S 2 affine(7,1,3)", "init_vcpu0"]);
        Vcpu vcpu = bench.Vcpus[0];
        await bench.Launch.AddAsync(vcpu, new KvmTdxInitMemRegion { SourceAddr = bench.Sources["S"].Address, Gpa = Private, NrPages = 2 });
        string mrtd = await bench.Launch.FinalizeVmAsync();
        ulong buffer = await bench.Process.MmapAsync(BufferSize);
        await bench.Vm.SetUserMemoryRegion2Async(new KvmUserspaceMemoryRegion2 { Slot = 1, GuestPhysAddr = Shared, MemorySize = BufferSize, UserspaceAddr = buffer });
        byte[] digest = [.. Enumerable.Range(0, 48).Select(i => (byte)i)];

        await vcpu.LoadProgramAsync(
        [
            Guest.Write(Private, digest), TdGuest.ExtendRtmr(Private, 2), Guest.Write(Private, QuotedTd.Nonce), TdGuest.Report(Report, Private), TdGuest.VerifyReport(Report),
            Guest.Read(Report, TdxReport.Size), Guest.Halt(),
        ]);
        RunResponse reported = await vcpu.RunAsync();
        Assert.All(reported.Results.Where(result => result.Registers is not null), result => Assert.Equal(0ul, result.Registers.Rax));
        var report = TdxReport.Parse(reported.Results[5].Data.Memory);

        await vcpu.LoadProgramAsync(
        [
            Guest.Write(Shared, Header(), GuestAccess.Shared), Guest.Write(Shared + 24, report.Bytes.Span, GuestAccess.Shared), TdGuest.GetQuote(Shared | SharedBit, BufferSize),
            Guest.Read(Shared, BufferSize, GuestAccess.Shared), Guest.Halt(),
        ]);
        RunResponse asked = await vcpu.RunAsync();
        Assert.Equal((0x10002ul, Shared, (ulong)BufferSize), (asked.Run.Tdx.Nr, asked.Run.Tdx.Gpa, asked.Run.Tdx.Size));
        AnswerGetQuoteResponse answer = await bench.Host.TdxAttestation.AnswerGetQuoteAsync(asked.Run.Tdx.Gpa, await bench.Process.ReadAsync(buffer, BufferSize));
        await bench.Process.WriteAsync(buffer, answer.Buffer.Memory);
        RunResponse answered = await vcpu.RunAsync(new RunPageUpdate { Tdx = new TdxAnswer { Ret = answer.Ret } });

        // Results are those since the last run: the call, then the read.
        byte[] found = answered.Results.Single(result => result.Data.Length == BufferSize).Data.ToByteArray();
        Assert.Equal(0ul, BinaryPrimitives.ReadUInt64LittleEndian(found.AsSpan(8)));
        int length = BinaryPrimitives.ReadInt32LittleEndian(found.AsSpan(20));
        Google.Protobuf.ByteString quote = Google.Protobuf.ByteString.CopyFrom(found, 24, length);
        Assert.Empty(QuotedTd.Verify(quote, await bench.Host.TdxAttestation.GetCollateralAsync(), report));

        var parsed = TdxQuote.Parse(quote.Memory);
        Assert.Equal(mrtd, Convert.ToHexStringLower(parsed.Mrtd.Span));
        ReadOnlyMemory<byte> source = await bench.Process.ReadAsync(bench.Sources["S"].Address, 2 * 4096);
        Assert.Equal(mrtd, MrtdDigest.Measure([new TdxRegion(Private, 2 * 4096, Extend: true, "") { Content = source }]).ToString());
        Assert.Equal(QuotedTd.Nonce, parsed.ReportData.ToArray());
        Assert.Equal(TdEventLog.Extend(default, new Hash384(digest)).ToString(), Convert.ToHexStringLower(parsed.Rtmr(2).Span));
    }

    [Fact]
    public async Task Mrtd_OfAPlanThatIsLaunched_IsTheComputedOne()
    {
        var plan = TdxLaunchPlan.Create(FirmwareImage.Parse(SampleTdvf.Create()));
        await using TdBench bench = await TdBench.Start(daemon, "", ["td_vm", "init_vm", "vcpu0", "init_vcpu0"]);
        foreach ((TdxRegion region, int slot) in plan.Regions.Select((region, slot) => (region, slot)))
        {
            GuestMemfd memfd = await bench.Vm.CreateGuestMemfdAsync(region.Size);
            await bench.Vm.SetUserMemoryRegion2Async(new KvmUserspaceMemoryRegion2
            {
                Slot = (uint)slot,
                Flags = KernelNumbers.KVM_MEM_GUEST_MEMFD,
                GuestPhysAddr = region.Gpa,
                MemorySize = region.Size,
                UserspaceAddr = await bench.Process.MmapAsync(region.Size),
                GuestMemfd = (uint)memfd.Fd,
            });
            await bench.Vm.SetMemoryAttributesAsync(region.Gpa, region.Size, KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE);
            ulong source = await bench.Process.MmapAsync(region.Size);
            if (!region.Content.IsEmpty)
                await bench.Process.WriteAsync(source, region.Content);
            await bench.Launch.AddAsync(bench.Vcpus[0], new KvmTdxInitMemRegion { SourceAddr = source, Gpa = region.Gpa, NrPages = region.Pages }, region.Extend);
        }

        Assert.Equal(MrtdDigest.Measure(plan.Regions).ToString(), await bench.Launch.FinalizeVmAsync());

        // And the command tells no difference, or the one that there is.
        string firmware = Path.GetTempFileName();
        await File.WriteAllBytesAsync(firmware, SampleTdvf.Create());
        string vm = string.Create(CultureInfo.InvariantCulture, $"vm:{bench.Host.Id}/{bench.Process.Pid}/{bench.Vm.Fd}");
        VmmRun same = await VmmRun.Invoke("digest", "diff", "tdx", vm, $"--firmware {firmware}", "--server", daemon.Address);
        VmmRun other = await VmmRun.Invoke("digest", "diff", "tdx", vm, $"--firmware {firmware} --order per-region", "--server", daemon.Address);
        File.Delete(firmware);
        Assert.Equal((0, ""), (same.ExitCode, same.Error));
        Assert.Equal(1, other.ExitCode);
        Assert.Contains("kernels of two generations", other.Output, StringComparison.Ordinal);
    }

    // As the Linux driver fills it.
    private static byte[] Header()
    {
        byte[] header = new byte[24];
        header[0] = 1;
        BinaryPrimitives.WriteInt32LittleEndian(header.AsSpan(16), TdxReport.Size);
        return header;
    }
}
