using System.CommandLine;
using System.CommandLine.Parsing;
using System.Security.Cryptography;
using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace VmmService.Vmm;

/// <summary>What is measured, in the words of the command line: <see cref="Snp"/> and <see cref="SnpSvsm"/> give 48 bytes, the other two 32.</summary>
internal static class DigestMode
{
    public const string Snp = "snp";
    public const string SnpSvsm = "snp:svsm";
    public const string SevEs = "seves";
    public const string Sev = "sev";

    public static readonly string[] All = [Snp, SnpSvsm, SevEs, Sev];
}

/// <summary>The files and names of a launch, read and checked.</summary>
internal sealed record DigestLaunch
{
    public required string Mode { get; init; }

    public required FirmwareChoice Firmware { get; init; }

    public FirmwareImage? Svsm { get; init; }

    public ulong VarsSize { get; init; }

    public required VmmFlavor Flavor { get; init; }

    public KernelHashes? Kernel { get; init; }

    public string? KernelPath { get; init; }

    public string? InitrdPath { get; init; }

    public string? Append { get; init; }

    public required int Vcpus { get; init; }

    public CpuModel? Model { get; init; }

    public required CpuSignature Signature { get; init; }

    /// <summary>SEV_FEATURES.</summary>
    public required ulong GuestFeatures { get; init; }

    public bool IsSnp => Mode is DigestMode.Snp or DigestMode.SnpSvsm;

    /// <summary>What an SNP launch measures.</summary>
    public MeasuredLaunch Measured() => Mode == DigestMode.SnpSvsm
        ? SvsmLaunch.Create(Firmware.Image, Svsm!, VarsSize, Vcpus, Signature, GuestFeatures)
        : MeasuredLaunch.Of(SnpLaunchPlan.Create(Firmware.Image, Flavor, Kernel, Vcpus, Signature, GuestFeatures));

    /// <summary>What a legacy launch measures.</summary>
    public LegacyLaunch Legacy() => Mode == DigestMode.Sev
        ? LegacyLaunch.Sev(Firmware.Image, Kernel)
        : LegacyLaunch.SevEs(Firmware.Image, Flavor, Kernel, Vcpus, Signature, GuestFeatures);
}

/// <summary>
/// The options that say what a launch consists of: those of vmm launch snp, with the spellings of sev-snp-measure beside ours, so that its command lines can be kept.
/// </summary>
internal sealed class DigestInputs
{
    private const string DefaultVcpuType = "EPYC-v4";

    private readonly Option<string> _mode = new("--mode")
    {
        Description = "What is launched: snp; snp:svsm, with an SVSM below the firmware; seves or sev, whose digests are SHA-256.",
        HelpName = "MODE",
        DefaultValueFactory = _ => DigestMode.Snp,
    };

    private readonly Option<string?> _firmware = new("--firmware", "--ovmf")
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
        Description = $"CPU model of QEMU, whose signature is measured [default: {DefaultVcpuType}]. Known: {string.Join(", ", CpuModel.All.Select(each => each.Name))}.",
        HelpName = "TYPE",
    };

    private readonly Option<uint?> _vcpuSig = Numbers.Option<uint>("--vcpu-sig", "The signature itself (CPUID 1 EAX), instead of --vcpu-type.", "SIG");
    private readonly Option<string> _vmm = new("--vmm", "--vmm-type")
    {
        Description = $"Whose way of launching: {string.Join("; ", VmmFlavor.All.Select(each => $"{each.Name} ({each.Summary})"))}.",
        HelpName = "VMM",
        DefaultValueFactory = _ => VmmFlavor.Qemu.Name,
    };

    private readonly Option<ulong?> _guestFeatures = Numbers.Option<ulong>(
        "--guest-features", "SEV_FEATURES of the vCPUs. [default: 0x1 for SNP, 0 for SEV-ES, where 0x20 is debug swap]", "MASK");

    private readonly Option<string?> _svsm = new("--svsm") { Description = "SVSM image, for --mode snp:svsm.", HelpName = "FILE" };
    private readonly Option<ulong?> _varsSize = Numbers.Option<ulong>("--vars-size", "Bytes of the firmware's variable store, for --mode snp:svsm.", "BYTES");

    /// <summary>Adds the options, and the checks of how they go together.</summary>
    public void AddTo(Command command)
    {
        Option[] options = [_mode, _firmware, _kernel, _initrd, _append, _vcpus, _vcpuType, _vcpuSig, _vmm, _guestFeatures, _svsm, _varsSize];
        foreach (Option option in options)
            command.Add(option);
        command.Validators.Add(Check);
    }

    /// <summary>The options that were given, by name.</summary>
    public IEnumerable<string> Given(CommandResult result) =>
        new Option[] { _mode, _firmware, _kernel, _initrd, _append, _vcpus, _vcpuType, _vcpuSig, _vmm, _guestFeatures, _svsm, _varsSize }
            .Where(option => result.GetResult(option) is { Implicit: false })
            .Select(option => option.Name);

    /// <summary>Reads what the command line names.</summary>
    /// <exception cref="LaunchInputException">A file or a name cannot be used.</exception>
    public async Task<DigestLaunch> ReadAsync(ParseResult parsed, CancellationToken cancellation)
    {
        string mode = parsed.GetRequiredValue(_mode).ToLowerInvariant();
        string? kernel = parsed.GetValue(_kernel);
        string? initrd = parsed.GetValue(_initrd);
        string? append = parsed.GetValue(_append);
        CpuModel? model = parsed.GetValue(_vcpuSig) is null ? CpuModel.Find(parsed.GetValue(_vcpuType) ?? DefaultVcpuType) : null;
        return new DigestLaunch
        {
            Mode = mode,
            Firmware = await FirmwareChoice.MakeAsync(parsed.GetValue(_firmware), withKernel: kernel is not null, FirmwareChoice.UsualPlaces, cancellation),
            Svsm = parsed.GetValue(_svsm) is { } svsm ? await FirmwareImage.LoadAsync(svsm, cancellation) : null,
            VarsSize = parsed.GetValue(_varsSize) ?? 0,
            Flavor = VmmFlavor.Find(parsed.GetRequiredValue(_vmm)),
            Kernel = await KernelHashes.FromFilesAsync(kernel, initrd, append, cancellation),
            KernelPath = kernel,
            InitrdPath = initrd,
            Append = append,
            Vcpus = (int)Math.Min(parsed.GetValue(_vcpus) ?? 1, int.MaxValue),
            Model = model,
            Signature = model?.Signature ?? new CpuSignature(parsed.GetValue(_vcpuSig)!.Value),
            GuestFeatures = parsed.GetValue(_guestFeatures) ?? (mode is DigestMode.SevEs or DigestMode.Sev ? 0 : SnpLaunchPlan.SnpActive),
        };
    }

    private void Check(CommandResult result)
    {
        if (result.GetResult(_vcpuType) is not null && result.GetResult(_vcpuSig) is not null)
            result.AddError("--vcpu-type and --vcpu-sig say the same thing twice; give one of them");

        foreach (Option<string?> option in (Option<string?>[])[_initrd, _append])
        {
            if (result.GetResult(option) is not null && result.GetResult(_kernel) is null)
                result.AddError($"{option.Name} belongs to a kernel; give --kernel too, or leave it out");
        }

        string mode = (result.GetValue(_mode) ?? DigestMode.Snp).ToLowerInvariant();
        if (!DigestMode.All.Contains(mode))
            result.AddError($"--mode {mode} is not known; known are {string.Join(", ", DigestMode.All)}");

        bool svsm = mode == DigestMode.SnpSvsm;
        foreach (Option option in (Option[])[_svsm, _varsSize])
        {
            if (!svsm && result.GetResult(option) is not null)
                result.AddError($"{option.Name} is for --mode {DigestMode.SnpSvsm}; give that too, or leave it out");
            if (svsm && result.GetResult(option) is null)
                result.AddError($"--mode {DigestMode.SnpSvsm} needs {option.Name}");
        }

        foreach (Option option in (Option[])[_kernel, _vmm])
        {
            if (svsm && result.GetResult(option) is { Implicit: false })
                result.AddError($"{option.Name} does not go with --mode {DigestMode.SnpSvsm}: no VMM is known that measures a kernel beside an SVSM, or launches one in another way than QEMU; leave it out");
        }
    }
}

/// <summary>Hashes as the reports have them.</summary>
internal static class Sha256Hex
{
    public static string Of(ReadOnlySpan<byte> bytes) => Convert.ToHexStringLower(SHA256.HashData(bytes));
}
