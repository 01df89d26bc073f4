using System.Buffers.Binary;

namespace SimMachine.Amd;

/// <summary>
/// The secrets page: what firmware tells a new SNP guest and nobody else, above all the keys of its messages to firmware. Next door: <see
/// cref="CpuidPage"/>.
/// </summary>
/// <remarks>
/// Layout version 3 (snp.md 9.1; Linux struct snp_secrets_page). Everything that is not named here belongs to the guest and starts as zeros: the OS
/// area (message sequence numbers, AP jump table), the SVSM fields, the tail.
/// </remarks>
public static class SecretsPage
{
    public const int Size = 4096;

    public const uint Version = 3;

    /// <summary>Bytes of one VM platform communication key.</summary>
    public const int VmpckSize = 32;

    public const int GosvwSize = 16;

    private const int ImiOffset = 0x4;
    private const int FmsOffset = 0x8;
    private const int GosvwOffset = 0x10;
    private const int VmpckOffset = 0x20;
    private const int TscFactorOffset = 0x160;

    /// <summary>Fills the page.</summary>
    /// <param name="page">4096 bytes; what they held is overwritten.</param>
    /// <param name="vmpck">VMPCK0 to VMPCK3, 32 bytes each, one behind the other.</param>
    /// <param name="fms">CPUID 1 EAX of the processor (<see cref="PlatformCpuid.Fms"/>).</param>
    /// <param name="gosvw">Guest OS-visible workarounds, 16 bytes, as SNP_LAUNCH_START had them.</param>
    /// <param name="imi">The guest is an initial migration image.</param>
    /// <param name="tscFactor">By how many 100,000ths the mean frequency of the TSC is below the one that GUEST_TSC_FREQ names.</param>
    public static void Build(
        Span<byte> page, ReadOnlySpan<byte> vmpck, uint fms, ReadOnlySpan<byte> gosvw, bool imi = false, uint tscFactor = 0)
    {
        if (page.Length != Size || vmpck.Length != 4 * VmpckSize || gosvw.Length != GosvwSize)
        {
            throw new ArgumentException($"a secrets page takes {Size} bytes, {4 * VmpckSize} of keys and {GosvwSize} of workarounds");
        }
        page.Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(page, Version);
        BinaryPrimitives.WriteUInt32LittleEndian(page[ImiOffset..], imi ? 1u : 0);
        BinaryPrimitives.WriteUInt32LittleEndian(page[FmsOffset..], fms);
        gosvw.CopyTo(page[GosvwOffset..]);
        vmpck.CopyTo(page[VmpckOffset..]);
        BinaryPrimitives.WriteUInt32LittleEndian(page[TscFactorOffset..], tscFactor);
    }
}
