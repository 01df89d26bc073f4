using System.Text.Json;
using VmmService.IntegrationTests.Attestation;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm digest rtmr: an event log comes to the registers of the TD that wrote it.</summary>
public sealed class DigestRtmrCommandTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-rtmr-test-").FullName;

    public static TheoryData<string> Sequences => TdxVectors.Ids("rtmr");

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [MemberData(nameof(Sequences))]
    public async Task Replay_OfALog_GivesTheRegisters(string id)
    {
        JsonElement vector = TdxVectors.Get("rtmr", id);
        string[] expected = [.. vector.GetProperty("rtmr").EnumerateArray().Select(rtmr => rtmr.GetString()!)];

        VmmRun run = await VmmRun.Invoke("digest", "rtmr", Write("log", TdEventLogTests.LogOf(vector)), "--json");

        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Equal(expected, run.Json.GetProperty("rtmr").EnumerateArray().Select(rtmr => rtmr.GetString()));
        Assert.Equal(vector.GetProperty("extends").GetArrayLength(), run.Json.GetProperty("events").GetArrayLength());
    }

    [Fact]
    public async Task Against_AQuoteOfTheSameTd_IsTheSameAndOfAnotherIsNot()
    {
        // The log of the vectors' real TD goes with the real quote of version 4.
        JsonElement real = TdxVectors.Get("rtmr", "rtmr-gcp-cos113");
        string log = Write("log", TdEventLogTests.LogOf(real));
        foreach (JsonElement quote in TdxVectors.All("quotes"))
        {
            byte[] bytes = TdxVectors.Bytes(quote, "quote_hex");
            bool same = VmmService.Client.Attestation.TdxQuote.Parse(bytes) is var parsed
                && real.GetProperty("rtmr").EnumerateArray().Select((rtmr, i) => Convert.ToHexStringLower(parsed.Rtmr(i).Span) == rtmr.GetString()).All(each => each);

            VmmRun run = await VmmRun.Invoke("digest", "rtmr", log, "--against", Write("quote", bytes));

            Assert.Equal(same ? 0 : 1, run.ExitCode);
            Assert.Contains(same ? "The registers are those of" : "stands in the file that it is compared with", run.Output, StringComparison.Ordinal);
        }
    }

    [Fact]
    public async Task Against_AReport_ReadsItsRegisters()
    {
        JsonElement vector = TdxVectors.Get("rtmr", "rtmr-single");
        byte[] report = TdxVectors.Bytes(TdxVectors.Get("tdreport", "tdreport-synthetic-1"), "tdreport_hex");
        string[] registers = [.. vector.GetProperty("rtmr").EnumerateArray().Select(rtmr => rtmr.GetString()!)];
        string log = Write("log", TdEventLogTests.LogOf(vector));
        Assert.Equal(1, (await VmmRun.Invoke("digest", "rtmr", log, "--against", Write("report", report))).ExitCode);

        // RTMR0 is at 208 of TDINFO_STRUCT, which is at 512.
        Convert.FromHexString(string.Concat(registers)).CopyTo(report, 512 + 208);
        Assert.Equal(0, (await VmmRun.Invoke("digest", "rtmr", log, "--against", Write("report", report))).ExitCode);
    }

    [Theory]
    [InlineData("", "cut off")]
    [InlineData("00000000", "cut off")]
    public async Task WhatIsNoLog_IsRefused(string hex, string reason)
    {
        VmmRun run = await VmmRun.Invoke("digest", "rtmr", Write("log", Convert.FromHexString(hex)));
        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.Contains(reason, run.Error, StringComparison.Ordinal);
        Assert.Equal(2, (await VmmRun.Invoke("digest", "rtmr", Path.Combine(_folder, "missing"))).ExitCode);
    }

    private string Write(string name, byte[] bytes)
    {
        string path = Path.Combine(_folder, name);
        File.WriteAllBytes(path, bytes);
        return path;
    }
}
