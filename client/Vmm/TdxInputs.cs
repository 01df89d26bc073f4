using System.CommandLine;
using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace VmmService.Vmm;

/// <summary>The files and names of a TD launch, read and checked.</summary>
/// <param name="Firmware">Which image, and where it is from.</param>
/// <param name="Plan">What is added.</param>
/// <param name="Order">How the kernel measures it.</param>
/// <param name="Memory">Bytes of guest memory.</param>
internal sealed record TdxLaunch(FirmwareChoice Firmware, TdxLaunchPlan Plan, MrtdOrder Order, ulong Memory)
{
    public Hash384 Mrtd() => MrtdDigest.Measure(Plan.Regions, Order);
}

/// <summary>The options that say what a TD launch consists of.</summary>
internal sealed class TdxInputs
{
    /// <summary>Where distributions put images with TDX metadata, in the order in which they are tried: whole ones, not halves.</summary>
    public static readonly IReadOnlyList<string> UsualPlaces =
    [
        // Debian, Ubuntu
        "/usr/share/ovmf/OVMF.fd",
        "/usr/share/ovmf/OVMF.inteltdx.fd",
        // Fedora, Red Hat
        "/usr/share/edk2/ovmf/OVMF.inteltdx.fd",
        // Arch
        "/usr/share/edk2/x64/OVMF.4m.fd",
        // openSUSE
        "/usr/share/qemu/ovmf-x86_64.bin",
    ];

    private const string Page = "per-page";
    private const string Region = "per-region";

    private readonly Option<string?> _firmware = new("--firmware", "--ovmf")
    {
        Description = "Firmware image with TDX metadata, whole. Without it: the one installed on this machine, else a small generated sample; the output says which.",
        HelpName = "FILE",
    };

    private readonly Option<string?> _vars = new("--vars") { Description = "Variable store, if --firmware is the code half of a split build.", HelpName = "FILE" };
    private readonly Option<string> _order = new("--order")
    {
        Description = $"How the kernel measures: {Page} (KVM_TDX_INIT_MEM_REGION, every upstream kernel), or {Region} (kernels before the merge, which had an ioctl for each).",
        HelpName = "ORDER",
        DefaultValueFactory = _ => Page,
    };

    private readonly Option<string> _vmm = new("--vmm")
    {
        Description = $"Whose way of launching: {string.Join("; ", TdxFlavor.All.Select(each => $"{each.Name} ({each.Summary})"))}.",
        HelpName = "VMM",
        DefaultValueFactory = _ => TdxFlavor.Qemu.Name,
    };

    private readonly Option<string> _memory = new("--memory")
    {
        Description = "Memory of the guest, in MiB or with K, M, G or T. It is told in the hand-off blocks: RTMR0 depends on it, the MRTD only where TD_HOB is extended.",
        HelpName = "SIZE",
        DefaultValueFactory = _ => "2G",
    };

    /// <summary>Adds the options, and the checks of how they go together.</summary>
    public void AddTo(Command command)
    {
        foreach (Option option in (Option[])[_firmware, _vars, _order, _vmm, _memory])
            command.Add(option);
        command.Validators.Add(result =>
        {
            if (result.GetResult(_vars) is not null && result.GetResult(_firmware) is null)
                result.AddError("--vars belongs to the code half; give that as --firmware too, or leave it out");
        });
    }

    /// <summary>Reads what the command line names.</summary>
    /// <exception cref="LaunchInputException">A file or a name cannot be used.</exception>
    public async Task<TdxLaunch> ReadAsync(ParseResult parsed, CancellationToken cancellation)
    {
        MrtdOrder order = Order(parsed);
        TdxFlavor flavor = Flavor(parsed);
        ulong memory = Memory(parsed);
        FirmwareChoice firmware = await ChooseAsync(parsed.GetValue(_firmware), parsed.GetValue(_vars), flavor, UsualPlaces, cancellation);
        return new TdxLaunch(firmware, TdxLaunchPlan.Create(firmware.Image, memory, flavor), order, memory);
    }

    /// <summary>What a search starts from, and what it varies.</summary>
    /// <exception cref="LaunchInputException">A file or a name cannot be used.</exception>
    public async Task<(MrtdGuess Asked, IReadOnlyList<MrtdKnob> Knobs)> AskAsync(ParseResult parsed, string[] others, CancellationToken cancellation)
    {
        FirmwareChoice first = await ChooseAsync(parsed.GetValue(_firmware), parsed.GetValue(_vars), Flavor(parsed), UsualPlaces, cancellation);
        List<FirmwareImage> images = [first.Image];
        foreach (string path in others)
            images.Add(await FirmwareImage.LoadAsync(path, cancellation));
        var asked = new MrtdGuess { Firmware = first.Image, Flavor = Flavor(parsed), Order = Order(parsed), Memory = Memory(parsed) };
        return (asked, MrtdSearch.Knobs(images, asked, [asked.Memory, .. Enumerable.Range(0, 8).Select(i => (1UL << 30) << i)]));
    }

    public MrtdOrder Order(ParseResult parsed) => parsed.GetRequiredValue(_order).ToLowerInvariant() switch
    {
        Page => MrtdOrder.PerPage,
        Region => MrtdOrder.PerRegion,
        var other => throw new UsageException($"--order {other}: not an order of measuring; use {Page} or {Region}"),
    };

    public TdxFlavor Flavor(ParseResult parsed) => TdxFlavor.Find(parsed.GetRequiredValue(_vmm));

    public ulong Memory(ParseResult parsed) => Bytes("--memory", parsed.GetRequiredValue(_memory));

    /// <summary>The image that was named, else the first installed one that can be launched, else the sample.</summary>
    public static async Task<FirmwareChoice> ChooseAsync(string? path, string? vars, TdxFlavor flavor, IReadOnlyList<string> places, CancellationToken cancellation)
    {
        if (path is not null)
        {
            FirmwareImage image = vars is null ? await FirmwareImage.LoadAsync(path, cancellation) : await FirmwareImage.LoadSplitAsync(vars, path, cancellation);
            return new FirmwareChoice(image, image.Name, FirmwareChoice.Option);
        }

        foreach (string place in places.Where(File.Exists))
        {
            try
            {
                FirmwareImage image = await FirmwareImage.LoadAsync(place, cancellation);
                TdvfMetadata.Parse(image, flavor.Rules);
                return new FirmwareChoice(image, place, FirmwareChoice.Installed);
            }
            catch (LaunchInputException)
            {
                // Nobody asked for this file; one that cannot be used is passed over.
            }
        }

        return new FirmwareChoice(FirmwareImage.Parse(SampleTdvf.Create(), SampleFirmware.Name), null, FirmwareChoice.Sample);
    }

    /// <summary>A size such as 2G, 2816M or 2048, which is in MiB as QEMU's -m has it.</summary>
    public static ulong Bytes(string option, string text)
    {
        int shift = text.Length == 0 ? 0 : char.ToUpperInvariant(text[^1]) switch { 'K' => 10, 'M' => 20, 'G' => 30, 'T' => 40, _ => 0 };
        bool fits = Numbers.TryParse(shift == 0 ? text : text[..^1], out ulong number);
        shift = shift == 0 ? 20 : shift;
        return fits && number <= ulong.MaxValue >> shift ? number << shift : throw new UsageException($"{option} {text}: not a size; it is a number of MiB, or has K, M, G or T behind it");
    }
}
