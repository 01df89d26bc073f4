using System.Security.Cryptography;
using System.Text.Json;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

public sealed class CpuidPageTests
{
    public static TheoryData<string> PageVectors => SnpVectors.Ids("cpuid-page");

    [Theory]
    [MemberData(nameof(PageVectors))]
    public void Build_Vector_IsTheSamePage(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        byte[] page = CpuidPage.Build([.. vector.Params.GetProperty("entries").EnumerateArray().Select(Read)]);
        string first = vector.ExpectedText("first_bytes_hex")!;
        Assert.Equal(first, Convert.ToHexStringLower(page.AsSpan(0, first.Length / 2)));
        Assert.Equal(vector.ExpectedText("page_sha256"), Convert.ToHexStringLower(SHA256.HashData(page)));
    }

    [Fact]
    public void Build_64Entries_Fit() => Assert.Equal(64, CpuidPage.Build(new SnpCpuidEntry[64])[0]);

    [Fact]
    public void Build_65Entries_AreRefused() =>
        Assert.Contains("would have 65 entries and its limit is 64", Assert.Throws<LaunchInputException>(() => CpuidPage.Build(new SnpCpuidEntry[65])).Message, StringComparison.Ordinal);

    // Columns: function, index, flags, then what becomes of ECX_IN, XCR0_IN and of answers that were all ones.
    [Theory]
    [InlineData(0x00000000u, 7u, 0u, 0u, 0ul, 0xffffffffu, 0xffffffffu, 0xffffffffu)]
    [InlineData(0x00000001u, 0u, 0u, 0u, 0ul, 0xffffffffu, 0xfeffffffu, 0xffffffffu)]
    [InlineData(0x00000007u, 0u, 1u, 0u, 0ul, 0xfffffffdu, 0xffffffffu, 0x03ffffffu)]
    [InlineData(0x00000007u, 1u, 1u, 1u, 0ul, 0xffffffffu, 0xffffffffu, 0xffffffffu)]
    [InlineData(0x0000000du, 0u, 1u, 0u, 1ul, 0x00000240u, 0xffffffffu, 0xffffffffu)]
    [InlineData(0x0000000du, 1u, 1u, 1u, 1ul, 0x00000240u, 0xffffffffu, 0xffffffffu)]
    [InlineData(0x0000000du, 2u, 1u, 2u, 0ul, 0xffffffffu, 0xffffffffu, 0xffffffffu)]
    [InlineData(0x80000008u, 0u, 0u, 0u, 0ul, 0xfdffffffu, 0xffffffffu, 0xffffffffu)]
    public void FromKvm_AdjustsAsQemuDoes(uint function, uint index, uint flags, uint ecxIn, ulong xcr0In, uint ebx, uint ecx, uint edx) => Assert.Equal(
        new SnpCpuidEntry(function, ecxIn, xcr0In, 0, uint.MaxValue, ebx, ecx, edx),
        SnpCpuidEntry.FromKvm(function, index, flags, uint.MaxValue, uint.MaxValue, uint.MaxValue, uint.MaxValue));

    private static SnpCpuidEntry Read(JsonElement entry)
    {
        return new SnpCpuidEntry(
            (uint)Number("eax_in"), (uint)Number("ecx_in"), Number("xcr0_in"), Number("xss_in"), (uint)Number("eax"), (uint)Number("ebx"), (uint)Number("ecx"), (uint)Number("edx"));

        ulong Number(string name) => SnpVector.Hex(entry.GetProperty(name).GetString()!);
    }
}
