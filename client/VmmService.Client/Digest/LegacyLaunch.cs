using System.Security.Cryptography;
using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>A piece of what a legacy launch measures.</summary>
/// <param name="Name">What it is, for people.</param>
/// <param name="Content">Its bytes.</param>
public readonly record struct LegacyPart(string Name, ReadOnlyMemory<byte> Content);

/// <summary>
/// What an SEV or SEV-ES launch measures: the firmware image, the table of kernel hashes if a kernel is booted directly, and with SEV-ES the VMSAs. Its digest is the SHA-256 of all
/// that, one after the other, without addresses and types (snp.md 4.5).
/// </summary>
public sealed class LegacyLaunch
{
    private LegacyLaunch(LegacyPart[] parts) => Parts = parts;

    /// <summary>In order.</summary>
    public IReadOnlyList<LegacyPart> Parts { get; }

    /// <summary>A launch without encrypted state.</summary>
    /// <exception cref="LaunchInputException">The firmware has no place for the hashes of a kernel.</exception>
    public static LegacyLaunch Sev(FirmwareImage firmware, KernelHashes? kernel) => new([.. Memory(firmware, kernel)]);

    /// <summary>A launch with encrypted state.</summary>
    /// <param name="firmware">The image.</param>
    /// <param name="flavor">Whose registers the vCPUs start with.</param>
    /// <param name="kernel">Hashes of a kernel that is booted directly; null for none.</param>
    /// <param name="vcpus">How many, 1 to <see cref="SnpLaunchPlan.MaxVcpus"/>.</param>
    /// <param name="signature">CPU signature of the vCPUs.</param>
    /// <param name="sevFeatures">SEV_FEATURES: 0, or 0x20 where the kernel turns on debug swap.</param>
    /// <exception cref="LaunchInputException">These do not go together.</exception>
    public static LegacyLaunch SevEs(FirmwareImage firmware, VmmFlavor flavor, KernelHashes? kernel, int vcpus, CpuSignature signature, ulong sevFeatures = 0) => new(
    [
        .. Memory(firmware, kernel),
        .. SnpLaunchPlan.PlanVcpus(firmware, flavor, vcpus, signature).Select((vcpu, i) => new LegacyPart($"VMSA of vCPU {i}", VmsaPage.Build(vcpu, sevFeatures))),
    ]);

    /// <summary>The launch digest: GCTX.LD, 32 bytes.</summary>
    public byte[] Digest()
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (LegacyPart part in Parts)
            hash.AppendData(part.Content.Span);
        return hash.GetHashAndReset();
    }

    /// <summary>Firmware and table, which is all that plain SEV measures.</summary>
    internal static IEnumerable<LegacyPart> Memory(FirmwareImage firmware, KernelHashes? kernel)
    {
        ArgumentNullException.ThrowIfNull(firmware);
        yield return new LegacyPart("firmware", firmware.Bytes);
        if (kernel is null)
            yield break;

        // Only the table is measured, and where it lies does not matter; but without a place for it the guest would not look.
        firmware.RequireKernelHashArea();
        yield return new LegacyPart("table of kernel hashes", kernel.BuildTable());
    }
}
