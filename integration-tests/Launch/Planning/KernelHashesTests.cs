using System.Security.Cryptography;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Launch.Planning;

public sealed class KernelHashesTests
{
    public static TheoryData<string> TableVectors => SnpVectors.Ids("kernel-hashes-table");

    [Theory]
    [MemberData(nameof(TableVectors))]
    public async Task Build_Vector_IsTheSameTableAndPage(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        KernelHashes hashes = await Compute(vector.Params.GetProperty("kernel").GetString()!, vector.Params.GetProperty("initrd").GetString(), vector.Params.GetProperty("append").GetString());
        uint gpa = (uint)SnpVector.Hex(vector.Params.GetProperty("table_gpa").GetString()!);

        Assert.Equal(vector.ExpectedText("table_hex"), Convert.ToHexStringLower(hashes.BuildTable()));
        Assert.Equal(vector.ExpectedText("page_sha384"), Convert.ToHexStringLower(SHA384.HashData(hashes.BuildPage(gpa))));
    }

    [Fact]
    public async Task FromFiles_IsTheSameAsFromStreams()
    {
        KernelHashes? fromFiles = await KernelHashes.FromFilesAsync(TestInputs.RequireFile("k-big"), TestInputs.RequireFile("i-odd"), "a b");
        KernelHashes fromStreams = await Compute("k-big", "i-odd", "a b");
        Assert.Equal(fromStreams.BuildTable(), fromFiles!.BuildTable());
    }

    [Fact]
    public async Task FromFiles_NothingGiven_IsNoKernel() => Assert.Null(await KernelHashes.FromFilesAsync(null, null, null));

    [Theory]
    [InlineData("initrd", null, "An initrd (--initrd) was given without a kernel")]
    [InlineData(null, "quiet", "A command line (--append) was given without a kernel")]
    [InlineData("initrd", "", "An initrd (--initrd) and a command line (--append) were given without a kernel")]
    public async Task FromFiles_CompanionsWithoutKernel_AreRefused(string? initrd, string? append, string message)
    {
        var error = await Assert.ThrowsAsync<LaunchInputException>(() => KernelHashes.FromFilesAsync(null, initrd, append));
        Assert.Contains(message, error.Message, StringComparison.Ordinal);
        Assert.Contains("Add --kernel", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Compute_CommandLineWithNul_IsRefused() => Assert.Contains("has a NUL at character 1", await CmdlineError("a\0b"), StringComparison.Ordinal);

    [Fact]
    public async Task Compute_CommandLineThatIsNoText_IsRefused() =>
        Assert.Contains("character 1 is half of a surrogate pair", await CmdlineError("a\ud800"), StringComparison.Ordinal);

    [Fact]
    public async Task FromFiles_MissingInitrd_NamesIt()
    {
        string kernel = TestInputs.RequireFile("k-small");
        var error = await Assert.ThrowsAsync<LaunchInputException>(() => KernelHashes.FromFilesAsync(kernel, "no/such.img", null));
        Assert.Contains("The initrd 'no/such.img' does not exist", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0x810f50u, true)]
    [InlineData(0x810f51u, false)]
    [InlineData(0x810fffu, false)]
    public async Task BuildPage_TableThatLeavesItsPage_IsRefused(uint gpa, bool fits)
    {
        KernelHashes hashes = await Compute("empty", null, null);
        if (fits)
            Assert.Equal(hashes.BuildTable(), hashes.BuildPage(gpa)[^KernelHashes.PaddedTableSize..]);
        else
            Assert.Contains("does not end in that page", Assert.Throws<LaunchInputException>(() => hashes.BuildPage(gpa)).Message, StringComparison.Ordinal);
    }

    internal static async Task<KernelHashes> Compute(string kernel, string? initrd, string? append) => await KernelHashes.ComputeAsync(
        new MemoryStream(TestInputs.Require(kernel)), initrd is null ? null : new MemoryStream(TestInputs.Require(initrd)), append);

    private static async Task<string> CmdlineError(string cmdline) =>
        (await Assert.ThrowsAsync<LaunchInputException>(() => KernelHashes.ComputeAsync(Stream.Null, null, cmdline))).Message;
}
