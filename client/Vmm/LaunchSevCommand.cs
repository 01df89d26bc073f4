using System.CommandLine;
using System.Security.Cryptography;
using System.Text.Json;
using System.Text.Json.Serialization;
using VmmService.Client;
using VmmService.Client.Launch;
using VmmService.Client.Launching;

namespace VmmService.Vmm;

/// <summary>vmm launch sev and vmm launch seves: a launch in place, and what its owner gets to check.</summary>
internal sealed class LaunchSevCommand
{
    private const string DefaultVcpuType = "EPYC-v4";

    private static readonly JsonSerializerOptions Json = new() { PropertyNamingPolicy = JsonNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull, WriteIndented = true };

    private readonly VmmConsole _console;
    private readonly bool _es;
    private readonly Option<string?> _firmware = new("--firmware")
    {
        Description = "Firmware image (OVMF). Without it: the one installed on this machine, else a small generated sample; the output says which.",
        HelpName = "FILE",
    };

    private readonly Option<string?> _kernel = new("--kernel") { Description = "Kernel of a measured direct boot.", HelpName = "FILE" };
    private readonly Option<string?> _initrd = new("--initrd") { Description = "Initial RAM disk; needs --kernel.", HelpName = "FILE" };
    private readonly Option<string?> _append = new("--append") { Description = "Command line of the kernel; needs --kernel.", HelpName = "STRING" };
    private readonly Option<uint?> _vcpus = Numbers.Option<uint>("--vcpus", $"Number of vCPUs, 1 to {SnpLaunchPlan.MaxVcpus}.", "N", 1);
    private readonly Option<string?> _vcpuType = new("--vcpu-type") { Description = $"CPU model of QEMU, whose signature is measured [default: {DefaultVcpuType}].", HelpName = "TYPE" };
    private readonly Option<uint?> _vcpuSig = Numbers.Option<uint>("--vcpu-sig", "The signature itself (CPUID 1 EAX), instead of --vcpu-type.", "SIG");
    private readonly Option<string> _vmm = new("--vmm")
    {
        Description = $"Whose vCPU registers: {string.Join(", ", VmmFlavor.All.Select(each => each.Name))}.",
        HelpName = "VMM",
        DefaultValueFactory = _ => VmmFlavor.Qemu.Name,
    };

    private readonly Option<uint?> _policy;
    private readonly Option<string?> _secret = new("--secret")
    {
        Description = "A secret for the guest: its owner makes a session for the platform, checks the measurement, and has the secret put into the firmware's secret area.",
        HelpName = "FILE",
    };

    private readonly Option<string?> _profile = new("--profile")
    {
        Description = "Kernel generation of the host, see `vmm profiles`. Without it the daemon's default.",
        HelpName = "PROFILE",
    };

    private readonly Option<ulong?> _seed = Numbers.Option<ulong>("--seed", "Seed of the host: keys and nonces come from it.", "N", 0);
    private readonly Option<string?> _server = InfoCommands.ServerOption();
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object with all of it.");
    private readonly Option<bool> _quiet = new("--quiet") { Description = "Show no progress." };

    private LaunchSevCommand(VmmConsole console, bool es)
    {
        _console = console;
        _es = es;
        _policy = Numbers.Option<uint>("--policy", $"Guest policy: 1 no debugging, 2 no key sharing, 4 encrypted state. [default: 0x{SevLauncher.DefaultPolicy(es):x}]", "MASK");
    }

    public static Command Create(VmmConsole console, bool es)
    {
        var it = new LaunchSevCommand(console, es);
        var command = new Command(
            es ? "seves" : "sev",
            $"""
            Launch {(es ? "an SEV-ES" : "a SEV")} guest ioctl by ioctl, encrypting its memory in place, and print its launch digest and the measurement that its owner checks.

            Numbers are decimal, or hexadecimal with 0x.

            {ExitCode.Help}
            """);
        // Registers are measured where they are encrypted. The order is that of vmm launch snp.
        Option[] ofEs = es ? [it._vcpuType, it._vcpuSig, it._vmm] : [];
        foreach (Option option in (Option[])[it._json, it._quiet, it._firmware, it._kernel, it._initrd, it._append, it._vcpus, .. ofEs, it._policy, it._secret, it._profile, it._seed, it._server])
            command.Add(option);

        command.Validators.Add(result =>
        {
            if (es && result.GetResult(it._vcpuType) is not null && result.GetResult(it._vcpuSig) is not null)
                result.AddError("--vcpu-type and --vcpu-sig say the same thing twice; give one of them");

            foreach (Option<string?> option in (Option<string?>[])[it._initrd, it._append])
            {
                if (result.GetResult(option) is not null && result.GetResult(it._kernel) is null)
                    result.AddError($"{option.Name} belongs to a kernel; give --kernel too, or leave it out");
            }
        });
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        string? kernel = parsed.GetValue(_kernel);
        FirmwareChoice firmware = await FirmwareChoice.MakeAsync(parsed.GetValue(_firmware), withKernel: kernel is not null, FirmwareChoice.UsualPlaces, cancellation);
        CpuModel? model = _es && parsed.GetValue(_vcpuSig) is not null ? null : CpuModel.Find((_es ? parsed.GetValue(_vcpuType) : null) ?? DefaultVcpuType);
        SevLaunchPlan plan = SevLaunchPlan.Create(
            _es,
            firmware.Image,
            _es ? VmmFlavor.Find(parsed.GetRequiredValue(_vmm)) : VmmFlavor.Qemu,
            await KernelHashes.FromFilesAsync(kernel, parsed.GetValue(_initrd), parsed.GetValue(_append), cancellation),
            (int)Math.Min(parsed.GetValue(_vcpus) ?? 1, int.MaxValue),
            model?.Signature ?? new CpuSignature(parsed.GetValue(_vcpuSig)!.Value));
        string? secret = parsed.GetValue(_secret);
        var options = new SevLaunchOptions { Policy = parsed.GetValue(_policy), Secret = secret is null ? default : await ReadSecretAsync(secret, cancellation) };

        await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation);
        await using RemoteHost host = await session.Connection.CreateHostAsync(parsed.GetValue(_profile), parsed.GetValue(_seed) ?? 0, cancellation: cancellation);
        await using RemoteProcess process = await host.CreateProcessAsync(cancellation);
        bool json = parsed.GetValue(_json);
        await using LaunchedSevGuest guest = await LaunchProgressBar.ShowAsync(
            _console, !json && !parsed.GetValue(_quiet), progress => SevLauncher.LaunchAsync(process, plan, options, progress, cancellation));

        Report report = ReportOf(guest, new Inputs(firmware, kernel, parsed.GetValue(_initrd), parsed.GetValue(_append), model, secret), host, session.Name);
        if (json)
            await _console.Output.WriteLineAsync(JsonSerializer.Serialize(report, Json));
        else
            Write(report, firmware);
        return ExitCode.Ok;
    }

    private static async Task<byte[]> ReadSecretAsync(string path, CancellationToken cancellation)
    {
        // What firmware takes in one packet.
        const int most = 16384;
        var file = new FileInfo(path);
        if (!file.Exists)
            throw new LaunchInputException($"The secret {path} (--secret) is not there.");
        if (file.Length is 0 or > most)
            throw new LaunchInputException($"The secret {path} (--secret) has {file.Length} bytes; it has 1 to {most}.");
        return await File.ReadAllBytesAsync(path, cancellation);
    }

    private static Report ReportOf(LaunchedSevGuest guest, Inputs inputs, RemoteHost host, string server)
    {
        FirmwareImage image = inputs.Firmware.Image;
        bool measuresSignature = guest.Plan.Es && guest.Plan.Flavor.MeasuresSignature;
        return new Report(
            guest.LaunchDigest,
            guest.Plan.Es ? "SEV_ES" : "SEV",
            Convert.ToHexStringLower(guest.Measure.Span),
            Convert.ToHexStringLower(guest.Nonce.Span),
            Numbers.Hex(guest.Policy),
            host.Profile,
            host.Seed,
            server,
            new LaunchReport.FirmwareEntry(inputs.Firmware.Path, image.Size, Convert.ToHexStringLower(SHA256.HashData(image.Bytes.Span)), inputs.Firmware.Source),
            LaunchReport.FileOf(inputs.KernelPath, guest.Plan.Kernel?.Kernel),
            LaunchReport.FileOf(inputs.InitrdPath, guest.Plan.Kernel?.Initrd),
            inputs.Append,
            guest.Vcpus.Count,
            guest.Plan.Es ? guest.Plan.Flavor.Name : null,
            measuresSignature ? inputs.Model?.Name : null,
            measuresSignature ? guest.Plan.Signature.ToString() : null,
            inputs.SecretPath is null ? null : new SecretEntry(inputs.SecretPath, Numbers.Hex(image.SecretArea!.Value.Base)));
    }

    private void Write(Report report, FirmwareChoice firmware)
    {
        TextWriter output = _console.Output;
        output.WriteLine($"Launch digest   {report.LaunchDigest}");
        output.WriteLine($"Measurement     {report.Measure}");
        output.WriteLine($"Nonce           {report.Nonce}");
        output.WriteLine();
        output.WriteLine($"Firmware        {firmware.Describe()}");
        output.WriteLine($"                {report.Firmware.Size} bytes, sha256 {report.Firmware.Sha256}");
        LaunchText.WriteFile(output, "Kernel", report.Kernel);
        LaunchText.WriteFile(output, "Initrd", report.Initrd);
        if (report.Append is not null)
            output.WriteLine($"Command line    {report.Append}");
        if (report.Vmm is not null)
            output.WriteLine($"VMM             {report.Vmm}");
        output.WriteLine($"vCPUs           {report.Vcpus}{LaunchText.VcpuKind(report.VcpuType, report.VcpuSignature)}{(_es ? ", measured" : ", not measured")}");
        output.WriteLine($"Policy          {report.Policy}");
        if (report.Secret is { } secret)
            output.WriteLine($"Secret          {secret.Path}, sent by the owner to {secret.Gpa} after the measurement was accepted");
        output.WriteLine($"Kernel profile  {report.Profile}, seed {report.Seed}, daemon {report.Server}");
    }

    private sealed record Inputs(FirmwareChoice Firmware, string? KernelPath, string? InitrdPath, string? Append, CpuModel? Model, string? SecretPath);

    // The property names are those of --json.
    private sealed record Report(
        string LaunchDigest,
        string VmType,
        string Measure,
        string Nonce,
        string Policy,
        string Profile,
        ulong Seed,
        string Server,
        LaunchReport.FirmwareEntry Firmware,
        LaunchReport.FileEntry? Kernel,
        LaunchReport.FileEntry? Initrd,
        string? Append,
        int Vcpus,
        string? Vmm,
        string? VcpuType,
        string? VcpuSignature,
        SecretEntry? Secret);

    private sealed record SecretEntry(string Path, string Gpa);
}
