using System.CommandLine;
using System.Security.Cryptography;
using System.Text;
using Google.Protobuf;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm quote: has a TDREPORT quoted, one that a guest was given or one of a TD that is only computed, and prints the quote or hands it to verifiers as files.</summary>
internal sealed class QuoteCommand
{
    // SEPT_VE_DISABLE, and the state components that the simulated host supports: what a VMM asks for.
    private const ulong DefaultAttributes = 0x1000_0000;
    private const ulong DefaultXfam = 0x6_02e7;

    private readonly VmmConsole _console;
    private readonly TdxInputs _inputs = new();
    private readonly Option<string?> _server = InfoCommands.ServerOption();
    private readonly Option<string?> _host = new("--host") { Description = "Id of the host that made the report; needs --server and --tdreport. Without it a host is created.", HelpName = "ID" };
    private readonly Option<ulong?> _seed = Numbers.Option<ulong>("--seed", "Seed of the created host, from which its keys come.", "N", 0);
    private readonly Option<string?> _tdreport = new("--tdreport") { Description = "TDREPORT of a guest, 1024 bytes. Without it: a report of a TD that is computed from the firmware.", HelpName = "FILE" };
    private readonly Option<string?> _reportData = new("--report-data") { Description = "64 bytes that the report carries, as hexadecimal digits; fewer are filled up with zeros.", HelpName = "HEX" };
    private readonly Option<ulong?> _attributes = Numbers.Option<ulong>("--attributes", "ATTRIBUTES of the TD. [default: 0x10000000]", "MASK");
    private readonly Option<ulong?> _xfam = Numbers.Option<ulong>("--xfam", "XFAM of the TD. [default: 0x602e7]", "MASK");
    private readonly Option<string> _format = new("--format") { Description = "Version of the quote: 4, 5 (the body of TDX 1.0), or 5-1.5 (that of TDX 1.5).", HelpName = "VERSION", DefaultValueFactory = _ => "4" };
    private readonly Option<string?> _evidence = new("--evidence")
    {
        Description = $"Make evidence with this defect, for the tests of verifiers: {string.Join(", ", Kinds)}.",
        HelpName = "KIND",
    };

    private readonly Option<bool> _json = InfoCommands.JsonOption("Print the decoded quote as one JSON object.");
    private readonly Option<string?> _raw = new("--raw") { Description = "Write the quote as it is to this file.", HelpName = "FILE" };
    private readonly Option<string?> _collateral = new("--collateral")
    {
        Description = "Write what a verifier takes beside the quote into this folder: root.pem, tcb-signing.pem, root.crl, pck.crl, tcb-info.json, qe-identity.json.",
        HelpName = "DIR",
    };

    private QuoteCommand(VmmConsole console) => _console = console;

    private static IEnumerable<string> Kinds => Enum.GetNames<QuoteEvidenceKind>().Skip(1);

    public static Command Create(VmmConsole console)
    {
        var it = new QuoteCommand(console);
        var command = new Command(
            "quote",
            $"""
            Print a quote of a TD, as the simulated quoting enclave of its host makes it: of the TDREPORT that a guest was given, or of the TD that a firmware would start.

            Numbers are decimal, or hexadecimal with 0x.

            {ExitCode.Help}
            """)
        {
            it._tdreport, it._reportData, it._attributes, it._xfam, it._format, it._evidence, it._json, it._raw, it._collateral, it._host, it._seed, it._server,
        };
        it._inputs.AddTo(command);
        command.Validators.Add(result =>
        {
            if (result.GetResult(it._host) is not null && (result.GetResult(it._server) is null || result.GetResult(it._tdreport) is null))
                result.AddError("--host names a host of a daemon, whose reports only it can quote; give --server and --tdreport with it");
            if (result.GetResult(it._tdreport) is not null && new Option[] { it._reportData, it._attributes, it._xfam }.FirstOrDefault(each => result.GetResult(each) is { Implicit: false }) is { } other)
                result.AddError($"--tdreport has all that the module says of the TD; leave {other.Name} out");
        });
        command.Add(QuoteVerifyCommand.Create(console));
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        QuoteFormat format = FormatOf(parsed.GetRequiredValue(_format));
        QuoteEvidenceKind? kind = KindOf(parsed.GetValue(_evidence));
        await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation);
        await using RemoteHost host = parsed.GetValue(_host) is { } id
            ? await session.Connection.GetHostAsync(id, cancellation)
            : await session.Connection.CreateHostAsync(seed: parsed.GetValue(_seed) ?? 0, machine: new MachineConfig { Platform = V1.Platform.IntelTdx }, cancellation: cancellation);

        ReadOnlyMemory<byte> report = parsed.GetValue(_tdreport) is { } file ? await ReadAsync(file, cancellation) : (await ComputeAsync(parsed, host, cancellation)).Bytes;
        if (kind is { } defect)
            return await PrintEvidenceAsync(parsed, await host.TdxAttestation.MakeEvidenceAsync(defect, report, format, cancellation), cancellation);

        GetQuoteResponse reply = await host.TdxAttestation.GetQuoteAsync(report, format, cancellation);
        if (reply.Verdict != TdReportVerdict.Genuine)
        {
            await _console.Error.WriteLineAsync($"vmm: the quoting enclave does not quote this report: {reply.Verdict}. A report can be quoted on the host that made it, as it was made.");
            return ExitCode.KernelRefused;
        }

        await PrintAsync(parsed, reply.Quote.Memory, cancellation);
        if (parsed.GetValue(_collateral) is { } folder)
        {
            GetQuoteCollateralResponse collateral = await host.TdxAttestation.GetCollateralAsync(cancellation);
            await WriteCollateralAsync(
                folder, collateral.Root, collateral.TcbSigning, collateral.RootCrl, collateral.PckCrl, collateral.TcbInfo, collateral.QeIdentity, cancellation);
        }

        return ExitCode.Ok;
    }

    private async Task<TdxReport> ComputeAsync(ParseResult parsed, RemoteHost host, CancellationToken cancellation)
    {
        TdxLaunch launch = await _inputs.ReadAsync(parsed, cancellation);
        var td = new TdInfo
        {
            Attributes = parsed.GetValue(_attributes) ?? DefaultAttributes,
            Xfam = parsed.GetValue(_xfam) ?? DefaultXfam,
            Mrtd = ByteString.CopyFrom(Convert.FromHexString(launch.Mrtd().ToString())),
        };
        return await host.TdxAttestation.MakeReportAsync(td, ReportData.Parse(parsed.GetValue(_reportData)), cancellation);
    }

    private async Task<int> PrintEvidenceAsync(ParseResult parsed, MakeQuoteEvidenceResponse evidence, CancellationToken cancellation)
    {
        await _console.Error.WriteLineAsync(evidence.Defect.Length == 0 ? "vmm: sound evidence: a verifier must accept it" : $"vmm: a verifier must refuse this: {evidence.Defect}");
        if (evidence.Kind == QuoteEvidenceKind.TruncatedQuote)
            await WriteRawAsync(parsed, evidence.Quote.Memory, cancellation);
        else
            await PrintAsync(parsed, evidence.Quote.Memory, cancellation);
        if (parsed.GetValue(_collateral) is { } folder)
        {
            await WriteCollateralAsync(
                folder, evidence.Expected.Root, evidence.TcbSigning, evidence.RootCrl, evidence.PckCrl, evidence.TcbInfo, evidence.QeIdentity, cancellation);
        }

        return ExitCode.Ok;
    }

    private async Task PrintAsync(ParseResult parsed, ReadOnlyMemory<byte> bytes, CancellationToken cancellation)
    {
        await WriteRawAsync(parsed, bytes, cancellation);
        var quote = TdxQuote.Parse(bytes);
        if (parsed.GetValue(_json))
            await _console.Output.WriteLineAsync(QuoteText.ToJson(quote));
        else
            QuoteText.Write(_console.Output, quote);
    }

    private async Task WriteRawAsync(ParseResult parsed, ReadOnlyMemory<byte> bytes, CancellationToken cancellation)
    {
        if (parsed.GetValue(_raw) is { } file)
            await OutputFile.WriteAsync(file, bytes, cancellation);
    }

    private static async Task WriteCollateralAsync(
        string folder, ByteString root, ByteString tcbSigning, ByteString rootCrl, ByteString pckCrl, ByteString tcbInfo, ByteString qeIdentity, CancellationToken cancellation)
    {
        OutputFile.MakeFolder("--collateral", folder);
        (string Name, byte[] Bytes)[] files =
        [
            ("root.pem", Pem(root)), ("tcb-signing.pem", Pem(tcbSigning)), ("root.crl", rootCrl.ToByteArray()), ("pck.crl", pckCrl.ToByteArray()),
            ("tcb-info.json", tcbInfo.ToByteArray()), ("qe-identity.json", qeIdentity.ToByteArray()),
        ];
        foreach ((string name, byte[] bytes) in files)
            await OutputFile.WriteAsync(Path.Combine(folder, name), bytes, cancellation);
    }

    private static byte[] Pem(ByteString der) => Encoding.ASCII.GetBytes(PemEncoding.WriteString("CERTIFICATE", der.Span) + "\n");

    private static async Task<byte[]> ReadAsync(string path, CancellationToken cancellation)
    {
        try
        {
            // Of what has no length (a device, a pipe) no more is read than shows that it is too much.
            await using FileStream file = new(path, FileMode.Open, FileAccess.Read);
            byte[] bytes = new byte[TdxReport.Size + 1];
            int read = await file.ReadAtLeastAsync(bytes, bytes.Length, throwOnEndOfStream: false, cancellation);
            return read == TdxReport.Size
                ? bytes[..read]
                : throw new UsageException($"--tdreport {path}: a TDREPORT has {TdxReport.Size} bytes, and the file has {(read > TdxReport.Size ? "more" : $"{read}")}");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"--tdreport {path} cannot be read: {exception.Message}");
        }
    }

    private static QuoteFormat FormatOf(string text) => text switch
    {
        "4" => QuoteFormat.V4,
        "5" => QuoteFormat.V5Tdx10,
        "5-1.5" => QuoteFormat.V5Tdx15,
        _ => throw new UsageException($"--format {text}: not a version of quotes; use 4, 5 or 5-1.5"),
    };

    private static QuoteEvidenceKind? KindOf(string? text)
    {
        if (text is null)
            return null;
        string? name = Kinds.FirstOrDefault(each => string.Equals(each, text, StringComparison.OrdinalIgnoreCase));
        return name is null ? throw new UsageException($"--evidence {text}: not a defect; use one of {string.Join(", ", Kinds)}") : Enum.Parse<QuoteEvidenceKind>(name);
    }
}
