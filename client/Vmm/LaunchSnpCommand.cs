using System.CommandLine;
using VmmService.Client;
using VmmService.Client.Launch;
using VmmService.Client.Launching;

namespace VmmService.Vmm;

/// <summary>vmm launch snp: reads the files, plans the launch, has it performed, prints what came out.</summary>
internal sealed class LaunchSnpCommand
{
    private const string DefaultVcpuType = "EPYC-v4";
    private const ulong DefaultPolicy = 0x30000;
    private const ulong DefaultGuestFeatures = 1;

    private readonly VmmConsole _console;
    private readonly Option<string?> _firmware = new("--firmware")
    {
        Description = "Firmware image (OVMF). Without it: the one installed on this machine, else a small generated sample; the output says which.",
        HelpName = "FILE",
    };

    private readonly Option<string?> _kernel = new("--kernel") { Description = "Kernel of a measured direct boot.", HelpName = "FILE" };
    private readonly Option<string?> _initrd = new("--initrd") { Description = "Initial RAM disk; needs --kernel.", HelpName = "FILE" };
    private readonly Option<string?> _append = new("--append") { Description = "Command line of the kernel; needs --kernel.", HelpName = "STRING" };
    private readonly Option<uint?> _vcpus = Numbers.Option<uint>("--vcpus", $"Number of vCPUs, 1 to {SnpLaunchPlan.MaxVcpus}.", "N", 1);
    private readonly Option<string?> _vcpuType = new("--vcpu-type")
    {
        Description = $"CPU model of QEMU, whose signature is measured [default: {DefaultVcpuType}]. Only QEMU measures it. Known: {string.Join(", ", CpuModel.All.Select(each => each.Name))}.",
        HelpName = "TYPE",
    };

    private readonly Option<uint?> _vcpuSig = Numbers.Option<uint>("--vcpu-sig", "The signature itself (CPUID 1 EAX), instead of --vcpu-type.", "SIG");
    private readonly Option<string> _vmm = new("--vmm")
    {
        Description = $"Whose way of launching: {string.Join("; ", VmmFlavor.All.Select(each => $"{each.Name} ({each.Summary})"))}.",
        HelpName = "VMM",
        DefaultValueFactory = _ => VmmFlavor.Qemu.Name,
    };

    private readonly Option<ulong?> _policy = Numbers.Option<ulong>("--policy", "Guest policy; bit 17 must be set, bit 16 allows SMT. [default: 0x30000]", "MASK");
    private readonly Option<ulong?> _guestFeatures = Numbers.Option<ulong>(
        "--guest-features", "SEV_FEATURES of the vCPUs; bit 0 must be set, 0x21 adds debug swap. [default: 0x1]", "MASK");

    private readonly Option<string?> _svsm = new("--svsm") { Description = "SVSM image, launched below the firmware and entered first; needs --vars-size.", HelpName = "FILE" };
    private readonly Option<ulong?> _varsSize = Numbers.Option<ulong>("--vars-size", "Bytes of the firmware's variable store, between the firmware and the SVSM.", "BYTES");

    private readonly Option<ulong?> _memory = Numbers.Option<ulong>(
        "--memory", "RAM of the guest in bytes; not measured. Without it as much as the firmware's sections need.", "BYTES");

    private readonly Option<string?> _profile = new("--profile")
    {
        Description = "Kernel generation of the host, see `vmm profiles`. Without it the daemon's default.",
        HelpName = "PROFILE",
    };

    private readonly Option<ulong?> _seed = Numbers.Option<ulong>("--seed", "Seed of the host: keys and ids come from it.", "N", 0);
    private readonly Option<string?> _server = InfoCommands.ServerOption();
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object with all of it, the whole transcript included.");
    private readonly Option<bool> _transcript = new("--transcript") { Description = "Print every measured step, not runs of alike ones." };
    private readonly Option<bool> _quiet = new("--quiet") { Description = "Show no progress." };

    internal LaunchSnpCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new LaunchSnpCommand(console);
        var command = new Command(
            "snp",
            $"""
            Launch an SEV-SNP guest ioctl by ioctl the way a VMM does, and print its launch digest, its memory and what was measured.

            Numbers are decimal, or hexadecimal with 0x.

            {ExitCode.Help}
            """)
        {
            it._json, it._transcript, it._quiet,
        };
        it.AddGuestOptions(command);
        command.Validators.Add(result =>
        {
            if (result.GetResult(it._json) is not null && result.GetResult(it._transcript) is not null)
                result.AddError("--json has the whole transcript already; leave --transcript out");
        });
        command.SetAction(it.RunAsync);
        return command;
    }

    /// <summary>Adds what says which guest is launched, and where, for commands that launch one.</summary>
    internal void AddGuestOptions(Command command)
    {
        Option[] options =
        [
            _firmware, _kernel, _initrd, _append, _vcpus, _vcpuType, _vcpuSig, _vmm, _policy, _guestFeatures, _svsm, _varsSize, _memory, _profile, _seed, _server,
        ];
        foreach (Option option in options)
            command.Add(option);

        command.Validators.Add(result =>
        {
            if (result.GetResult(_vcpuType) is not null && result.GetResult(_vcpuSig) is not null)
                result.AddError("--vcpu-type and --vcpu-sig say the same thing twice; give one of them");

            bool svsm = result.GetResult(_svsm) is not null;
            if (svsm != result.GetResult(_varsSize) is not null)
                result.AddError("--svsm and --vars-size belong together; give both, or neither");
            foreach (Option option in (Option[])[_kernel, _vmm])
            {
                if (svsm && result.GetResult(option) is { Implicit: false })
                    result.AddError($"{option.Name} does not go with --svsm: no VMM is known that measures a kernel beside an SVSM, or launches one in another way than QEMU; leave it out");
            }

            foreach (Option<string?> option in (Option<string?>[])[_initrd, _append])
            {
                if (result.GetResult(option) is not null && result.GetResult(_kernel) is null)
                    result.AddError($"{option.Name} belongs to a kernel; give --kernel too, or leave it out");
            }
        });
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        bool json = parsed.GetValue(_json);
        await using Launched launched = await LaunchAsync(parsed, !json && !parsed.GetValue(_quiet), machine: null, cancellation);
        (LaunchedSnpGuest guest, RemoteHost host, DaemonSession session, Inputs inputs) = launched;
        LaunchReport report = LaunchReport.Of(guest, inputs, host, session.Name);
        if (json)
            await _console.Output.WriteLineAsync(report.ToJson());
        else
            LaunchText.Write(_console.Output, report, inputs.Firmware.Describe(), everyStep: parsed.GetValue(_transcript));
        return ExitCode.Ok;
    }

    /// <summary>Launches the guest that the options describe on a new host.</summary>
    internal async Task<Launched> LaunchAsync(ParseResult parsed, bool showProgress, V1.MachineConfig? machine, CancellationToken cancellation)
    {
        Inputs inputs = await ReadAsync(parsed, cancellation);
        var options = new SnpLaunchOptions
        {
            Policy = parsed.GetValue(_policy) ?? DefaultPolicy,
            MemoryBytes = parsed.GetValue(_memory),
        };
        ulong seed = parsed.GetValue(_seed) ?? 0;

        var held = new HeldResources();
        try
        {
            DaemonSession session = held.Hold(await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation));
            RemoteHost host = held.Hold(await session.Connection.CreateHostAsync(parsed.GetValue(_profile), seed, machine, cancellation: cancellation));
            RemoteProcess process = held.Hold(await host.CreateProcessAsync(cancellation));
            LaunchedSnpGuest guest = held.Hold(await LaunchProgressBar.ShowAsync(
                _console, showProgress, progress => SnpLauncher.LaunchAsync(process, inputs.Plan, options, progress, cancellation)));
            return new Launched(guest, host, session, inputs, held);
        }
        catch
        {
            await held.DisposeAsync();
            throw;
        }
    }

    /// <summary>The daemon that the options name.</summary>
    internal string? ServerOf(ParseResult parsed) => parsed.GetValue(_server);

    private async Task<Inputs> ReadAsync(ParseResult parsed, CancellationToken cancellation)
    {
        string? kernel = parsed.GetValue(_kernel);
        string? initrd = parsed.GetValue(_initrd);
        string? append = parsed.GetValue(_append);
        VmmFlavor flavor = VmmFlavor.Find(parsed.GetRequiredValue(_vmm));
        CpuModel? model = parsed.GetValue(_vcpuSig) is null ? CpuModel.Find(parsed.GetValue(_vcpuType) ?? DefaultVcpuType) : null;
        FirmwareChoice firmware = await FirmwareChoice.MakeAsync(
            parsed.GetValue(_firmware), withKernel: kernel is not null, FirmwareChoice.UsualPlaces, cancellation);
        int vcpus = (int)Math.Min(parsed.GetValue(_vcpus) ?? 1, int.MaxValue);
        CpuSignature signature = model?.Signature ?? new CpuSignature(parsed.GetValue(_vcpuSig)!.Value);
        ulong features = parsed.GetValue(_guestFeatures) ?? DefaultGuestFeatures;
        SnpLaunchPlan plan = parsed.GetValue(_svsm) is { } svsm
            ? SnpLaunchPlan.CreateWithSvsm(firmware.Image, await FirmwareImage.LoadAsync(svsm, cancellation), parsed.GetValue(_varsSize)!.Value, vcpus, signature, features)
            : SnpLaunchPlan.Create(firmware.Image, flavor, await KernelHashes.FromFilesAsync(kernel, initrd, append, cancellation), vcpus, signature, features);
        return new Inputs(plan, firmware, kernel, initrd, append, model);
    }

    /// <summary>What the command line named, read and put together.</summary>
    internal sealed record Inputs(
        SnpLaunchPlan Plan, FirmwareChoice Firmware, string? KernelPath, string? InitrdPath, string? Append, CpuModel? Model);

    /// <summary>A guest that was launched, with everything that it needs; disposing ends them, innermost first.</summary>
    internal sealed record Launched(LaunchedSnpGuest Guest, RemoteHost Host, DaemonSession Session, Inputs Inputs, HeldResources Held) : IAsyncDisposable
    {
        public void Deconstruct(out LaunchedSnpGuest guest, out RemoteHost host, out DaemonSession session, out Inputs inputs) =>
            (guest, host, session, inputs) = (Guest, Host, Session, Inputs);

        public ValueTask DisposeAsync() => Held.DisposeAsync();
    }
}
