using System.Security.Cryptography;
using Google.Protobuf;
using VmmService.Client.Attestation;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Launch;

/// <summary>The ID block and its authentication at LAUNCH_FINISH, signed by the client library for the launch that runs (snp.md 10.3).</summary>
public sealed class SnpIdBlockTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Policy = 0x30000;

    private static readonly byte[] s_family = [.. Enumerable.Range(1, 16).Select(i => (byte)i)];
    private static readonly byte[] s_image = [.. Enumerable.Range(101, 16).Select(i => (byte)i)];

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task ASignedBlock_IsAccepted_AndReportsSayWhoSignedIt(bool withAuthor)
    {
        await using PartLaunch launch = await StartedAsync();
        using var idKey = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        using var author = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        var block = SnpIdBlock.Sign(await DigestAsync(launch), Policy, idKey, withAuthor ? author : null, s_family, s_image, guestSvn: 7);

        await launch.Snp.FinishAsync(block.ToFinish());

        SnpReport report = await launch.Vm.Attestation.GetReportAsync();
        Assert.Equal((7u, Policy), (report.GuestSvn, report.Policy));
        Assert.Equal([s_family, s_image, block.IdKeyDigest, block.AuthorKeyDigest], [report.FamilyId.ToArray(), report.ImageId.ToArray(), report.IdKeyDigest.ToArray(), report.AuthorKeyDigest.ToArray()]);
        Assert.Equal(withAuthor ? 1u : 0, report.KeyInfo & 1);
        Assert.Equal(withAuthor, block.AuthorKeyDigest.Any(each => each != 0));
    }

    public static TheoryData<string, string> Wrong => new()
    {
        { "digest", "BAD_MEASUREMENT" },
        { "policy", "POLICY_FAILURE" },
        { "version", "INVALID_PARAM" },
        { "id key algorithm", "INVALID_PARAM" },
        { "author key algorithm", "INVALID_PARAM" },
        { "curve", "INVALID_PARAM" },
        { "key off the curve", "INVALID_PARAM" },
        { "reserved byte", "INVALID_PARAM" },
        { "block signature", "BAD_SIGNATURE" },
        { "block changed after it was signed", "BAD_SIGNATURE" },
        { "id key signature", "BAD_SIGNATURE" },
        { "author of another key", "BAD_SIGNATURE" },
    };

    [Theory]
    [MemberData(nameof(Wrong))]
    public async Task ABlock_ThatIsWrong_IsRefused_AndTheRightOneIsAcceptedAfterwards(string what, string status)
    {
        await using PartLaunch launch = await StartedAsync();
        using var idKey = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        using var author = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        byte[] digest = await DigestAsync(launch);
        SnpIdBlock good = SnpIdBlock.Sign(digest, Policy, idKey, author), bad = good;
        switch (what)
        {
            case "digest":
                bad = SnpIdBlock.Sign(SHA384.HashData(digest), Policy, idKey, author);
                break;
            case "policy":
                bad = SnpIdBlock.Sign(digest, Policy | (1 << 19), idKey, author);
                break;
            case "author of another key":
                bad = good with { Authentication = Merge(good, SnpIdBlock.Sign(digest, Policy, author, idKey), 0x680, 0x200) };
                break;
            case "version":
                bad = good with { Block = Change(good.Block, 0x50) };
                break;
            case "block changed after it was signed":
                bad = good with { Block = Change(good.Block, 0x30) };
                break;
            default:
                int at = what switch
                {
                    "id key algorithm" => 0,
                    "author key algorithm" => 4,
                    "curve" => 0x240,
                    "key off the curve" => 0x244,
                    "reserved byte" => 8,
                    "block signature" => 0x40,
                    "id key signature" => 0x680,
                    _ => throw new ArgumentOutOfRangeException(nameof(what)),
                };
                bad = good with { Authentication = Change(good.Authentication, at) };
                break;
        }
        SnpLaunchFinishResponse refused = await launch.Snp.FinishAsync(bad.ToFinish()).Reply;
        Assert.Equal(("EIO", status), (refused.Outcome.ErrnoName, refused.Sev.ErrorName));

        // Without vCPUs the digest has not moved, so the launch is where it was.
        await launch.Snp.FinishAsync(good.ToFinish());
    }

    // auth_key_en is honoured with id_block_en only, and the author's parts are not looked at without it.
    [Fact]
    public async Task AnAuthorThatIsNotEnabled_IsNotLookedAt()
    {
        await using PartLaunch launch = await StartedAsync();
        using var idKey = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        using var author = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        SnpIdBlock block = SnpIdBlock.Sign(await DigestAsync(launch), Policy, idKey, author);
        block = block with { Authentication = Change(block.Authentication, 0x680), HasAuthor = false };
        await launch.Snp.FinishAsync(block.ToFinish());
        Assert.Equal(new byte[48], ((SnpReport)await launch.Vm.Attestation.GetReportAsync()).AuthorKeyDigest.ToArray());
    }

    [Fact]
    public async Task HostDataAndVcekDisabled_AreRecordedWithoutABlock()
    {
        await using PartLaunch launch = await StartedAsync();
        byte[] hostData = [.. Enumerable.Range(0, 32).Select(i => (byte)(i + 1))];
        await launch.Snp.FinishAsync(new KvmSevSnpLaunchFinish { HostData = ByteString.CopyFrom(hostData), VcekDisabled = true });
        GetReportResponse refused = await launch.Vm.Attestation.GetReportAsync().Reply;
        Assert.Equal(("EIO", "INVALID_KEY"), (refused.Outcome.ErrnoName, refused.MessageStatus.StatusName));
        await launch.Sev.SnpVlekLoadAsync("cloud.example");
        SnpReport report = await launch.Vm.Attestation.GetReportAsync();
        Assert.Equal("VLEK", report.SigningKey);
        Assert.Equal(hostData, report.HostData.ToArray());
        Assert.All(new[] { report.IdKeyDigest, report.AuthorKeyDigest, report.FamilyId, report.ImageId }, each => Assert.All(each.ToArray(), value => Assert.Equal(0, value)));
    }

    private async Task<PartLaunch> StartedAsync()
    {
        PartLaunch launch = await PartLaunch.CreateAsync(daemon);
        await launch.AddPageAsync(0);
        await launch.Snp.StartAsync(Policy);
        await launch.UpdateAsync(0, V1.SnpPageType.Normal, GuestBench.Filled(1, 0x1d));
        return launch;
    }

    private static async Task<byte[]> DigestAsync(PartLaunch launch) => Convert.FromHexString(await launch.Snp.CurrentDigestAsync());

    private static byte[] Change(ReadOnlyMemory<byte> bytes, int at)
    {
        byte[] changed = bytes.ToArray();
        changed[at] ^= 2;
        return changed;
    }

    private static byte[] Merge(SnpIdBlock block, SnpIdBlock other, int at, int length)
    {
        byte[] merged = block.Authentication.ToArray();
        other.Authentication.Slice(at, length).CopyTo(merged.AsMemory(at));
        return merged;
    }
}
