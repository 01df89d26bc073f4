using System.Buffers.Binary;

namespace VmmService.Client.Launch;

/// <summary>
/// A small firmware image of our own, for machines without OVMF: a genuine reset vector that leads to a halt loop, a footer table, and SEV metadata with every
/// kind of section. It boots nothing; it can be launched and measured.
/// </summary>
/// <remarks>
/// Layout from the end, in bytes: 0x10 the reset vector; 0x20 the end of the footer table; 0x400 the SEV metadata; 0x600 where the reset vector jumps to. The rest
/// is the text of <see cref="Filler"/>, so that nobody takes it for something else.
/// </remarks>
public static class SampleFirmware
{
    public const int Size = 128 << 10;

    private const string Filler = "VmmService sample firmware: it halts, it is measured, it does nothing else. ";
    private const int ResetVectorFromEnd = 0x10;
    private const int FooterFromEnd = 0x20;
    private const int MetadataFromEnd = 0x400;
    private const int HaltLoopFromEnd = 0x600;
    private const uint HashAreaBase = 0x81_0c00;
    private const uint HashAreaSize = 0x400;
    private const uint SecretAreaBase = 0x81_0000;
    private const uint SecretAreaSize = 0xc00;

    // IP 0xb004, CS base 0x80_0000: in the firmware's memory, as OVMF has it.
    private const uint ResetEip = 0x80_b004;

    private static readonly SevSection[] Sections =
    [
        new(0x80_0000, 0x9000, SevSectionType.SecMem),
        new(0x80_a000, 0x3000, SevSectionType.SecMem),
        new(0x80_d000, 0x1000, SevSectionType.Secrets),
        new(0x80_e000, 0x1000, SevSectionType.Cpuid),
        new(0x80_f000, 0x1000, SevSectionType.SvsmCaa),
        new(0x81_1000, 0xf000, SevSectionType.SecMem),
        new(0x81_0000, 0x1000, SevSectionType.KernelHashes),
    ];

    /// <summary>The image, always the same.</summary>
    public static byte[] Create()
    {
        byte[] image = new byte[Size];
        for (int i = 0; i < image.Length; i++)
        {
            image[i] = (byte)Filler[i % Filler.Length];
        }
        Code(image);
        Metadata(image.AsSpan(Size - MetadataFromEnd));
        Footer(image);
        return image;
    }

    // At 0xFFFFFFF0 the processor is in real mode with CS base 0xFFFF0000: a near jump reaches the loop, which disables interrupts and halts for ever.
    private static void Code(byte[] image)
    {
        ReadOnlySpan<byte> haltLoop = [0xfa, 0xf4, 0xeb, 0xfd]; // cli; hlt; jmp to hlt
        haltLoop.CopyTo(image.AsSpan(Size - HaltLoopFromEnd));
        Span<byte> vector = image.AsSpan(Size - ResetVectorFromEnd, ResetVectorFromEnd);
        vector.Fill(0x90); // nop
        const int jumpSize = 3;
        vector[0] = 0xe9; // jmp rel16
        BinaryPrimitives.WriteInt16LittleEndian(vector[1..], -(HaltLoopFromEnd - ResetVectorFromEnd) - jumpSize);
    }

    private static void Metadata(Span<byte> metadata)
    {
        "ASEV"u8.CopyTo(metadata);
        BinaryPrimitives.WriteUInt32LittleEndian(metadata[4..], (uint)(16 + (12 * Sections.Length)));
        BinaryPrimitives.WriteUInt32LittleEndian(metadata[8..], 1);
        BinaryPrimitives.WriteUInt32LittleEndian(metadata[12..], (uint)Sections.Length);
        for (int i = 0; i < Sections.Length; i++)
        {
            Span<byte> section = metadata[(16 + (12 * i))..];
            BinaryPrimitives.WriteUInt32LittleEndian(section, Sections[i].Gpa);
            BinaryPrimitives.WriteUInt32LittleEndian(section[4..], Sections[i].Size);
            BinaryPrimitives.WriteUInt32LittleEndian(section[8..], (uint)Sections[i].Type);
        }
    }

    private static void Footer(byte[] image)
    {
        var table = new MemoryStream();
        Entry(table, FirmwareImage.SevMetadataId, MetadataFromEnd);
        Entry(table, FirmwareImage.HashAreaId, HashAreaBase, HashAreaSize);
        Entry(table, FirmwareImage.SecretAreaId, SecretAreaBase, SecretAreaSize);
        Entry(table, FirmwareImage.SevEsResetBlockId, ResetEip);
        Span<byte> footer = stackalloc byte[18];
        BinaryPrimitives.WriteUInt16LittleEndian(footer, (ushort)(table.Length + 18));
        FirmwareImage.FooterId.TryWriteBytes(footer[2..]);
        table.Write(footer);
        table.ToArray().CopyTo(image, Size - FooterFromEnd - (int)table.Length);
    }

    private static void Entry(MemoryStream table, Guid id, params ReadOnlySpan<uint> values)
    {
        Span<byte> word = stackalloc byte[4];
        foreach (uint value in values)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(word, value);
            table.Write(word);
        }
        BinaryPrimitives.WriteUInt16LittleEndian(word, (ushort)((values.Length * 4) + 18));
        table.Write(word[..2]);
        table.Write(id.ToByteArray());
    }
}
