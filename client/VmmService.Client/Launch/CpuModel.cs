namespace VmmService.Client.Launch;

/// <summary>A CPU model by QEMU's name (snp.md 7.3). Versions of a model differ in features, which are not measured, and share the signature, which is.</summary>
/// <param name="Name">As QEMU writes it.</param>
/// <param name="Signature">What CPUID function 1 answers in EAX.</param>
public sealed record CpuModel(string Name, CpuSignature Signature)
{
    /// <summary>Every known model, older ones first.</summary>
    public static IReadOnlyList<CpuModel> All { get; } =
    [
        .. Of(23, 1, 2, "EPYC", "EPYC-v1", "EPYC-v2", "EPYC-v3", "EPYC-v4", "EPYC-IBPB"),
        .. Of(23, 49, 0, "EPYC-Rome", "EPYC-Rome-v1", "EPYC-Rome-v2", "EPYC-Rome-v3"),
        .. Of(25, 1, 1, "EPYC-Milan", "EPYC-Milan-v1", "EPYC-Milan-v2"),
        .. Of(25, 17, 0, "EPYC-Genoa", "EPYC-Genoa-v1"),
        .. Of(26, 0, 0, "EPYC-Turin"),
    ];

    /// <summary>Finds a model by its name, in any case.</summary>
    /// <exception cref="LaunchInputException">There is none; the message has the nearest name and all others.</exception>
    public static CpuModel Find(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        return All.FirstOrDefault(model => string.Equals(model.Name, name, StringComparison.OrdinalIgnoreCase))
            ?? throw new LaunchInputException(
                $"The vCPU type (--vcpu-type) '{name}' is not known. {NameList.Hint(name, All.Select(model => model.Name))} For another CPU give its signature with --vcpu-sig.");
    }

    private static IEnumerable<CpuModel> Of(uint family, uint model, uint stepping, params string[] names) =>
        names.Select(name => new CpuModel(name, CpuSignature.From(family, model, stepping)));
}
