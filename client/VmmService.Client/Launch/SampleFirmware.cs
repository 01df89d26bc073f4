using System.Buffers.Binary;
using System.Text;

namespace VmmService.Client.Launch;

/// <summary>
/// A firmware image of our own, for machines without OVMF: 64 KiB with a reset vector that runs, a footer table and SEV metadata of every kind that a launch knows.
/// It halts where OVMF would boot, which is all that a launch and its measurement need. It is the same on every machine, byte for byte.
/// </summary>
/// <remarks>
/// From the end of the image, which is at 4 GiB:
/// <code>
/// -0x10  eb ee             reset vector: jmp short to -0x20; then hlt (f4)
/// -0x20  fa f4 eb fd       cli; hlt; jmp short to the hlt; then hlt (f4). APs start here too
/// -0x32  footer            length of the table, footer GUID
///        entries           SEV-ES reset block, secret area, kernel-hash area, SEV metadata pointer, and a TDX metadata pointer if asked for
/// -0x600 SEV metadata
/// -0xa00 TDX metadata      if asked for
/// </code>
/// All else is filler: each 16 bytes are the text "VmmSvc ", their own offset in eight hexadecimal digits, and a line feed, so that a misplaced page can be
/// recognised by looking at it.
/// </remarks>
public static class SampleFirmware
{
    /// <summary>What it is called in messages.</summary>
    public const string Name = "the built-in sample firmware";

    /// <summary>Bytes; QEMU wants multiples of 64 KiB.</summary>
    public const int Size = 64 << 10;

    /// <summary>Most bytes of TDX metadata.</summary>
    public const int MaxTdxMetadata = TdxFromEnd - SevFromEnd;

    private const int ResetVectorFromEnd = 0x10;
    private const int HaltFromEnd = 0x20;
    private const int SevFromEnd = 0x600;
    private const int TdxFromEnd = 0xa00;
    private const uint SectionBase = 0x800000;

    // The kernel hashes share their page with the launch secret, as in edk2's AmdSev build.
    private const uint SecretBase = 0x810000;
    private const uint SecretSize = 0xc00;
    private const uint HashSize = 0x400;

    private static readonly (uint Gpa, uint Size, SevSectionType Type)[] s_sections =
    [
        (SectionBase, 0x9000, SevSectionType.SNP_SEC_MEM),
        (0x80a000, 0x3000, SevSectionType.SNP_SEC_MEM),
        (0x80d000, 0x1000, SevSectionType.SNP_SECRETS),
        (0x80e000, 0x1000, SevSectionType.CPUID),
        (0x80f000, 0x1000, SevSectionType.SNP_SEC_MEM),
        (SecretBase, 0x1000, SevSectionType.SNP_KERNEL_HASHES),
    ];

    /// <summary>Makes the image.</summary>
    /// <param name="tdxMetadata">Bytes to add as TDX metadata; none for an image without.</param>
    /// <param name="tdxDescriptorOffset">Where in these bytes the descriptor starts to which the footer points (a GUID stands in front of it).</param>
    public static byte[] Create(ReadOnlySpan<byte> tdxMetadata = default, int tdxDescriptorOffset = 0)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(tdxMetadata.Length, MaxTdxMetadata, nameof(tdxMetadata));
        ArgumentOutOfRangeException.ThrowIfNegative(tdxDescriptorOffset);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(tdxDescriptorOffset, tdxMetadata.Length);

        byte[] image = new byte[Size];
        Fill(image);
        WriteCode(image);

        List<(Guid Guid, uint[] Words)> entries = [];
        if (tdxMetadata.Length > 0)
        {
            tdxMetadata.CopyTo(image.AsSpan(Size - TdxFromEnd));
            entries.Add((FirmwareGuids.TdxMetadata, [(uint)(TdxFromEnd - tdxDescriptorOffset)]));
        }

        WriteSevMetadata(image.AsSpan(Size - SevFromEnd));
        entries.Add((FirmwareGuids.SevMetadata, [SevFromEnd]));
        entries.Add((FirmwareGuids.KernelHashArea, [SecretBase + SecretSize, HashSize]));
        entries.Add((FirmwareGuids.SecretArea, [SecretBase, SecretSize]));
        entries.Add((FirmwareGuids.SevEsResetBlock, [unchecked((uint)-HaltFromEnd)]));
        WriteTable(image, entries);
        return image;
    }

    private static void Fill(Span<byte> image)
    {
        for (int offset = 0; offset < image.Length; offset += 16)
            Encoding.ASCII.GetBytes($"VmmSvc {offset:x8}\n", image[offset..]);
    }

    private static void WriteCode(Span<byte> image)
    {
        image[^HaltFromEnd..].Fill(0xf4);
        ReadOnlySpan<byte> halt = [0xfa, 0xf4, 0xeb, 0xfd];
        halt.CopyTo(image[^HaltFromEnd..]);
        ReadOnlySpan<byte> reset = [0xeb, 0xee];
        reset.CopyTo(image[^ResetVectorFromEnd..]);
    }

    private static void WriteSevMetadata(Span<byte> at)
    {
        "ASEV"u8.CopyTo(at);
        WriteWords(at[4..], [(uint)(16 + (12 * s_sections.Length)), 1, (uint)s_sections.Length]);
        for (int i = 0; i < s_sections.Length; i++)
            WriteWords(at[(16 + (12 * i))..], [s_sections[i].Gpa, s_sections[i].Size, (uint)s_sections[i].Type]);
    }

    // Lowest address first; the table ends where the code starts.
    private static void WriteTable(Span<byte> image, List<(Guid Guid, uint[] Words)> entries)
    {
        int length = 18 + entries.Sum(entry => 18 + (4 * entry.Words.Length));
        Span<byte> at = image[^(HaltFromEnd + length)..];
        foreach ((Guid guid, uint[] words) in entries)
        {
            WriteWords(at, words);
            at = WriteTrailer(at[(4 * words.Length)..], 18 + (4 * words.Length), guid);
        }

        WriteTrailer(at, length, FirmwareGuids.Footer);
    }

    private static Span<byte> WriteTrailer(Span<byte> at, int length, Guid guid)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(at, (ushort)length);
        guid.TryWriteBytes(at[2..]);
        return at[18..];
    }

    private static void WriteWords(Span<byte> at, ReadOnlySpan<uint> words)
    {
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(at[(4 * i)..], words[i]);
    }
}
