using System.Buffers.Binary;

namespace SimMachine.Amd.Attestation;

/// <summary>
/// Security patch levels of what firmware trusts (TCB_VERSION): a report states them, a VCEK is bound to them. The 8 bytes are laid out in one of two ways,
/// which family and model decide.
/// </summary>
/// <param name="BootLoader">Boot loader of the secure processor.</param>
/// <param name="Tee">Its operating system.</param>
/// <param name="Snp">SNP firmware.</param>
/// <param name="Microcode">Lowest microcode of all cores.</param>
/// <param name="Fmc">First mutable code; exists from Turin on and is 0 before.</param>
public readonly record struct TcbVersion(byte BootLoader, byte Tee, byte Snp, byte Microcode, byte Fmc = 0)
{
    public const int Size = 8;

    private const ulong ReservedBeforeTurin = 0x0000_ffff_ffff_0000;
    private const ulong ReservedFromTurin = 0x00ff_ffff_0000_0000;

    /// <summary>The form in reports and messages (snp.md 11.4, Linux psp-sev.h).</summary>
    public ulong Encode(EpycProduct product)
    {
        Span<byte> bytes = stackalloc byte[Size];
        bytes.Clear();
        if (HasFmc(product))
        {
            bytes[0] = Fmc;
            bytes[1] = BootLoader;
            bytes[2] = Tee;
            bytes[3] = Snp;
        }
        else
        {
            bytes[0] = BootLoader;
            bytes[1] = Tee;
            bytes[6] = Snp;
        }
        bytes[7] = Microcode;
        return BinaryPrimitives.ReadUInt64LittleEndian(bytes);
    }

    /// <summary>The parts of an encoded version. Reserved bytes are not looked at; <see cref="ReservedBits"/> says where they are.</summary>
    public static TcbVersion Decode(EpycProduct product, ulong encoded)
    {
        Span<byte> bytes = stackalloc byte[Size];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, encoded);
        return HasFmc(product)
            ? new TcbVersion(BootLoader: bytes[1], Tee: bytes[2], Snp: bytes[3], Microcode: bytes[7], Fmc: bytes[0])
            : new TcbVersion(BootLoader: bytes[0], Tee: bytes[1], Snp: bytes[6], Microcode: bytes[7]);
    }

    /// <summary>Bits of an encoded version that must be zero.</summary>
    public static ulong ReservedBits(EpycProduct product) => HasFmc(product) ? ReservedFromTurin : ReservedBeforeTurin;

    /// <summary>The product's TCB has an FMC part.</summary>
    public static bool HasFmc(EpycProduct product) => product == EpycProduct.Turin;

    /// <summary>No part is newer than the other's. Versions are not ordered: of two, neither may be.</summary>
    public bool IsWithin(TcbVersion limit) =>
        BootLoader <= limit.BootLoader && Tee <= limit.Tee && Snp <= limit.Snp && Microcode <= limit.Microcode && Fmc <= limit.Fmc;
}
