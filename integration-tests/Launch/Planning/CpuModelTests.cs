using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

public sealed class CpuModelTests
{
    public static TheoryData<string> SignatureVectors => SnpVectors.Ids("cpu-signature");

    [Theory]
    [MemberData(nameof(SignatureVectors))]
    public void Signature_Vector_IsTheSameAndComesApartAgain(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        (uint family, uint model, uint stepping) =
            (vector.Params.GetProperty("family").GetUInt32(), vector.Params.GetProperty("model").GetUInt32(), vector.Params.GetProperty("stepping").GetUInt32());
        CpuSignature signature = CpuSignature.From(family, model, stepping);
        Assert.Equal(SnpVector.Hex(vector.ExpectedText("eax")!), signature.Value);
        Assert.Equal((family, model, stepping), (signature.Family, signature.Model, signature.Stepping));
        Assert.Equal(signature, CpuModel.Find(id["cpusig-".Length..]).Signature);
    }

    [Theory]
    [InlineData(6u, 0x9eu, 12u, 0x000906ecu & ~0x900000u)]
    [InlineData(15u, 0xffu, 15u, 0x000f0fffu)]
    [InlineData(270u, 0xffu, 15u, 0x0fff0fffu)]
    public void Signature_AtTheEdgesOfItsFields_ComesApartAgain(uint family, uint model, uint stepping, uint value)
    {
        CpuSignature signature = CpuSignature.From(family, model, stepping);
        Assert.Equal(value, signature.Value);
        Assert.Equal((family, model, stepping), (signature.Family, signature.Model, signature.Stepping));
    }

    [Theory]
    [InlineData(271u, 0u, 0u, "family is 271 and the limit of its field in a CPU signature is 270")]
    [InlineData(23u, 256u, 0u, "model is 256 and the limit of its field in a CPU signature is 255")]
    [InlineData(23u, 1u, 16u, "stepping is 16 and the limit of its field in a CPU signature is 15")]
    public void Signature_NumberTooLarge_IsRefused(uint family, uint model, uint stepping, string message) =>
        Assert.Contains(message, Assert.Throws<LaunchInputException>(() => CpuSignature.From(family, model, stepping)).Message, StringComparison.Ordinal);

    [Theory]
    [InlineData("0x00a00f11", 0xa00f11u)]
    [InlineData("0XA20F12", 0xa20f12u)]
    [InlineData("8392466", 0x800f12u)]
    public void Signature_Text_IsRead(string text, uint value) => Assert.Equal(value, CpuSignature.Parse(text).Value);

    [Theory]
    [InlineData("")]
    [InlineData("0x")]
    [InlineData("a00f11")]
    [InlineData("-1")]
    [InlineData("0x1a00f1100")]
    [InlineData("EPYC")]
    public void Signature_TextThatIsNoNumber_IsRefused(string text) =>
        Assert.Contains($"'{text}' is not a number of at most 32 bits", Assert.Throws<LaunchInputException>(() => CpuSignature.Parse(text)).Message, StringComparison.Ordinal);

    [Theory]
    [InlineData("EPYC", 0x00800f12u)]
    [InlineData("epyc-v4", 0x00800f12u)]
    [InlineData("EPYC-IBPB", 0x00800f12u)]
    [InlineData("EPYC-Rome-v3", 0x00830f10u)]
    [InlineData("EPYC-MILAN-V2", 0x00a00f11u)]
    [InlineData("EPYC-Genoa-v1", 0x00a10f10u)]
    [InlineData("EPYC-Turin", 0x00b00f00u)]
    public void Find_KnownName_InAnyCase(string name, uint signature) => Assert.Equal(signature, CpuModel.Find(name).Signature.Value);

    [Fact]
    public void Find_NameOfAnyVector_HasItsSignature() =>
        Assert.All(
            SnpVectors.All.Where(vector => vector.Kind == "snp-launch-digest" && vector.Launch.VcpuType is not null),
            vector => Assert.Equal(vector.Launch.VcpuSig, CpuModel.Find(vector.Launch.VcpuType!).Signature.Value));

    [Theory]
    [InlineData("EPYC-Millan", "Did you mean 'EPYC-Milan'?")]
    [InlineData("epyc_genoa", "Did you mean 'EPYC-Genoa'?")]
    public void Find_NearlyAName_OffersIt(string name, string message)
    {
        var error = Assert.Throws<LaunchInputException>(() => CpuModel.Find(name));
        Assert.Contains(message, error.Message, StringComparison.Ordinal);
        Assert.Contains("EPYC-Rome-v2", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Find_NothingNear_ListsAllWithoutGuessing()
    {
        var error = Assert.Throws<LaunchInputException>(() => CpuModel.Find(new string('x', 5000)));
        Assert.DoesNotContain("Did you mean", error.Message, StringComparison.Ordinal);
        Assert.Contains("EPYC-Turin", error.Message, StringComparison.Ordinal);
    }
}
