// The secrets page field by field, at the offsets of Linux struct snp_secrets_page.

using System.Buffers.Binary;
using SimMachine.Amd;
using Xunit;

namespace SimMachine.Tests.Amd;

public class SecretsPageTests
{
    private static readonly byte[] Keys = [.. Enumerable.Range(1, 128).Select(i => (byte)i)];
    private static readonly byte[] Gosvw = [.. Enumerable.Range(0xA0, 16).Select(i => (byte)i)];

    [Fact]
    public void Build_PutsEachFieldAtItsOffset()
    {
        byte[] page = Filled();
        SecretsPage.Build(page, Keys, 0x00A00F11, Gosvw, imi: true, tscFactor: 0x12345678);

        byte[] expected = new byte[4096];
        BinaryPrimitives.WriteUInt32LittleEndian(expected, 3);
        expected[4] = 1;
        BinaryPrimitives.WriteUInt32LittleEndian(expected.AsSpan(8), 0x00A00F11);
        Gosvw.CopyTo(expected, 0x10);
        Keys.AsSpan(0, 32).CopyTo(expected.AsSpan(0x20));
        Keys.AsSpan(32, 32).CopyTo(expected.AsSpan(0x40));
        Keys.AsSpan(64, 32).CopyTo(expected.AsSpan(0x60));
        Keys.AsSpan(96, 32).CopyTo(expected.AsSpan(0x80));
        BinaryPrimitives.WriteUInt32LittleEndian(expected.AsSpan(0x160), 0x12345678);
        Assert.Equal(expected, page);
    }

    [Fact]
    public void Build_OrdinaryGuest_IsNoMigrationImage()
    {
        byte[] page = Filled();
        SecretsPage.Build(page, Keys, PlatformCpuid.Signature(EpycProduct.Genoa), Gosvw);
        Assert.Equal(0u, BinaryPrimitives.ReadUInt32LittleEndian(page.AsSpan(4)));
        Assert.Equal(0x00A10F11u, BinaryPrimitives.ReadUInt32LittleEndian(page.AsSpan(8)));
        Assert.Equal(0u, BinaryPrimitives.ReadUInt32LittleEndian(page.AsSpan(0x160)));
    }

    [Theory]
    [InlineData(4095, 128, 16)]
    [InlineData(4096, 127, 16)]
    [InlineData(4096, 128, 17)]
    public void Build_WrongSizes_AreTheCallersBug(int page, int keys, int gosvw) =>
        Assert.Throws<ArgumentException>(() => SecretsPage.Build(new byte[page], new byte[keys], 0, new byte[gosvw]));

    private static byte[] Filled()
    {
        byte[] page = new byte[4096];
        page.AsSpan().Fill(0xCC);
        return page;
    }
}
