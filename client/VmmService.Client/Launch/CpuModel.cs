using System.Globalization;

namespace VmmService.Client.Launch;

/// <summary>QEMU's CPU models of SNP guests and their signatures (CPUID 1 EAX), which QEMU puts into RDX at reset and so into the measurement.</summary>
public static class CpuModel
{
    public const string Default = "EPYC-v4";

    private static readonly (string Name, uint Signature)[] Models =
    [
        ("EPYC", Signature(23, 1, 2)),
        ("EPYC-v1", Signature(23, 1, 2)),
        ("EPYC-v2", Signature(23, 1, 2)),
        ("EPYC-IBPB", Signature(23, 1, 2)),
        ("EPYC-v3", Signature(23, 1, 2)),
        ("EPYC-v4", Signature(23, 1, 2)),
        ("EPYC-Rome", Signature(23, 49, 0)),
        ("EPYC-Rome-v1", Signature(23, 49, 0)),
        ("EPYC-Rome-v2", Signature(23, 49, 0)),
        ("EPYC-Rome-v3", Signature(23, 49, 0)),
        ("EPYC-Milan", Signature(25, 1, 1)),
        ("EPYC-Milan-v1", Signature(25, 1, 1)),
        ("EPYC-Milan-v2", Signature(25, 1, 1)),
        ("EPYC-Genoa", Signature(25, 17, 0)),
        ("EPYC-Genoa-v1", Signature(25, 17, 0)),
        ("EPYC-Turin", Signature(26, 0, 0)),
    ];

    /// <summary>The known names, oldest processor first.</summary>
    public static IEnumerable<string> Names => Models.Select(model => model.Name);

    /// <summary>CPUID 1 EAX of a processor.</summary>
    public static uint Signature(uint family, uint model, uint stepping)
    {
        uint baseFamily = Math.Min(family, 15);
        return ((family - baseFamily) << 20) | ((model >> 4) << 16) | (baseFamily << 8) | ((model & 15) << 4) | stepping;
    }

    /// <summary>The signature of a model, whatever the case of its name.</summary>
    /// <exception cref="LaunchPlanException">There is no such model; the message names those there are.</exception>
    public static uint SignatureOf(string name)
    {
        foreach ((string known, uint signature) in Models)
        {
            if (known.Equals(name, StringComparison.OrdinalIgnoreCase))
            {
                return signature;
            }
        }
        throw new LaunchPlanException(
            $"'{name}' is not a vCPU type that QEMU has for SNP guests. Known are {string.Join(", ", Names)}; for anything else give its signature (CPUID 1 EAX) with --vcpu-sig, for example 0x{Signature(25, 1, 1).ToString("x", CultureInfo.InvariantCulture)}.");
    }
}
