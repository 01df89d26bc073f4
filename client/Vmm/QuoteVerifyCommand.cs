using System.Buffers;
using System.CommandLine;
using System.Globalization;
using Google.Protobuf;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm quote verify: has every check of a quote made, of any TD, with what there is of collateral and expectations.</summary>
internal sealed class QuoteVerifyCommand
{
    private const string RootName = "root.pem";
    private const int RegisterSize = 48;

    private static readonly string[] s_timeForms = ["yyyy-MM-dd", "yyyy-MM-dd'T'HH:mmK", "yyyy-MM-dd'T'HH:mm:ssK"];

    private readonly VmmConsole _console;
    private readonly Argument<string> _quote = new("QUOTE") { Description = "The quote, as it is." };
    private readonly Option<string?> _collateral = new("--collateral")
    {
        Description = "Folder as `vmm quote --collateral` writes it. What is not in it is not given; an option for one of its files goes before it.",
        HelpName = "DIR",
    };

    private readonly Option<string?> _root = File("--root", $"The root certificate that is trusted. Without it: {RootName} of --collateral, and the output says so.");
    private readonly Option<string?> _pckCrl = File("--pck-crl", "Revocation list of the platform CA.");
    private readonly Option<string?> _rootCrl = File("--root-crl", "Revocation list of the root.");
    private readonly Option<string?> _tcbInfo = File("--tcb-info", "TCB information of the platform's family, JSON as Intel's service answers it.");
    private readonly Option<string?> _qeIdentity = File("--qe-identity", "Identity of the quoting enclave, JSON as Intel's service answers it.");
    private readonly Option<string?> _tcbSigning = File("--tcb-signing", "Certificate of the signer of the two.");
    private readonly Option<string?> _mrtd = new("--mrtd") { Description = "The MRTD that the TD has to have.", HelpName = "HEX" };
    private readonly Option<string[]> _rtmr = new("--rtmr") { Description = "An RTMR that the TD has to have, 0 to 3; may be given for each.", HelpName = "N=HEX" };
    private readonly Option<string?> _reportData = new("--report-data") { Description = "The challenge: 64 bytes as hexadecimal digits; fewer are filled up with zeros.", HelpName = "HEX" };
    private readonly Option<bool> _allowDebug = new("--allow-debug") { Description = "Accept a TD that its host may look into." };
    private readonly Option<string?> _at = new("--at") { Description = "When it is verified: 2026-01-31 or 2026-01-31T12:00:00Z, UTC unless it says otherwise. [default: now]", HelpName = "TIME" };
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object: verdict, simulated, checks.");
    private readonly Option<string?> _server = InfoCommands.ServerOption();

    private QuoteVerifyCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new QuoteVerifyCommand(console);
        var command = new Command(
            "verify",
            """
            Make every check of a TD quote, of a simulated TD or of any other: structure, certificates, signatures, collateral, and what you expect of the TD.

            Certificates and revocation lists are taken in PEM and in DER.

            Exit codes:
              0    accepted
              1    refused, or incomplete: without the trusted root or a part of the collateral nobody can say
              2    the command line or an input file cannot be used
              3    the daemon could not be reached, or failed
              130  interrupted
            """)
        {
            it._quote, it._collateral, it._root, it._pckCrl, it._rootCrl, it._tcbInfo, it._qeIdentity, it._tcbSigning, it._mrtd, it._rtmr, it._reportData, it._allowDebug, it._at, it._json, it._server,
        };
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        VerifyQuoteRequest request = await ReadAsync(parsed, cancellation);
        await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation);
        EvidenceFindings findings = await session.Connection.VerifyQuoteAsync(request, cancellation);

        bool json = parsed.GetValue(_json);
        if (!request.Expected.Root.IsEmpty && parsed.GetValue(_root) is null)
        {
            string note = $"the trusted root is {InFolder(parsed, RootName)}, which came with the collateral; --root names one that you trust yourself";
            await (json ? _console.Error.WriteLineAsync($"vmm: {note}") : _console.Output.WriteLineAsync($"Note: {note}.\n"));
        }

        if (json)
            await _console.Output.WriteLineAsync(EvidenceText.ToJson(findings));
        else
            EvidenceText.Write(_console.Output, findings);
        return findings.Verdict == EvidenceVerdict.Accepted ? ExitCode.Ok : ExitCode.KernelRefused;
    }

    private async Task<VerifyQuoteRequest> ReadAsync(ParseResult parsed, CancellationToken cancellation)
    {
        if (parsed.GetValue(_collateral) is { } folder && !Directory.Exists(folder))
            throw new UsageException($"--collateral {folder}: there is no such folder");
        var request = new VerifyQuoteRequest
        {
            Quote = Bytes(await EvidenceFile.ReadAsync("QUOTE", parsed.GetRequiredValue(_quote), cancellation)),
            PckCrl = await PartAsync(parsed, _pckCrl, "pck.crl", EvidenceFile.RevocationList, cancellation),
            RootCrl = await PartAsync(parsed, _rootCrl, "root.crl", EvidenceFile.RevocationList, cancellation),
            TcbInfo = await PartAsync(parsed, _tcbInfo, "tcb-info.json", null, cancellation),
            QeIdentity = await PartAsync(parsed, _qeIdentity, "qe-identity.json", null, cancellation),
            TcbSigning = await PartAsync(parsed, _tcbSigning, "tcb-signing.pem", EvidenceFile.Certificate, cancellation),
            Expected = new QuoteExpectation
            {
                Root = await PartAsync(parsed, _root, RootName, EvidenceFile.Certificate, cancellation),
                Mrtd = Register("--mrtd", parsed.GetValue(_mrtd)),
                ReportData = parsed.GetValue(_reportData) is { } challenge ? Bytes(ReportData.Parse(challenge)) : ByteString.Empty,
                AllowDebug = parsed.GetValue(_allowDebug),
            },
            At = TimeOf(parsed.GetValue(_at)).ToUnixTimeSeconds(),
        };
        request.Expected.Rtmr.AddRange(RegistersOf(parsed.GetValue(_rtmr) ?? []));
        return request;
    }

    // Named by its option, or in the folder, or not given.
    private async Task<ByteString> PartAsync(ParseResult parsed, Option<string?> option, string name, string? label, CancellationToken cancellation)
    {
        (string from, string? path) = parsed.GetValue(option) is { } file ? (option.Name, file) : (_collateral.Name, InFolder(parsed, name));
        return path is null ? ByteString.Empty
            : Bytes(label is null ? await EvidenceFile.ReadAsync(from, path, cancellation) : await EvidenceFile.ReadDerAsync(from, path, label, cancellation));
    }

    // Null where there is none.
    private string? InFolder(ParseResult parsed, string name) =>
        parsed.GetValue(_collateral) is { } folder && Path.Combine(folder, name) is var path && System.IO.File.Exists(path) ? path : null;

    private static string[] RegistersOf(string[] settings)
    {
        string[] registers = [.. Enumerable.Repeat("", TdEventLog.Registers)];
        foreach (string setting in settings)
        {
            if (setting.Split('=', 2) is not [var number, var digits] || !Numbers.TryParse(number, out uint index) || index >= registers.Length)
                throw new UsageException($"--rtmr {setting}: not a register and its value; use --rtmr N=HEX, N from 0 to {registers.Length - 1}");
            if (registers[index].Length != 0)
                throw new UsageException($"--rtmr {setting}: RTMR{index} is given twice");
            registers[index] = Register("--rtmr", digits);
        }

        return registers;
    }

    private static string Register(string option, string? digits) =>
        digits is null || (digits.Length == 2 * RegisterSize && Convert.FromHexString(digits, new byte[RegisterSize], out _, out _) == OperationStatus.Done)
            ? digits ?? ""
            : throw new UsageException($"{option} {digits}: not a register's {2 * RegisterSize} hexadecimal digits");

    private static DateTimeOffset TimeOf(string? text) =>
        text is null ? TimeProvider.System.GetUtcNow()
        : DateTimeOffset.TryParseExact(text, s_timeForms, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal, out DateTimeOffset time) ? time
        : throw new UsageException($"--at {text}: not a time; use 2026-01-31 or 2026-01-31T12:00:00Z");

    private static Option<string?> File(string name, string description) => new(name) { Description = description, HelpName = "FILE" };

    private static ByteString Bytes(byte[] bytes) => UnsafeByteOperations.UnsafeWrap(bytes);
}
