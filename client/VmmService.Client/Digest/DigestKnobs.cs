using System.Security.Cryptography;
using System.Text;
using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>One way in which a launch could have been.</summary>
/// <param name="Text">In words.</param>
/// <param name="Apply">Makes a guess of this way.</param>
public sealed record KnobChoice(string Text, Func<LaunchGuess, LaunchGuess> Apply);

/// <summary>Something that a launch digest depends on and that people get wrong.</summary>
/// <param name="Name">What it is.</param>
/// <param name="Scope">What of a launch it changes.</param>
/// <param name="Choices">First what was asked for, then the others, the likeliest first.</param>
public sealed record DigestKnob(string Name, KnobScope Scope, IReadOnlyList<KnobChoice> Choices);

/// <summary>What of a launch a knob changes.</summary>
[Flags]
public enum KnobScope
{
    /// <summary>What is measured before the vCPUs.</summary>
    Memory = 1,

    /// <summary>What is measured of the vCPUs.</summary>
    Vcpus = 2,
}

/// <summary>What a digest is asked to be explained by: the launch that was thought of, and what may have been instead.</summary>
public sealed record DigestQuestion
{
    /// <summary>Images that may have been launched, first the one that was thought of.</summary>
    public required IReadOnlyList<FirmwareImage> Firmwares { get; init; }

    /// <summary>VMMs, first the one that was thought of.</summary>
    public IReadOnlyList<VmmFlavor> Flavors { get; init; } = DigestKnobs.Flavors;

    /// <summary>Hashes of the kernel and what goes with it; null if none was thought of.</summary>
    public KernelHashes? Kernel { get; init; }

    /// <summary>Whether an initrd is in <see cref="Kernel"/>.</summary>
    public bool HasInitrd { get; init; }

    /// <summary>The command line in <see cref="Kernel"/>; null for none.</summary>
    public string? Append { get; init; }

    /// <summary>CPU signatures, first the one that was thought of.</summary>
    public required IReadOnlyList<CpuSignature> Signatures { get; init; }

    /// <summary>SEV_FEATURES, first those that were thought of.</summary>
    public required IReadOnlyList<ulong> SevFeatures { get; init; }

    /// <summary>Numbers of vCPUs, first the one that was thought of.</summary>
    public required IReadOnlyList<int> Vcpus { get; init; }

    /// <summary>Names of knobs that are left as they were thought of.</summary>
    public IReadOnlyCollection<string> Keep { get; init; } = [];

    /// <summary>Numbers of vCPUs that are tried.</summary>
    public IReadOnlyList<int> VcpusTried => Keeps(DigestKnobs.Vcpus) ? [Vcpus[0]] : Vcpus;

    internal bool Keeps(string knob) => Keep.Contains(knob, StringComparer.OrdinalIgnoreCase);
}

/// <summary>The knobs, in order of plausibility: of two answers with equally many changes, the one whose changes come first here is tried first.</summary>
public static class DigestKnobs
{
    /// <summary>Name of the knob that has no choices of its own: every number of vCPUs is looked at in passing.</summary>
    public const string Vcpus = "vCPUs";

    /// <summary>Highest page of processors with 52 bits of physical address, which hypervisors other than KVM give as the address of every VMSA.</summary>
    private const ulong VmsaGpa52 = 0xf_ffff_ffff_f000;

    /// <summary>EC2 as tools predicted it before they put 0x600 into RDX; digests that were published then have 0.</summary>
    public static VmmFlavor Ec2WithoutRdx { get; } = VmmFlavor.Ec2 with { Name = "ec2 with RDX 0", Summary = "EC2 as older tools predicted it", Rdx = 0 };

    /// <summary>The VMMs that have a name, and variants that digests of the field were found to be of.</summary>
    public static IReadOnlyList<VmmFlavor> Flavors { get; } = [.. VmmFlavor.All, Ec2WithoutRdx];

    /// <summary>The names of all knobs.</summary>
    public static IReadOnlyList<string> Names { get; } =
        [Vcpus, "vCPU type", "guest features", "kernel hashes", "command line", "VMM", "firmware", "mode", "zero pages", "section order", "sections", "AP start", "VMSA address"];

    /// <summary>The knobs of an SNP launch.</summary>
    public static IReadOnlyList<DigestKnob> Snp(DigestQuestion question) => Kept(question,
    [
        Signature(question), Features(question), KernelKnob(question), CommandLine(question), Vmm(question), Firmware(question),
        new("zero pages", KnobScope.Memory,
        [
            Zero("as the VMM does", ZeroPages.Vmm), Zero("SNP_SEC_MEM as ZERO", ZeroPages.Zero), Zero("SNP_SEC_MEM as UNMEASURED", ZeroPages.Unmeasured),
            Zero("as NORMAL pages of zeros", ZeroPages.Normal),
        ]),
        new("section order", KnobScope.Memory,
        [
            Order("as the VMM does", SectionOrder.Vmm), Order("as in the firmware's table", SectionOrder.Table), Order("CPUID last", SectionOrder.CpuidLast), Order("by address", SectionOrder.Address),
        ]),
        Sections(question),
        ApStart,
        new("VMSA address", KnobScope.Vcpus, [VmsaAddress(VmsaPage.KvmGpa), VmsaAddress(VmsaGpa52)]),
    ]);

    /// <summary>The knobs of an SEV or SEV-ES launch.</summary>
    public static IReadOnlyList<DigestKnob> Legacy(DigestQuestion question) => Kept(question,
    [
        new("mode", KnobScope.Vcpus, [new("SEV-ES", guess => guess with { EncryptedState = true }), new("SEV", guess => guess with { EncryptedState = false })]),
        Signature(question), Features(question), KernelKnob(question), CommandLine(question), Vmm(question), Firmware(question), ApStart,
    ]);

    /// <summary>The launch that was thought of.</summary>
    internal static LaunchGuess Asked(DigestQuestion question) => new()
    {
        Firmware = question.Firmwares[0],
        Flavor = question.Flavors[0],
        Kernel = question.Kernel,
        Signature = question.Signatures[0],
        SevFeatures = question.SevFeatures[0],
    };

    private static List<DigestKnob> Kept(DigestQuestion question, IEnumerable<DigestKnob> knobs) =>
        [.. knobs.Select(knob => question.Keeps(knob.Name) ? knob with { Choices = [knob.Choices[0]] } : knob)];

    private static DigestKnob ApStart => new(
        "AP start", KnobScope.Vcpus,
        [new("where the firmware says", guess => guess with { ApsLikeBsp = false }), new("at the reset vector, like the first vCPU", guess => guess with { ApsLikeBsp = true })]);

    private static DigestKnob Signature(DigestQuestion question) => new(
        "vCPU type", KnobScope.Vcpus, [.. question.Signatures.Select(each => new KnobChoice($"signature {CpuModelNames.Of(each)}", guess => guess with { Signature = each }))]);

    private static DigestKnob Features(DigestQuestion question) => new(
        "guest features", KnobScope.Vcpus,
        [.. question.SevFeatures.Select(each => new KnobChoice($"0x{each:x} ({SevFeatures.NamesOf(each)})", guess => guess with { SevFeatures = each }))]);

    private static DigestKnob Vmm(DigestQuestion question) => new(
        "VMM", KnobScope.Memory | KnobScope.Vcpus, [.. question.Flavors.Select(each => new KnobChoice(each.Name, guess => guess with { Flavor = each }))]);

    private static DigestKnob Firmware(DigestQuestion question) => new(
        "firmware", KnobScope.Memory | KnobScope.Vcpus, [.. question.Firmwares.Select(each => new KnobChoice(each.Name, guess => guess with { Firmware = each }))]);

    private static KnobChoice Zero(string text, ZeroPages zero) => new(text, guess => guess with { Zero = zero });

    private static KnobChoice Order(string text, SectionOrder order) => new(text, guess => guess with { Order = order });

    private static KnobChoice VmsaAddress(ulong gpa) => new($"0x{gpa:x}", guess => guess with { VmsaGpa = gpa });

    private static DigestKnob Sections(DigestQuestion question) => new(
        "sections", KnobScope.Memory,
        [
            new("all launched", guess => guess),
            .. question.Firmwares.SelectMany(firmware => firmware.SevSections).Select(section => section.Type).Distinct()
                .Select(type => new KnobChoice($"{type} left out", guess => guess with { Launches = each => each != type })),
            new("none launched", guess => guess with { Launches = _ => false }),
        ]);

    private static DigestKnob KernelKnob(DigestQuestion question)
    {
        if (question.Kernel is not { } kernel)
            return new("kernel hashes", KnobScope.Memory, [new("none, no kernel was given", guess => guess)]);

        List<KnobChoice> choices = [new(question.HasInitrd ? "of kernel and initrd" : "of the kernel", guess => guess), new("none", guess => guess with { Kernel = null })];
        if (question.HasInitrd)
        {
            choices.Add(new("of the kernel without the initrd", guess => guess.Kernel is null
                ? guess
                : guess with { Kernel = KernelHashes.Of(kernel.Kernel.Span, SHA256.HashData([]), guess.Kernel.Cmdline.Span) }));
        }

        return new("kernel hashes", KnobScope.Memory, choices);
    }

    // A choice of the kernel knob may have taken the kernel away, or the initrd: only the command line is replaced.
    private static DigestKnob CommandLine(DigestQuestion question)
    {
        if (question.Kernel is null)
            return new("command line", KnobScope.Memory, [new("none, no kernel was given", guess => guess)]);

        string append = question.Append ?? "";
        List<KnobChoice> choices = [new(question.Append is null ? "none, hashed as a NUL" : "as given, with one NUL behind it", guess => guess)];

        Add("without the NUL behind it", append);
        Add("with a line feed and the NUL behind it", append + "\n\0");
        Add("with a line feed instead of the NUL", append + "\n");
        Add("with a space and the NUL behind it", append + " \0");
        Add("with two NULs behind it", append + "\0\0");
        if (append.Trim() != append)
            Add("without the blanks around it", append.Trim() + "\0");
        if (append.Length > 0)
            Add("none", "\0");
        return new("command line", KnobScope.Memory, choices);

        void Add(string text, string hashed)
        {
            byte[] hash = SHA256.HashData(Encoding.UTF8.GetBytes(hashed));
            choices.Add(new(text, guess => guess.Kernel is null ? guess : guess with { Kernel = KernelHashes.Of(guess.Kernel.Kernel.Span, guess.Kernel.Initrd.Span, hash) }));
        }
    }
}
