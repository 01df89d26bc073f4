namespace VmmService.Client.Digest;

/// <summary>SEV_FEATURES of a VMSA by the names of its bits (AMD64 APM volume 2, section 15.34.10), and the sets of them that VMMs are known to launch with.</summary>
public static class SevFeatures
{
    /// <summary>KVM sets it with its debug_swap feature; SEV-ES guests of some kernels have it without anybody asking.</summary>
    public const ulong DebugSwap = 1 << 5;

    private static readonly (int Bit, string Name)[] s_names =
    [
        (0, "SNPActive"), (1, "vTOM"), (2, "ReflectVC"), (3, "RestrictedInjection"), (4, "AlternateInjection"), (5, "DebugSwap"), (6, "PreventHostIBS"), (7, "BTBIsolation"), (8, "VmplSSS"),
        (9, "SecureTSC"), (10, "VmgexitParameter"), (12, "IbsVirtualization"), (14, "VmsaRegProt"), (15, "SmtProtection"), (16, "SecureAVIC"),
    ];

    /// <summary>SNP guests, the likeliest first; the last is what a prediction without SNPActive would have.</summary>
    public static IReadOnlyList<ulong> KnownSnp { get; } = [0x1, 0x21, 0x201, 0x221, 0x9, 0x3, 0x10001, 0x0];

    /// <summary>SEV-ES guests.</summary>
    public static IReadOnlyList<ulong> KnownSevEs { get; } = [0, DebugSwap];

    /// <summary>The names of the bits that are set; bits without a name as numbers.</summary>
    public static string NamesOf(ulong features)
    {
        List<string> names = [];
        for (int bit = 0; bit < 64; bit++)
        {
            if ((features >> bit & 1) != 0)
                names.Add(s_names.FirstOrDefault(each => each.Bit == bit).Name ?? $"bit {bit}");
        }

        return names.Count == 0 ? "none" : string.Join(", ", names);
    }
}
