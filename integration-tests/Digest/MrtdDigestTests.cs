using System.Text.Json;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Digest;

/// <summary>MRTD over sequences of calls.</summary>
public sealed class MrtdDigestTests
{
    public static TheoryData<string> Vectors => TdxVectors.Ids("mrtd");

    [Theory]
    [MemberData(nameof(Vectors))]
    public void Mrtd_OfVectorCalls_IsTheStatedOne(string id)
    {
        JsonElement vector = TdxVectors.Get("mrtd", id);
        using var digest = new MrtdDigest();
        List<string> inputs = [];
        foreach (JsonElement op in vector.GetProperty("ops").EnumerateArray())
        {
            ulong gpa = TdxVectors.Number(op, "gpa");
            switch (TdxVectors.Text(op, "op"))
            {
                case "page_add":
                    digest.AddPage(gpa);
                    break;
                case "mr_extend":
                    byte[] chunk = TdxVectors.Content(op.GetProperty("content"), MrtdDigest.ChunkSize);
                    inputs.Add(TdxVectors.Sha256(chunk));
                    digest.Extend(gpa, chunk);
                    break;
                default:
                    TdxRegion region = Region(op, gpa);
                    inputs.Add(TdxVectors.Sha256(region.Content.Span));
                    digest.Add(region, op.TryGetProperty("order", out JsonElement order) && order.GetString() == "per_region" ? MrtdOrder.PerRegion : MrtdOrder.PerPage);
                    break;
            }
        }

        Assert.Equal(vector.GetProperty("input_sha256").EnumerateArray().Select(input => TdxVectors.Text(input, "sha256")), inputs);
        Assert.Equal(TdxVectors.Text(vector, "mrtd"), digest.Current().ToString());
    }

    [Fact]
    public void Add_OfManyPages_EqualsAsManyCallsOfOnePage()
    {
        byte[] content = TestInputs.Sha256Counter("pages", 3 * 4096);
        TdxRegion whole = new(0x100000, 3 * 4096, Extend: true, "") { Content = content };
        IEnumerable<TdxRegion> pages = Enumerable.Range(0, 3).Select(i => new TdxRegion(0x100000 + (ulong)(i * 4096), 4096, Extend: true, "") { Content = content.AsMemory(i * 4096, 4096) });
        Assert.Equal(MrtdDigest.Measure([whole]), MrtdDigest.Measure(pages));
    }

    [Fact]
    public void Current_CanBeReadOnTheWay()
    {
        using var digest = new MrtdDigest();
        digest.AddPage(0);
        Hash384 one = digest.Current();
        digest.AddPage(0x1000);
        Assert.Equal(MrtdDigest.Measure([new(0, 0x1000, Extend: false, "")]), one);
        Assert.Equal(MrtdDigest.Measure([new(0, 0x2000, Extend: false, "")]), digest.Current());
    }

    private static TdxRegion Region(JsonElement op, ulong gpa)
    {
        int size = op.GetProperty("pages").GetInt32() * FirmwareImage.PageSize;
        return new(gpa, (ulong)size, op.GetProperty("measure").GetBoolean(), "") { Content = TdxVectors.Content(op.GetProperty("content"), size) };
    }
}
