using System.CommandLine;
using Google.Protobuf;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm quote verify: has every check of a quote made, of any TD, with what there is of collateral and expectations.</summary>
internal sealed class QuoteVerifyCommand
{
    private const string RootName = "root.pem";

    private readonly VmmConsole _console;
    private readonly EvidenceInputs _inputs = new("--collateral", "Folder as `vmm quote --collateral` writes it.");
    private readonly Argument<string> _quote = new("QUOTE") { Description = "The quote, as it is." };
    private readonly Option<string?> _root = EvidenceInputs.File("--root", $"The root certificate that is trusted. Without it: {RootName} of --collateral, and the output says so.");
    private readonly Option<string?> _pckCrl = EvidenceInputs.File("--pck-crl", "Revocation list of the platform CA.");
    private readonly Option<string?> _rootCrl = EvidenceInputs.File("--root-crl", "Revocation list of the root.");
    private readonly Option<string?> _tcbInfo = EvidenceInputs.File("--tcb-info", "TCB information of the platform's family, JSON as Intel's service answers it.");
    private readonly Option<string?> _qeIdentity = EvidenceInputs.File("--qe-identity", "Identity of the quoting enclave, JSON as Intel's service answers it.");
    private readonly Option<string?> _tcbSigning = EvidenceInputs.File("--tcb-signing", "Certificate of the signer of the two.");
    private readonly Option<string?> _mrtd = new("--mrtd") { Description = "The MRTD that the TD has to have.", HelpName = "HEX" };
    private readonly Option<string[]> _rtmr = new("--rtmr") { Description = "An RTMR that the TD has to have, 0 to 3; may be given for each.", HelpName = "N=HEX" };

    private QuoteVerifyCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new QuoteVerifyCommand(console);
        var command = new Command(
            "verify",
            $"""
            Make every check of a TD quote, of a simulated TD or of any other: structure, certificates, signatures, collateral, and what you expect of the TD.

            Certificates and revocation lists are taken in PEM and in DER.

            {EvidenceInputs.ExitCodes}
            """)
        {
            it._quote,
        };
        it._inputs.AddTo(command, it._root, it._pckCrl, it._rootCrl, it._tcbInfo, it._qeIdentity, it._tcbSigning, it._mrtd, it._rtmr);
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        Task<ByteString> Part(Option<string?> option, string? label, string name) => _inputs.ReadAsync(parsed, option, label, cancellation, name);
        var request = new VerifyQuoteRequest
        {
            Quote = UnsafeByteOperations.UnsafeWrap(await EvidenceFile.ReadAsync("QUOTE", parsed.GetRequiredValue(_quote), cancellation)),
            PckCrl = await Part(_pckCrl, EvidenceFile.RevocationList, "pck.crl"),
            RootCrl = await Part(_rootCrl, EvidenceFile.RevocationList, "root.crl"),
            TcbInfo = await Part(_tcbInfo, null, "tcb-info.json"),
            QeIdentity = await Part(_qeIdentity, null, "qe-identity.json"),
            TcbSigning = await Part(_tcbSigning, EvidenceFile.Certificate, "tcb-signing.pem"),
            Expected = new QuoteExpectation
            {
                Root = await Part(_root, EvidenceFile.Certificate, RootName),
                Mrtd = MeasuredValue.Parse("--mrtd", parsed.GetValue(_mrtd)),
                ReportData = _inputs.Challenge(parsed),
                AllowDebug = _inputs.AllowDebug(parsed),
            },
            At = _inputs.At(parsed),
        };
        request.Expected.Rtmr.AddRange(RegistersOf(parsed.GetValue(_rtmr) ?? []));
        string? untrusted = parsed.GetValue(_root) is null ? _inputs.InFolder(parsed, RootName) : null;
        return await _inputs.VerifyAsync(parsed, _console, connection => connection.VerifyQuoteAsync(request, cancellation), untrusted, _root.Name, Options, cancellation);
    }

    private Dictionary<string, string> Options => new()
    {
        ["pck_crl"] = _pckCrl.Name,
        ["root_crl"] = _rootCrl.Name,
        ["tcb_info"] = _tcbInfo.Name,
        ["qe_identity"] = _qeIdentity.Name,
        ["tcb_signing"] = _tcbSigning.Name,
        ["expected.root"] = _root.Name,
        ["expected.mrtd"] = _mrtd.Name,
        ["expected.rtmr"] = _rtmr.Name,
    };

    private static string[] RegistersOf(string[] settings)
    {
        string[] registers = [.. Enumerable.Repeat("", TdEventLog.Registers)];
        foreach (string setting in settings)
        {
            if (setting.Split('=', 2) is not [var number, var digits] || !Numbers.TryParse(number, out uint index) || index >= registers.Length)
                throw new UsageException($"--rtmr {setting}: not a register and its value; use --rtmr N=HEX, N from 0 to {registers.Length - 1}");
            if (registers[index].Length != 0)
                throw new UsageException($"--rtmr {setting}: RTMR{index} is given twice");
            registers[index] = MeasuredValue.Parse("--rtmr", digits);
        }

        return registers;
    }
}
