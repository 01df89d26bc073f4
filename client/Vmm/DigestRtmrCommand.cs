using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using VmmService.Client.Attestation;

namespace VmmService.Vmm;

/// <summary>vmm digest rtmr: replays the event log of a TD to its runtime measurement registers, and puts them beside those of a quote or report.</summary>
internal static class DigestRtmrCommand
{
    // Names of TCG's event types, as far as firmware of TDs logs them.
    private static readonly SortedDictionary<uint, string> s_types = new()
    {
        [0x1] = "EV_POST_CODE",
        [0x3] = "EV_NO_ACTION",
        [0x4] = "EV_SEPARATOR",
        [0x5] = "EV_ACTION",
        [0x6] = "EV_EVENT_TAG",
        [0x7] = "EV_S_CRTM_CONTENTS",
        [0x8] = "EV_S_CRTM_VERSION",
        [0xa] = "EV_PLATFORM_CONFIG_FLAGS",
        [0xd] = "EV_IPL",
        [0x8000_0001] = "EV_EFI_VARIABLE_DRIVER_CONFIG",
        [0x8000_0002] = "EV_EFI_VARIABLE_BOOT",
        [0x8000_0003] = "EV_EFI_BOOT_SERVICES_APPLICATION",
        [0x8000_0004] = "EV_EFI_BOOT_SERVICES_DRIVER",
        [0x8000_0006] = "EV_EFI_GPT_EVENT",
        [0x8000_0007] = "EV_EFI_ACTION",
        [0x8000_0008] = "EV_EFI_PLATFORM_FIRMWARE_BLOB",
        [0x8000_0009] = "EV_EFI_HANDOFF_TABLES",
        [TdEvent.FirmwareBlob] = "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
        [TdEvent.HandOffTables] = "EV_EFI_HANDOFF_TABLES2",
        [0x8000_000c] = "EV_EFI_VARIABLE_BOOT2",
        [0x8000_00e0] = "EV_EFI_VARIABLE_AUTHORITY",
    };

    public static Command Create(VmmConsole console)
    {
        var file = new Argument<string>("LOG") { Description = "Event log of a TD: /sys/firmware/acpi/tables/data/CCEL in it." };
        var against = new Option<string?>("--against") { Description = "A quote of the TD, or its TDREPORT: its registers are compared with those of the log.", HelpName = "FILE" };
        Option<bool> json = InfoCommands.JsonOption("Print one JSON object.");
        var command = new Command(
            "rtmr",
            """
            Replay the event log of a TD to RTMR0 to RTMR3.

            With --against the exit code is 0 if a quote or report has the same registers and 1 if it has not.
            """)
        {
            file, against, json,
        };
        command.SetAction(async (parsed, cancellation) =>
        {
            string path = parsed.GetRequiredValue(file);
            IReadOnlyList<TdEvent> events = Parsed(path, TdEventLog.Parse, await ReadAsync(path, cancellation));
            string? other = parsed.GetValue(against);
            string[]? expected = other is null ? null : Parsed(other, RegistersOf, await ReadAsync(other, cancellation));
            RtmrReport report = RtmrReport.Of(events, expected, NameOf);
            if (parsed.GetValue(json))
                await console.Output.WriteLineAsync(JsonSerializer.Serialize(report, DigestReport.Json));
            else
                Write(console.Output, report);
            return report.Same == false ? ExitCode.KernelRefused : ExitCode.Ok;
        });
        return command;
    }

    private static void Write(TextWriter output, RtmrReport report)
    {
        for (int i = 0; i < report.Rtmr.Count; i++)
        {
            output.WriteLine($"RTMR{i}           {report.Rtmr[i]}");
            if (report.Expected is { } expected && expected[i] != report.Rtmr[i])
                output.WriteLine($"                {expected[i]} stands in the file that it is compared with");
        }

        if (report.Same is { } same)
            output.WriteLine(same ? "The registers are those of the file that they are compared with." : "The log is not that of the file that it is compared with, or not all of it.");
        output.WriteLine();
        output.WriteLine($"Events, in order ({report.Events.Count})");
        var table = new TextTable("  register", "type", "digest");
        foreach (RtmrReport.Entry each in report.Events)
            table.Add($"  {each.Register}", each.Type, each.Digest);
        table.WriteTo(output);
    }

    private static string NameOf(uint type) => s_types.GetValueOrDefault(type) ?? string.Create(CultureInfo.InvariantCulture, $"0x{type:x}");

    // A quote says its version in its first two bytes, a report its type.
    private static string[] RegistersOf(ReadOnlyMemory<byte> bytes)
    {
        Func<int, ReadOnlyMemory<byte>> rtmr = bytes.Length == TdxReport.Size ? TdxReport.Parse(bytes).Rtmr : TdxQuote.Parse(bytes).Rtmr;
        return [.. Enumerable.Range(0, TdEventLog.Registers).Select(i => Convert.ToHexStringLower(rtmr(i).Span))];
    }

    private static T Parsed<T>(string path, Func<ReadOnlyMemory<byte>, T> parse, byte[] bytes)
    {
        try
        {
            return parse(bytes);
        }
        catch (FormatException problem)
        {
            throw new UsageException($"{path}: {problem.Message}");
        }
    }

    private static async Task<byte[]> ReadAsync(string path, CancellationToken cancellation)
    {
        try
        {
            return await File.ReadAllBytesAsync(path, cancellation);
        }
        catch (Exception problem) when (problem is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"{path} cannot be read: {problem.Message}");
        }
    }
}

/// <summary>A replayed event log as data: the property names are those of --json.</summary>
/// <param name="Rtmr">RTMR0 to RTMR3 after all events, 96 lower-case hexadecimal digits each.</param>
/// <param name="Expected">Those of the quote or report that was given.</param>
/// <param name="Same">Whether they are the same; null where nothing was given.</param>
internal sealed record RtmrReport(IReadOnlyList<string> Rtmr, IReadOnlyList<string>? Expected, bool? Same, IReadOnlyList<RtmrReport.Entry> Events)
{
    public static RtmrReport Of(IReadOnlyList<TdEvent> events, string[]? expected, Func<uint, string> nameOf)
    {
        string[] rtmr = [.. TdEventLog.Replay(events).Select(register => register.ToString())];
        return new RtmrReport(
            rtmr, expected, expected is null ? null : expected.SequenceEqual(rtmr),
            [.. events.Select(each => new Entry(each.Rtmr is { } register ? $"RTMR{register}" : "none", nameOf(each.Type), each.Digest.ToString()))]);
    }

    /// <summary>An event.</summary>
    /// <param name="Register">"RTMR0" and so on; "none" for one that is told and not measured.</param>
    internal sealed record Entry(string Register, string Type, string Digest);
}
