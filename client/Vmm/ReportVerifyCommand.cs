using System.CommandLine;
using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm report verify: has every check of an SNP report made, of any guest, with what there is of certificates and expectations.</summary>
internal sealed class ReportVerifyCommand
{
    private static readonly string[] s_ark = ["ark.pem", "ark.der"];

    private readonly VmmConsole _console;
    private readonly EvidenceInputs _inputs = new("--certs", "Folder with certificates as `vmm report --certs` and snpguest write them: ark, ask or asvk, vcek or vlek, crl, each .pem or .der.");
    private readonly Argument<string> _report = new("REPORT") { Description = "The report, as it is: 1184 bytes." };
    private readonly Option<string?> _ark = EvidenceInputs.File("--ark", "The root that is trusted. Without it: that of --certs, and the output says so.");
    private readonly Option<string?> _intermediate = EvidenceInputs.File("--ask", "ASK or ASVK.");
    private readonly Option<string?> _endorsement = EvidenceInputs.File("--vcek", "VCEK or VLEK.");
    private readonly Option<string?> _crl = EvidenceInputs.File("--crl", "Revocation list of the ARK.");
    private readonly Option<string?> _measurement = new("--measurement") { Description = "The launch digest that the guest has to have.", HelpName = "HEX" };
    private readonly Option<uint?> _vmpl = Numbers.Option<uint>("--vmpl", "The VMPL that the report has to be for.", "N");
    private readonly Option<string?> _minTcb = new("--min-tcb")
    {
        Description = "The oldest REPORTED_TCB that is accepted, part by part: boot loader, TEE, SNP, microcode and, from Turin on, FMC.",
        HelpName = "N.N.N.N[.N]",
    };


    private ReportVerifyCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new ReportVerifyCommand(console);
        var command = new Command(
            "verify",
            $"""
            Make every check of an SNP attestation report, of a simulated guest or of any other: form, certificates, signatures, and what you expect of the guest.

            Certificates and revocation lists are taken in PEM and in DER.

            {EvidenceInputs.ExitCodes}
            """)
        {
            it._report,
        };
        it._inputs.AddTo(command, it._ark, it._intermediate, it._endorsement, it._crl, it._measurement, it._vmpl, it._minTcb);
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        var request = new VerifyReportRequest
        {
            Report = UnsafeByteOperations.UnsafeWrap(await EvidenceFile.ReadAsync("REPORT", parsed.GetRequiredValue(_report), cancellation)),
            Intermediate = await _inputs.ReadAsync(parsed, _intermediate, EvidenceFile.Certificate, cancellation, "ask.pem", "ask.der", "asvk.pem", "asvk.der"),
            Endorsement = await _inputs.ReadAsync(parsed, _endorsement, EvidenceFile.Certificate, cancellation, "vcek.pem", "vcek.der", "vlek.pem", "vlek.der"),
            Crl = await _inputs.ReadAsync(parsed, _crl, EvidenceFile.RevocationList, cancellation, "crl.der", "crl.pem"),
            Expected = new EvidenceExpectation
            {
                Measurement = MeasuredValue.Parse("--measurement", parsed.GetValue(_measurement)),
                ReportData = _inputs.Challenge(parsed),
                MinTcb = TcbOf(parsed.GetValue(_minTcb)),
                AllowDebug = _inputs.AllowDebug(parsed),
            },
            At = _inputs.At(parsed),
        };
        if (parsed.GetValue(_vmpl) is { } vmpl)
            request.Expected.Vmpl = vmpl;
        request.Expected.Ark = await _inputs.ReadAsync(parsed, _ark, EvidenceFile.Certificate, cancellation, s_ark);
        // Whoever trusts a root has it, so that nobody needs to present it.
        string? presented = _inputs.InFolder(parsed, s_ark);
        request.Ark = presented is null ? request.Expected.Ark : UnsafeByteOperations.UnsafeWrap(await EvidenceFile.ReadDerAsync("--certs", presented, EvidenceFile.Certificate, cancellation));
        string? untrusted = parsed.GetValue(_ark) is null ? presented : null;
        return await _inputs.VerifyAsync(parsed, _console, connection => connection.VerifyReportAsync(request, cancellation), untrusted, _ark.Name, Options, cancellation);
    }

    private Dictionary<string, string> Options => new()
    {
        ["ark"] = _ark.Name,
        ["intermediate"] = _intermediate.Name,
        ["endorsement"] = _endorsement.Name,
        ["crl"] = _crl.Name,
        ["expected.ark"] = _ark.Name,
        ["expected.measurement"] = _measurement.Name,
        ["expected.vmpl"] = _vmpl.Name,
        ["expected.min_tcb"] = _minTcb.Name,
    };

    private static TcbVersion? TcbOf(string? text)
    {
        if (text is null)
            return null;
        string[] words = text.Split('.');
        uint[] parts = [.. words.Select(word => Numbers.TryParse(word, out byte part) ? part : uint.MaxValue)];
        return parts.Length is 4 or 5 && !parts.Contains(uint.MaxValue)
            ? new TcbVersion { BootLoader = parts[0], Tee = parts[1], Snp = parts[2], Microcode = parts[3], Fmc = parts.ElementAtOrDefault(4) }
            : throw new UsageException($"--min-tcb {text}: not a TCB version; give boot loader, TEE, SNP, microcode and perhaps FMC, each from 0 to 255, with points between: 3.0.8.115");
    }
}
