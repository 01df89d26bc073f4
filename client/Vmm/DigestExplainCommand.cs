using System.CommandLine;
using System.Text.Json;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.Client.Launching;

namespace VmmService.Vmm;

/// <summary>vmm digest explain: what an unexpected digest is of.</summary>
internal sealed class DigestExplainCommand
{
    private readonly VmmConsole _console;
    private readonly Option<string> _target = new("--target")
    {
        Description = "The digest to explain: 96 hexadecimal digits of an SNP launch, 64 of an SEV or SEV-ES launch.",
        HelpName = "HEX",
        Required = true,
    };

    private readonly Option<string[]> _firmware = new("--firmware", "--ovmf")
    {
        Description = "Firmware image; may be given several times, the likeliest first. Without it: those installed on this machine.",
        HelpName = "FILE",
    };

    private readonly Option<string?> _kernel = new("--kernel") { Description = "Kernel of a measured direct boot.", HelpName = "FILE" };
    private readonly Option<string?> _initrd = new("--initrd") { Description = "Initial RAM disk; needs --kernel.", HelpName = "FILE" };
    private readonly Option<string?> _append = new("--append") { Description = "Command line of the kernel; needs --kernel.", HelpName = "STRING" };
    private readonly Option<string?> _vcpus = new("--vcpus") { Description = $"Number of vCPUs. [default: 1, and all up to {KnobLists.UsualVcpus}]", HelpName = "LIST" };
    private readonly Option<string?> _vcpuTypes = new("--vcpu-types", "--vcpu-type") { Description = "CPU models of QEMU, or signatures. [default: EPYC-v4, and all]", HelpName = "LIST" };
    private readonly Option<string?> _guestFeatures = new("--guest-features") { Description = "SEV_FEATURES of the vCPUs. [default: 0x1, and all known]", HelpName = "LIST" };
    private readonly Option<string?> _vmm = new("--vmm", "--vmm-type") { Description = $"VMMs: {string.Join(", ", VmmFlavor.All.Select(each => each.Name))}. [default: qemu, and all]", HelpName = "LIST" };
    private readonly Option<string[]> _keep = new("--keep") { Description = $"Do not vary this; may be given several times. One of: {string.Join(", ", KnobLists.Keepable)}.", HelpName = "KNOB" };
    private readonly Option<ulong?> _max = Numbers.Option<ulong>("--max-combinations", "Give up after so many.", "N", DigestSearch.DefaultMaxCombinations);
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object.");
    private readonly Option<bool> _quiet = new("--quiet") { Description = "Show no progress." };

    private DigestExplainCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new DigestExplainCommand(console);
        var command = new Command(
            "explain",
            $"""
            Find out what a launch digest is of: search what people get wrong (number and type of vCPUs, guest features, kernel hashes, command line, VMM, firmware, sections and
            their order, zero pages) for the combination that gives it, the fewest changes from the options first.

            A LIST is values with commas, numbers also as ranges (1-8), or all. A single value is what you believe: it is tried first, and all known values after it.
            Several values are the only ones tried. Numbers are decimal, or hexadecimal with 0x.

            Exit codes:
              0    found
              1    no combination that was tried gives the digest
              2    the command line or an input file cannot be used
              130  interrupted
            """)
        {
            it._target, it._firmware, it._kernel, it._initrd, it._append, it._vcpus, it._vcpuTypes, it._guestFeatures, it._vmm, it._keep, it._max, it._json, it._quiet,
        };
        command.Validators.Add(result =>
        {
            foreach (Option<string?> option in (Option<string?>[])[it._initrd, it._append])
            {
                if (result.GetResult(option) is not null && result.GetResult(it._kernel) is null)
                    result.AddError($"{option.Name} belongs to a kernel; give --kernel too, or leave it out");
            }
        });
        command.Add(DigestTdxExplainCommand.Create(console));
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        byte[] target = KnobLists.Target(parsed.GetRequiredValue(_target));
        ulong max = parsed.GetValue(_max) ?? DigestSearch.DefaultMaxCombinations;
        if (max == 0)
            throw new UsageException("--max-combinations 0: nothing would be tried; give at least 1");

        DigestQuestion question = await QuestionAsync(parsed, snp: target.Length == Hash384.Size, cancellation);
        bool json = parsed.GetValue(_json);
        DigestSearchResult result = await LaunchProgressBar.ShowAsync(
            _console,
            !json && !parsed.GetValue(_quiet),
            progress => Task.Run(() => DigestSearch.Run(target, question, max, progress is null ? null : new Bar(progress), cancellation), cancellation));

        string digest = Convert.ToHexStringLower(target);
        if (json)
            await _console.Output.WriteLineAsync(JsonSerializer.Serialize(ExplainReport.Of(digest, question, result), DigestReport.Json));
        else
            ExplainText.Write(_console.Output, digest, question, result);
        return result.Finding is null ? ExitCode.Different : ExitCode.Ok;
    }

    private async Task<DigestQuestion> QuestionAsync(ParseResult parsed, bool snp, CancellationToken cancellation)
    {
        string? kernel = parsed.GetValue(_kernel);
        string? initrd = parsed.GetValue(_initrd);
        string? append = parsed.GetValue(_append);
        return new DigestQuestion
        {
            Firmwares = await FirmwaresAsync(parsed.GetValue(_firmware) ?? [], kernel is not null, cancellation),
            Flavors = KnobLists.Flavors(parsed.GetValue(_vmm)),
            Kernel = await KernelHashes.FromFilesAsync(kernel, initrd, append, cancellation),
            HasInitrd = initrd is not null,
            Append = append,
            Signatures = KnobLists.Signatures(parsed.GetValue(_vcpuTypes)),
            SevFeatures = KnobLists.Features(parsed.GetValue(_guestFeatures), snp),
            Vcpus = KnobLists.Vcpus(parsed.GetValue(_vcpus)),
            Keep = KnobLists.Keep(parsed.GetValue(_keep) ?? []),
        };
    }

    private static async Task<IReadOnlyList<FirmwareImage>> FirmwaresAsync(string[] paths, bool withKernel, CancellationToken cancellation)
    {
        List<FirmwareImage> images = [];
        foreach (string path in paths)
            images.Add(await FirmwareImage.LoadAsync(path, cancellation));
        if (images.Count > 0)
            return images;

        images.Add((await FirmwareChoice.MakeAsync(null, withKernel, FirmwareChoice.UsualPlaces, cancellation)).Image);
        foreach (string place in FirmwareChoice.UsualPlaces.Where(place => place != images[0].Name && File.Exists(place)))
        {
            try
            {
                images.Add(await FirmwareImage.LoadAsync(place, cancellation));
            }
            catch (LaunchInputException)
            {
                // Nobody asked for this file.
            }
        }

        return images;
    }

    // The bar is that of a launch: a step, and how much of how much.
    private sealed class Bar(IProgress<LaunchProgress> progress) : IProgress<DigestSearchProgress>
    {
        public void Report(DigestSearchProgress value) =>
            progress.Report(new LaunchProgress($"{value.Changes} changes, {value.Tried} combinations", value.Tried, value.Total));
    }
}
