namespace VmmService.Client.Launching;

/// <summary>What a TD's launch needs beside the plan: none of it enters MRTD.</summary>
public sealed record TdxLaunchOptions
{
    /// <summary>SEPT_VE_DISABLE, as Linux guests want it.</summary>
    public const ulong DefaultAttributes = 1UL << 28;

    public int Vcpus { get; init; } = 1;

    /// <summary>ATTRIBUTES for KVM_TDX_INIT_VM.</summary>
    public ulong Attributes { get; init; } = DefaultAttributes;

    /// <summary>XFAM for KVM_TDX_INIT_VM; x87 and SSE are always on.</summary>
    public ulong Xfam { get; init; } = 3;

    /// <summary>Bits of guest physical addresses, 48 or 52; the highest is the shared bit.</summary>
    public uint GuestPhysicalBits { get; init; } = 48;

    /// <summary>48 bytes each, or empty for zeros. Reports tell them.</summary>
    public ReadOnlyMemory<byte> Mrconfigid { get; init; }

    public ReadOnlyMemory<byte> Mrowner { get; init; }

    public ReadOnlyMemory<byte> Mrownerconfig { get; init; }
}
