using System.CommandLine;
using System.Security.Cryptography;
using System.Text.Json;
using VmmService.Client;
using VmmService.Client.Launch;
using VmmService.Client.Launching;

namespace VmmService.Vmm;

/// <summary>vmm launch sev and vmm launch seves: a launch in place, and what its owner gets to check.</summary>
internal sealed class LaunchSevCommand
{
    private const string DefaultVcpuType = "EPYC-v4";

    private static readonly JsonSerializerOptions Json = new() { PropertyNamingPolicy = JsonNamingPolicy.CamelCase, WriteIndented = true };

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
    private readonly Option<string?> _profile = new("--profile")
    {
        Description = "Kernel generation of the host, see `vmm profiles`. Without it the daemon's default.",
        HelpName = "PROFILE",
    };

    private readonly Option<ulong?> _seed = Numbers.Option<ulong>("--seed", "Seed of the host: keys and nonces come from it.", "N", 0);
    private readonly Option<string?> _server = InfoCommands.ServerOption();
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object.");

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
        Option[] always = [it._firmware, it._kernel, it._initrd, it._append, it._vcpus, it._policy, it._profile, it._seed, it._server, it._json];
        // Registers are measured where they are encrypted.
        Option[] ofEs = es ? [it._vcpuType, it._vcpuSig, it._vmm] : [];
        foreach (Option option in always.Concat(ofEs))
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
        SevLaunchPlan plan = SevLaunchPlan.Create(
            _es,
            firmware.Image,
            _es ? VmmFlavor.Find(parsed.GetRequiredValue(_vmm)) : VmmFlavor.Qemu,
            await KernelHashes.FromFilesAsync(kernel, parsed.GetValue(_initrd), parsed.GetValue(_append), cancellation),
            (int)Math.Min(parsed.GetValue(_vcpus) ?? 1, int.MaxValue),
            Signature(parsed));

        await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation);
        await using RemoteHost host = await session.Connection.CreateHostAsync(parsed.GetValue(_profile), parsed.GetValue(_seed) ?? 0, cancellation: cancellation);
        await using RemoteProcess process = await host.CreateProcessAsync(cancellation);
        await using LaunchedSevGuest guest = await LaunchProgressBar.ShowAsync(
            _console, !parsed.GetValue(_json), progress => SevLauncher.LaunchAsync(process, plan, parsed.GetValue(_policy), progress, cancellation));

        if (parsed.GetValue(_json))
            await _console.Output.WriteLineAsync(JsonSerializer.Serialize(Report(guest, firmware, host, session.Name), Json));
        else
            Write(guest, firmware, host, session.Name);
        return ExitCode.Ok;
    }

    private CpuSignature Signature(ParseResult parsed)
    {
        if (!_es)
            return CpuModel.Find(DefaultVcpuType).Signature;
        return parsed.GetValue(_vcpuSig) is { } signature ? new CpuSignature(signature) : CpuModel.Find(parsed.GetValue(_vcpuType) ?? DefaultVcpuType).Signature;
    }

    private static object Report(LaunchedSevGuest guest, FirmwareChoice firmware, RemoteHost host, string server) => new
    {
        guest.LaunchDigest,
        VmType = guest.Plan.Es ? "SEV_ES" : "SEV",
        Measure = Convert.ToHexStringLower(guest.Measure.Span),
        Nonce = Convert.ToHexStringLower(guest.Nonce.Span),
        Policy = Numbers.Hex(guest.Policy),
        host.Profile,
        host.Seed,
        Server = server,
        Firmware = new LaunchReport.FirmwareEntry(firmware.Path, firmware.Image.Size, Convert.ToHexStringLower(SHA256.HashData(firmware.Image.Bytes.Span)), firmware.Source),
        Vcpus = guest.Vcpus.Count,
    };

    private void Write(LaunchedSevGuest guest, FirmwareChoice firmware, RemoteHost host, string server)
    {
        TextWriter output = _console.Output;
        output.WriteLine($"Launch digest   {guest.LaunchDigest}");
        output.WriteLine($"Measurement     {Convert.ToHexStringLower(guest.Measure.Span)}");
        output.WriteLine($"Nonce           {Convert.ToHexStringLower(guest.Nonce.Span)}");
        output.WriteLine();
        output.WriteLine($"Firmware        {firmware.Describe()}");
        output.WriteLine($"                {firmware.Image.Size} bytes, sha256 {Convert.ToHexStringLower(SHA256.HashData(firmware.Image.Bytes.Span))}");
        output.WriteLine($"vCPUs           {guest.Vcpus.Count}{(guest.Plan.Es ? ", measured" : ", not measured")}");
        output.WriteLine($"Policy          {Numbers.Hex(guest.Policy)}");
        output.WriteLine($"Kernel profile  {host.Profile}, seed {host.Seed}, daemon {server}");
    }
}
