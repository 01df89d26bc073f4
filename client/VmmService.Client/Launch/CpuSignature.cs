using System.Globalization;

namespace VmmService.Client.Launch;

/// <summary>
/// What CPUID function 1 answers in EAX: family, model and stepping in AMD's packing. A vCPU starts with it in RDX, so it is part of the measurement.
/// <see cref="CpuModel"/> has the values by QEMU's names.
/// </summary>
public readonly record struct CpuSignature(uint Value)
{
    private const uint BaseFamilyMax = 15;

    /// <summary>Packs a signature (snp.md 7.3): a family above 15 is 15 and the rest in the extended field, a model is split in two nibbles.</summary>
    /// <exception cref="LaunchInputException">A number does not fit its field.</exception>
    public static CpuSignature From(uint family, uint model, uint stepping)
    {
        Check("family", family, BaseFamilyMax + 0xff);
        Check("model", model, 0xff);
        Check("stepping", stepping, 0xf);
        uint baseFamily = Math.Min(family, BaseFamilyMax);
        return new CpuSignature(((family - baseFamily) << 20) | ((model >> 4) << 16) | (baseFamily << 8) | ((model & 0xf) << 4) | stepping);
    }

    public uint Family => ((Value >> 8) & 0xf) is var family && family == BaseFamilyMax ? BaseFamilyMax + ((Value >> 20) & 0xff) : family;

    public uint Model => ((Value >> 12) & 0xf0) | ((Value >> 4) & 0xf);

    public uint Stepping => Value & 0xf;

    public override string ToString() => $"0x{Value:x8}";

    /// <summary>Reads "0x00a00f11", or a decimal number.</summary>
    /// <exception cref="LaunchInputException">It is not a 32-bit number.</exception>
    public static CpuSignature Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        bool hex = text.StartsWith("0x", StringComparison.OrdinalIgnoreCase);
        bool good = hex
            ? uint.TryParse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out uint value)
            : uint.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value);
        return good
            ? new CpuSignature(value)
            : throw new LaunchInputException(
                $"The vCPU signature (--vcpu-sig) '{text}' is not a number of at most 32 bits. It is EAX of CPUID function 1, such as 0x00a00f11 for EPYC-Milan; "
                + "with the name of a CPU model use --vcpu-type.");
    }

    private static void Check(string field, uint value, uint max)
    {
        if (value > max)
            throw new LaunchInputException($"The CPU {field} is {value} and the limit of its field in a CPU signature is {max}. Give it as the CPU's manual has it, in decimal.");
    }
}
