using System.CommandLine;
using System.Security.Cryptography;
using Google.Protobuf;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm report: launches a guest, or takes one that runs on a daemon, has firmware report on it, and prints the report or hands it to verifiers as files.</summary>
internal sealed class ReportCommand
{
    private readonly VmmConsole _console;
    private readonly LaunchSnpCommand _launch;
    private readonly Option<string?> _host = new("--host") { Description = "Id of the host of a running guest; needs --pid, --fd and --server, and nothing is launched.", HelpName = "ID" };
    private readonly Option<uint?> _pid = Numbers.Option<uint>("--pid", "Its VMM process.", "PID");
    private readonly Option<uint?> _fd = Numbers.Option<uint>("--fd", "Its VM fd.", "FD");
    private readonly Option<string?> _reportData = new("--report-data") { Description = "64 bytes that the report carries, as hexadecimal digits; fewer are filled up with zeros.", HelpName = "HEX" };
    private readonly Option<uint?> _vmpl = Numbers.Option<uint>("--vmpl", "VMPL that the report is for, 0 to 3.", "N", 0);
    private readonly Option<string?> _key = new("--key") { Description = "Key that signs: vcek or vlek. Without it the VLEK if one is loaded, else the VCEK.", HelpName = "KEY" };
    private readonly Option<string?> _product = new("--product") { Description = $"Processor of the launched guest's host: {string.Join(", ", Products)}. [default: Milan]", HelpName = "NAME" };
    private readonly Option<uint?> _reportVersion = Numbers.Option<uint>("--report-version", "Version of reports of the launched guest's host: 2, 3 or 5.", "N");
    private readonly Option<string?> _vlek = new("--vlek-csp-id") { Description = "Load the VLEK of this cloud provider into the launched guest's host.", HelpName = "CSP" };
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print the decoded report as one JSON object.");
    private readonly Option<string?> _raw = new("--raw") { Description = "Write the report as it is, 1184 bytes, to this file.", HelpName = "FILE" };
    private readonly Option<string?> _certs = new("--certs")
    {
        Description = "Write ark.pem, ask.pem (asvk.pem), vcek.pem (vlek.pem) and crl.der into this folder.",
        HelpName = "DIR",
    };

    private ReportCommand(VmmConsole console)
    {
        _console = console;
        _launch = new LaunchSnpCommand(console);
    }

    private static IEnumerable<string> Products => Enum.GetNames<EpycProduct>().Skip(1);

    public static Command Create(VmmConsole console)
    {
        var it = new ReportCommand(console);
        var command = new Command(
            "report",
            $"""
            Print the attestation report of an SNP guest: of one that is launched for it as `vmm launch snp` does, or of one that runs on a daemon.

            Numbers are decimal, or hexadecimal with 0x.

            {ExitCode.Help}
            """)
        {
            it._reportData, it._vmpl, it._key, it._json, it._raw, it._certs, it._product, it._reportVersion, it._vlek, it._host, it._pid, it._fd,
        };
        it._launch.AddGuestOptions(command);
        command.Add(ReportVerifyCommand.Create(console));
        command.Validators.Add(result =>
        {
            bool attaches = result.GetResult(it._host) is not null;
            bool complete = result.GetResult(it._pid) is not null && result.GetResult(it._fd) is not null && result.GetResult("--server") is not null;
            if (attaches && !complete)
                result.AddError("--host names a running guest together with --pid, --fd and --server; give all four");
            else if (!attaches && (result.GetResult(it._pid)?.Implicit == false || result.GetResult(it._fd)?.Implicit == false))
                result.AddError("--pid and --fd belong to a running guest; give --host too, or leave them out to launch one");
        });
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        var request = new GetReportRequest
        {
            ReportData = ByteString.CopyFrom(ReportData.Parse(parsed.GetValue(_reportData))),
            Vmpl = parsed.GetValue(_vmpl) ?? 0,
            KeySelection = KeyOf(parsed.GetValue(_key)),
        };
        MachineConfig machine = MachineOf(parsed);
        if (parsed.GetValue(_host) is { } id)
        {
            await using DaemonSession session = await DaemonSession.OpenAsync(_launch.ServerOf(parsed), cancellation);
            await using RemoteHost host = await session.Connection.GetHostAsync(id, cancellation);
            request.Pid = parsed.GetValue(_pid)!.Value;
            request.Fd = (int)Math.Min(parsed.GetValue(_fd)!.Value, int.MaxValue);
            await ReportAsync(parsed, host, request, cancellation);
        }
        else
        {
            await using LaunchSnpCommand.Launched launched = await _launch.LaunchAsync(parsed, showProgress: false, machine, cancellation);
            request.Pid = launched.Guest.Vm.Process.Pid;
            request.Fd = launched.Guest.Vm.Fd;
            await ReportAsync(parsed, launched.Host, request, cancellation);
        }
        return ExitCode.Ok;
    }

    private async Task ReportAsync(ParseResult parsed, RemoteHost host, GetReportRequest request, CancellationToken cancellation)
    {
        SnpReport report = await host.GetReportAsync(request, cancellation);
        if (parsed.GetValue(_raw) is { } file)
            await OutputFile.WriteAsync(file, report.Bytes, cancellation);
        if (parsed.GetValue(_certs) is { } folder)
            await WriteCertificatesAsync(folder, host, request.KeySelection, cancellation);
        if (parsed.GetValue(_json))
            await _console.Output.WriteLineAsync(ReportText.ToJson(report));
        else
            ReportText.Write(_console.Output, report);
    }

    private static async Task WriteCertificatesAsync(string folder, RemoteHost host, KeySelection key, CancellationToken cancellation)
    {
        GetCertificateChainResponse chain = await host.GetCertificateChainAsync(key, cancellation);
        ReadOnlyMemory<byte> crl = await host.GetCrlAsync(cancellation);
        OutputFile.MakeFolder("--certs", folder);
        (string Name, ByteString Der)[] certificates =
        [
            ("ark", chain.Ark), (chain.Vlek ? "asvk" : "ask", chain.Intermediate), (chain.Vlek ? "vlek" : "vcek", chain.Endorsement),
        ];
        foreach ((string name, ByteString der) in certificates)
        {
            byte[] pem = System.Text.Encoding.ASCII.GetBytes(PemEncoding.WriteString("CERTIFICATE", der.Span) + "\n");
            await OutputFile.WriteAsync(Path.Combine(folder, name + ".pem"), pem, cancellation);
        }
        await OutputFile.WriteAsync(Path.Combine(folder, "crl.der"), crl, cancellation);
    }

    private static KeySelection KeyOf(string? key) => key?.ToUpperInvariant() switch
    {
        null => KeySelection.VlekIfLoaded,
        "VCEK" => KeySelection.Vcek,
        "VLEK" => KeySelection.Vlek,
        _ => throw new UsageException($"--key {key}: not a key; use vcek or vlek"),
    };

    private MachineConfig MachineOf(ParseResult parsed)
    {
        var machine = new MachineConfig();
        if (parsed.GetValue(_product) is { } product)
        {
            if (!Products.Contains(product, StringComparer.Ordinal))
                throw new UsageException($"--product {product}: not a processor; use one of {string.Join(", ", Products)}");
            machine.Product = Enum.Parse<EpycProduct>(product);
        }
        machine.Attestation = new AttestationConfig { VlekCspId = parsed.GetValue(_vlek) ?? "" };
        if (parsed.GetValue(_reportVersion) is { } version)
            machine.Attestation.ReportVersion = version;
        return machine;
    }
}
