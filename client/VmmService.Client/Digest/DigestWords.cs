using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>Says what a difference between two launches means, from what is known of them. <see cref="DigestDiff"/> finds the differences.</summary>
internal sealed class DigestWords
{
    private const string FirmwareRegion = "firmware";
    private const string HashesRegion = nameof(SevSectionType.SNP_KERNEL_HASHES);

    private readonly DigestSide _a;
    private readonly DigestSide _b;
    private readonly Lazy<VmsaCatalog> _vmsas;
    private readonly Lazy<FirmwareMap?> _map;

    public DigestWords(DigestSide a, DigestSide b)
    {
        _a = a;
        _b = b;
        _vmsas = new Lazy<VmsaCatalog>(() => new VmsaCatalog([a.Facts, b.Facts]));
        _map = new Lazy<FirmwareMap?>(() => (a.Facts.Firmware ?? b.Facts.Firmware) is { } image ? new FirmwareMap(image) : null);
    }

    /// <summary>What a difference means, as sentences. An index is -1 where that side does not have the record.</summary>
    public string Meaning(DigestDifferenceKind kind, int indexA, int indexB) => kind switch
    {
        DigestDifferenceKind.Content => MeaningOfContent(indexA, indexB),
        DigestDifferenceKind.PageType => MeaningOfType(indexA, indexB),
        DigestDifferenceKind.Address =>
            $"VMSA of vCPU {VcpuOf(_a, indexA)}: firmware is told 0x{_a.Transcript.Steps[indexA].Page.Gpa:x} in A and 0x{_b.Transcript.Steps[indexB].Page.Gpa:x} in B. "
            + $"KVM always says 0x{VmsaPage.KvmGpa:x}; other hypervisors take the highest page of the processor's physical addresses.",
        DigestDifferenceKind.OnlyInA => MeaningOfOneSided(_a, "A", _b, "B", indexA),
        DigestDifferenceKind.OnlyInB => MeaningOfOneSided(_b, "B", _a, "A", indexB),
        _ => MeaningOfMoved(_a, indexA),
    };

    /// <summary>What it means that at one place of the order both have a page that the other has elsewhere.</summary>
    public string MeaningOfOrder(int index) =>
        $"The order differs: here A measures {Subject(_a, index)} and B {Subject(_b, index)}, and each has the other's page at another place. {WhyOrder}";

    /// <summary>Whether two differences of one kind are about the same thing, so that one sentence does for both.</summary>
    public bool SameSubject(int indexA, int indexB, int nextA, int nextB)
    {
        (DigestSide side, int index, int next) = indexA >= 0 ? (_a, indexA, nextA) : (_b, indexB, nextB);
        MeasuredPage page = side.Transcript.Steps[index].Page;
        MeasuredPage following = side.Transcript.Steps[next].Page;
        if (page.PageType == MeasuredPageType.VMSA || following.PageType == MeasuredPageType.VMSA)
        {
            return page == following
                && (indexA < 0 || indexB < 0 || _b.Transcript.Steps[indexB].Page == _b.Transcript.Steps[nextB].Page);
        }

        return page.PageType == following.PageType && RegionName(side, page.Gpa) == RegionName(side, following.Gpa)
            && (indexA < 0 || indexB < 0 || _b.Transcript.Steps[indexB].Page.PageType == _b.Transcript.Steps[nextB].Page.PageType);
    }

    private const string WhyOrder = "The order is the VMM's: QEMU goes by the firmware's table, EC2 puts CPUID pages last.";

    private string MeaningOfContent(int indexA, int indexB)
    {
        MeasuredPage page = _a.Transcript.Steps[indexA].Page;
        if (page.PageType == MeasuredPageType.VMSA)
            return MeaningOfVmsa(indexA, indexB);
        if (FirmwareOffset(_a, page.Gpa) is { } offset && FirmwareOffset(_b, page.Gpa) == offset)
            return $"The firmware images differ at offset 0x{offset:x}{Place(offset)}. {FirmwareHashes()}They are different builds, or one was changed after it was built.";
        if (RegionName(page.Gpa) == HashesRegion)
            return $"The page of kernel hashes differs: {KernelParts()}";

        return $"{Capital(Subject(_a, indexA))} differs in content.{(RegionName(page.Gpa) is null && page.Gpa < FirmwareImage.FourGiB ? " Below the firmware that is usually the page of kernel hashes: kernel, initrd or command line." : "")}";
    }

    private string MeaningOfType(int indexA, int indexB)
    {
        MeasuredPage a = _a.Transcript.Steps[indexA].Page;
        MeasuredPage b = _b.Transcript.Steps[indexB].Page;
        string told = $"{Capital(Subject(_a, indexA))} is {a.PageType} in A and {b.PageType} in B";
        (string? with, string? without) = (a.PageType, b.PageType) switch
        {
            (MeasuredPageType.NORMAL, MeasuredPageType.ZERO) => ("A", "B"),
            (MeasuredPageType.ZERO, MeasuredPageType.NORMAL) => ("B", "A"),
            _ => (null, null),
        };
        if (with is not null && RegionName(a.Gpa) is null or HashesRegion)
        {
            return with is null
                ? $"{told}."
                : $"{told}: {with} measures the hashes of a kernel, {without} measures none (no kernel was given, or the VMM was told not to: QEMU's kernel-hashes=off).";
        }

        if ((a.PageType, b.PageType) is (MeasuredPageType.ZERO, MeasuredPageType.UNMEASURED) or (MeasuredPageType.UNMEASURED, MeasuredPageType.ZERO))
            return $"{told}: QEMU and EC2 launch SNP_SEC_MEM as ZERO, Google Compute Engine as UNMEASURED, so two VMMs were played.";
        return $"{told}: the VMMs treat this section differently, or the firmwares have different sections there.";
    }

    private string MeaningOfOneSided(DigestSide side, string name, DigestSide other, string otherName, int index)
    {
        MeasuredPage page = side.Transcript.Steps[index].Page;
        if (page.PageType == MeasuredPageType.VMSA)
            return $"{name} has {Count(side)} and {otherName} has {Count(other)}: the VMSA of vCPU {VcpuOf(side, index)} is only in {name}.";
        if (FirmwareOffset(side, page.Gpa) is not null)
        {
            return FirmwareStart(other) is { } start
                ? $"The firmware images have different sizes: {name}'s begins at 0x{FirmwareStart(side):x}, {otherName}'s at 0x{start:x}. {FirmwareHashes()}They are different files (OVMF.fd, say, is OVMF_CODE.fd with a variable store in front)."
                : $"The firmware page at 0x{page.Gpa:x} is only in {name}.";
        }

        return $"{Capital(Subject(side, index))} is only in {name}: {otherName}'s firmware has no such section there, or its VMM does not launch it.";
    }

    private static string MeaningOfMoved(DigestSide side, int index) => $"{Capital(Subject(side, index))} is alike in both, but at another place in the order. {WhyOrder}";

    private string MeaningOfVmsa(int indexA, int indexB)
    {
        string told = $"The VMSA of vCPU {VcpuOf(_a, indexA)} differs";
        KnownVmsa? a = _vmsas.Value.Find(_a.Transcript.Steps[indexA].Page.Contents);
        KnownVmsa? b = _vmsas.Value.Find(_b.Transcript.Steps[indexB].Page.Contents);
        if (a is null || b is null)
        {
            return (a, b) switch
            {
                (null, null) => $"{told}. Neither is one that the known VMMs, CPU models and guest features give, so the registers cannot be told from the hashes.",
                (null, _) => $"{told}: B's is {b}, A's is none that the known VMMs, CPU models and guest features give.",
                _ => $"{told}: A's is {a}, B's is none that the known VMMs, CPU models and guest features give.",
            };
        }

        IEnumerable<string> fields = VmsaPage.Compare(VmsaPage.Build(a.State, a.SevFeatures), VmsaPage.Build(b.State, b.SevFeatures))
            .Select(difference => $"{difference}{Why(difference, a, b)}");
        string vmms = a.Flavor == b.Flavor ? "" : $" These are registers of {a.Flavor.Name} and of {b.Flavor.Name}.";
        return $"{told}: {string.Join("; ", fields)}.{vmms}";
    }

    private static string Why(VmsaDifference difference, KnownVmsa a, KnownVmsa b) => difference.Field.Name switch
    {
        "sev_features" => $", which is the guest features: {SevFeatures.NamesOf(a.SevFeatures)} and {SevFeatures.NamesOf(b.SevFeatures)}",
        "rdx" when a.Flavor.MeasuresSignature && b.Flavor.MeasuresSignature => $", which is the CPU signature: {CpuModelNames.Of(a.Signature)} and {CpuModelNames.Of(b.Signature)}",
        "rip" or "cs.base" when a.Eip != b.Eip => ", which is where the vCPU starts: for all but the first the firmware's SEV-ES reset block says so",
        _ => "",
    };

    private string KernelParts()
    {
        LaunchFacts a = _a.Facts;
        LaunchFacts b = _b.Facts;
        if (a.KernelSha256 is null || b.KernelSha256 is null)
            return "kernel, initrd or command line.";

        List<string> parts = [];
        if (a.KernelSha256 != b.KernelSha256)
            parts.Add($"the kernel (sha256 {a.KernelSha256} in A, {b.KernelSha256} in B)");
        if (a.InitrdSha256 != b.InitrdSha256)
            parts.Add($"the initrd ({Hash(a.InitrdSha256)} in A, {Hash(b.InitrdSha256)} in B)");
        if ((a.Append ?? "") != (b.Append ?? ""))
            parts.Add($"the command line ({Quoted(a.Append)} in A, {Quoted(b.Append)} in B)");
        return parts.Count == 0
            ? "but kernel, initrd and command line are said to be the same, so one VMM hashes them in another way (the command line is hashed with one NUL behind it)."
            : $"{string.Join(" and ", parts)}.";

        static string Hash(string? sha256) => sha256 is null ? "none" : $"sha256 {sha256}";
        static string Quoted(string? text) => text is null ? "none" : $"'{text}'";
    }

    private string FirmwareHashes() =>
        (_a.Facts.FirmwareSha256, _b.Facts.FirmwareSha256) is ({ } a, { } b) && a != b ? $"Their sha256 is {a} in A and {b} in B. " : "";

    private string Place(ulong offset) => _map.Value?.Describe(offset) is { } place ? $", in the page that has {place}" : "";

    // What a record is about, to be put into a sentence.
    private static string Subject(DigestSide side, int index)
    {
        MeasuredPage page = side.Transcript.Steps[index].Page;
        if (page.PageType == MeasuredPageType.VMSA)
            return $"the VMSA of vCPU {VcpuOf(side, index)}";
        if (FirmwareOffset(side, page.Gpa) is { } offset)
            return $"the firmware page at 0x{page.Gpa:x} (offset 0x{offset:x})";
        if (RegionName(side, page.Gpa) is { } region)
            return $"the page of {region} at 0x{page.Gpa:x}";

        return page.PageType switch
        {
            MeasuredPageType.SECRETS => $"the secrets page at 0x{page.Gpa:x}",
            MeasuredPageType.CPUID => $"the CPUID page at 0x{page.Gpa:x}",
            _ => $"the {page.PageType} page at 0x{page.Gpa:x}",
        };
    }

    private string? RegionName(ulong gpa) => RegionName(_a, gpa) ?? RegionName(_b, gpa);

    private static string? RegionName(DigestSide side, ulong gpa) => side.Facts.RegionAt(gpa)?.Name;

    private static ulong? FirmwareOffset(DigestSide side, ulong gpa) => FirmwareStart(side) is { } start && gpa >= start && gpa < FirmwareImage.FourGiB ? gpa - start : null;

    // Where nothing is said of the firmware: it is what a launch begins with, if that reaches up to 4 GiB.
    private static ulong? FirmwareStart(DigestSide side)
    {
        foreach (NamedRegion region in side.Facts.Regions)
        {
            if (region.Name == FirmwareRegion)
                return region.Gpa;
        }

        IReadOnlyList<DigestStep> steps = side.Transcript.Steps;
        ulong? start = null;
        ulong end = 0;
        foreach (DigestStep step in steps)
        {
            if (step.Page.PageType != MeasuredPageType.NORMAL || (start is not null && step.Page.Gpa != end))
                break;
            start ??= step.Page.Gpa;
            end = step.Page.Gpa + FirmwareImage.PageSize;
        }

        return end == FirmwareImage.FourGiB ? start : null;
    }

    private static int VcpuOf(DigestSide side, int index) => side.Transcript.Steps.Take(index).Count(step => step.Page.PageType == MeasuredPageType.VMSA);

    private static string Count(DigestSide side)
    {
        int vcpus = side.Transcript.Steps.Count(step => step.Page.PageType == MeasuredPageType.VMSA);
        return vcpus == 1 ? "1 vCPU" : $"{vcpus} vCPUs";
    }

    private static string Capital(string text) => char.ToUpperInvariant(text[0]) + text[1..];
}
