using System.Buffers.Binary;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

/// <summary>Images that lie, each a good image with one thing changed, and random damage. Only one exception is allowed, with a message that names field, place, value and limit.</summary>
public sealed class HostileFirmwareTests
{
    private const int Section0 = 16;

    // Name, what is done to a copy of synfw-hash, and what the message says.
    private static readonly (string Name, Func<Draft, byte[]> Change, string Message)[] s_cases =
    [
        ("empty", _ => [], "the size of the image is 0 bytes, but it has to be at least one page"),
        ("shorter than a page", draft => draft.Bytes[^4095..], "the size of the image is 4095 bytes, but it has to be at least one page"),
        ("not whole pages", draft => draft.Bytes[1..], "the size of the image is 262143 bytes, but it has to be a multiple of 4096"),
        ("oversized", _ => new byte[FirmwareImage.MaxSize + 4096], "the size of the image is more than 16777216 bytes, but the limit is 16777216"),
        ("table shorter than its footer", draft => draft.U16(-0x32, 17), "the length of the footer table at offset 0x3ffce is 17, but the footer alone takes 18"),
        ("table of no length", draft => draft.U16(-0x32, 0), "the length of the footer table at offset 0x3ffce is 0, but the footer alone takes 18"),
        ("table longer than the image", draft => new Draft(draft.Bytes[^4096..]).U16(-0x32, 0xffff), "is 65535, but only 4064 bytes of the image are in front of the table's end"),
        ("table that cuts an entry header", draft => draft.U16(-0x32, 18 + 22 + 5), "the rest of the footer table at offset 0x3ffb3 is 5 bytes long, but an entry takes at least 18"),
        ("table that cuts an entry", draft => draft.U16(-0x32, 18 + 20), "the length of the footer entry SEV-ES reset block at offset 0x3ffbc is 22, but only 20 bytes of the table are left for it"),
        ("entry of no length", draft => draft.U16(draft.Header(FirmwareGuids.SevEsResetBlock), 0), "the length of the footer entry SEV-ES reset block at offset 0x3ffbc is 0, but an entry takes at least 18"),
        ("entry shorter than its header", draft => draft.U16(draft.Header(FirmwareGuids.SecretArea), 17), "the length of the footer entry launch secret area at offset 0x3ffa6 is 17, but an entry takes at least 18"),
        ("entry longer than the table", draft => draft.U16(draft.Header(FirmwareGuids.SecretArea), 0xffff), "the length of the footer entry launch secret area at offset 0x3ffa6 is 65535, but only 74 bytes"),
        ("entry without its data", draft => draft.U16(draft.Header(FirmwareGuids.SevEsResetBlock), 18), "is 18, but this entry holds 4 bytes and 18 for length and GUID"),
        ("entry with half its data", draft => draft.U16(draft.Header(FirmwareGuids.KernelHashArea), 22), "the length of the footer entry kernel-hash area at offset 0x3ff8c is 22, but this entry holds 8 bytes"),
        ("entry twice", draft => draft.Guid(draft.Header(FirmwareGuids.SecretArea) + 2, FirmwareGuids.KernelHashArea), "the GUID of a footer entry at offset 0x3ff8e is kernel-hash area, but the table has that entry already"),
        ("footer as an entry", draft => draft.Guid(draft.Header(FirmwareGuids.SecretArea) + 2, FirmwareGuids.Footer), "is footer, but the table has that entry already"),
        ("hash area past 4 GiB", draft => draft.U32(draft.Data(FirmwareGuids.KernelHashArea) + 4, 0xfffffff0), "the size in the footer entry kernel-hash area at offset 0x3ff88 is 0xfffffff0, but from its base 0x810c00 only 0xff7ef400 bytes are left"),
        ("secret area past 4 GiB", draft => draft.U32(draft.Data(FirmwareGuids.SecretArea), 0xfffffff0), "only 0x10 bytes are left below 4 GiB"),
        ("SVSM entry point outside", draft => draft.Guid(draft.Header(FirmwareGuids.SevEsResetBlock) + 2, FirmwareGuids.SvsmInfo), "the entry point in the footer entry SVSM info at offset 0x3ffb8 is 0x80b004, but it is an offset in an image of 0x40000 bytes"),
        ("metadata in front of the image", draft => draft.U32(draft.Data(FirmwareGuids.SevMetadata), 0x40001), "the SEV metadata pointer at offset 0x3ff6e is 0x40001, but it is a distance from the end of an image of 0x40000 bytes"),
        ("metadata pointer of all ones", draft => draft.U32(draft.Data(FirmwareGuids.SevMetadata), uint.MaxValue), "the SEV metadata pointer at offset 0x3ff6e is 0xffffffff, but"),
        ("metadata behind the image", draft => draft.U32(draft.Data(FirmwareGuids.SevMetadata), 0), "the SEV metadata pointer at offset 0x3ff6e is 0x0, but it is a distance from the end of the image and the header alone takes 16 bytes"),
        ("metadata header cut by the end", draft => draft.U32(draft.Data(FirmwareGuids.SevMetadata), 15), "is 0xf, but it is a distance from the end of the image and the header alone takes 16 bytes"),
        ("metadata elsewhere", draft => draft.U32(draft.Data(FirmwareGuids.SevMetadata), 0x604), "(\"ASEV\"), so the pointer at offset 0x3ff6e points elsewhere"),
        ("metadata of another version", draft => draft.U32(draft.Metadata + 8, 2), "the version of the SEV metadata at offset 0x3fa08 is 2, but only version 1 is known"),
        ("metadata of version 0", draft => draft.U32(draft.Metadata + 8, 0), "the version of the SEV metadata at offset 0x3fa08 is 0, but only version 1 is known"),
        ("section count that does not fit", draft => draft.U32(draft.Metadata + 12, 127), "the section count of the SEV metadata at offset 0x3fa0c is 127, but 126 sections fit"),
        ("section count that wraps", draft => draft.U32(draft.Metadata + 12, 0x1555_5556), "the section count of the SEV metadata at offset 0x3fa0c is 357913942, but 126 sections fit"),
        ("section count of all ones", draft => draft.U32(draft.Metadata + 12, uint.MaxValue), "is 4294967295, but 126 sections fit"),
        ("metadata longer than its sections", draft => draft.U32(draft.Metadata + 4, 101), "the length of the SEV metadata at offset 0x3fa04 is 101, but a header of 16 and 7 sections of 12 bytes make 100"),
        ("metadata shorter than its sections", draft => draft.U32(draft.Metadata + 12, 8), "the length of the SEV metadata at offset 0x3fa04 is 100, but a header of 16 and 8 sections of 12 bytes make 112"),
        ("metadata of no length", draft => draft.U32(draft.Metadata + 4, 0), "the length of the SEV metadata at offset 0x3fa04 is 0, but"),
        ("section unaligned", draft => draft.U32(draft.Metadata + Section0, 0x800001), "the address of SEV section 0 at offset 0x3fa10 is 0x800001, but it has to be a multiple of 0x1000"),
        ("section of no size", draft => draft.U32(draft.Metadata + Section0 + 4, 0), "the size of SEV section 0 at offset 0x3fa14 is 0, but a section has at least one page"),
        ("section of half a page", draft => draft.U32(draft.Metadata + Section0 + 12 + 4, 0x800), "the size of SEV section 1 at offset 0x3fa20 is 0x800, but it has to be a multiple of 0x1000"),
        ("section past 4 GiB", draft => draft.U32(draft.Metadata + Section0 + 4, 0xff80_1000), "the size of SEV section 0 at offset 0x3fa14 is 0xff801000, but from its address 0x800000 only 0xff800000 bytes are left below 4 GiB"),
        ("section that wraps", draft => draft.U32(draft.Metadata + Section0, 0xffff_f000), "is 0x9000, but from its address 0xfffff000 only 0x1000 bytes are left below 4 GiB"),
        ("section over the image", draft => draft.U32(draft.Metadata + Section0, 0xfffb_8000), "the address of SEV section 0 at offset 0x3fa10 is 0xfffb8000 with 0x9000 bytes, but the image itself is loaded from 0xfffc0000"),
        ("sections that overlap", draft => draft.U32(draft.Metadata + Section0 + 4, 0xb000), "the address of SEV section 1 at offset 0x3fa1c is 0x80a000, but section 0 has 0x800000 to 0x80b000"),
        ("section twice", draft => draft.U32(draft.Metadata + Section0 + 24, 0x80e000), "the address of SEV section 3 at offset 0x3fa34 is 0x80e000, but section 2 has 0x80e000 to 0x80f000"),
    ];

    public static TheoryData<string> Cases => new(s_cases.Select(each => each.Name));

    public static TheoryData<int> Seeds => [1, 2, 3, 5, 8, 13, 21, 34];

    [Theory]
    [MemberData(nameof(Cases))]
    public void Parse_HostileImage_SaysFieldPlaceValueAndLimit(string name)
    {
        (_, Func<Draft, byte[]> change, string message) = s_cases.Single(each => each.Name == name);
        byte[] hostile = change(new Draft(TestInputs.Require("synfw-hash").ToArray()));

        var error = Assert.Throws<FirmwareFormatException>(() => FirmwareImage.Parse(hostile, "OVMF.fd"));
        Assert.StartsWith("OVMF.fd: the ", error.Message, StringComparison.Ordinal);
        Assert.Contains(message, error.Message, StringComparison.Ordinal);
        Assert.True(error.Offset is null || error.Offset < hostile.Length);
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    public void Parse_RandomDamage_IsRefusedOrConsistent(int seed)
    {
        byte[] good = TestInputs.Require("synfw-hash")[^(16 * 4096)..];
        var random = new Random(seed);
        int refused = 0;
        for (int round = 0; round < 1000; round++)
        {
            byte[] bytes = Damage(good, random);
            try
            {
                CheckConsistent(FirmwareImage.Parse(bytes));
            }
            catch (FirmwareFormatException)
            {
                refused++;
            }
            catch (Exception exception)
            {
                Assert.Fail($"seed {seed}, round {round}: {exception}");
            }
        }

        // The damage is aimed well enough that both outcomes are seen.
        Assert.InRange(refused, 50, 950);
    }

    private static byte[] Damage(byte[] good, Random random)
    {
        byte[] bytes = good.ToArray();
        if (random.Next(10) == 0)
            return random.Next(2) == 0 ? bytes[random.Next(bytes.Length)..] : bytes[..random.Next(bytes.Length)];

        for (int flips = random.Next(1, 6); flips > 0; flips--)
        {
            // Anywhere in the last page, in the table, or in the metadata.
            int fromEnd = random.Next(3) switch { 0 => random.Next(1, 4097), 1 => random.Next(0x20, 0xb0), _ => 0x600 - random.Next(100) };
            bytes[^fromEnd] = random.Next(3) switch { 0 => (byte)(bytes[^fromEnd] ^ (1 << random.Next(8))), 1 => 0xff, _ => (byte)random.Next(256) };
        }

        return bytes;
    }

    private static void CheckConsistent(FirmwareImage image)
    {
        foreach (SevSection section in image.SevSections)
        {
            Assert.True(section.Gpa % 4096 == 0 && section.Size % 4096 == 0 && section.Size > 0 && section.End <= image.Gpa);
            Assert.DoesNotContain(image.SevSections, other => other.Offset != section.Offset && other.Gpa < section.End && section.Gpa < other.End);
        }

        try
        {
            SnpLaunchPlan plan = SnpLaunchPlan.Create(image, VmmFlavor.Ec2, null, 2, default);
            Assert.Equal(1 + image.SevSections.Count, plan.Regions.Count);
        }
        catch (LaunchInputException)
        {
            // A section of an unknown type, or no reset block any more.
        }
    }

    // A copy of a good image and where things are in it. A negative offset counts from the end.
    private sealed class Draft(byte[] bytes)
    {
        private readonly FirmwareImage _good = FirmwareImage.Parse(bytes.ToArray());

        public byte[] Bytes { get; } = bytes;

        public int Metadata => _good.SevSections[0].Offset - Section0;

        public int Data(Guid guid) => _good.Entries.Single(entry => entry.Guid == guid).Offset;

        public int Header(Guid guid) => Data(guid) + _good.Find(guid)!.Value.Length;

        public byte[] U16(int offset, ushort value)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(At(offset), value);
            return Bytes;
        }

        public byte[] U32(int offset, uint value)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(At(offset), value);
            return Bytes;
        }

        public byte[] Guid(int offset, Guid value)
        {
            value.TryWriteBytes(At(offset));
            return Bytes;
        }

        private Span<byte> At(int offset) => Bytes.AsSpan(offset < 0 ? Bytes.Length + offset : offset);
    }
}
