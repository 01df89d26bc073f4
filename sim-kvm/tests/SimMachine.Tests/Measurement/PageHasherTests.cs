// Every width of lanes against the platform's SHA-384: each count of pages, so that full batches, idle lanes and single pages all come up.

using System.Runtime.Intrinsics;
using System.Security.Cryptography;
using SimMachine.Addressing;
using SimMachine.Measurement;
using Xunit;

namespace SimMachine.Tests.Measurement;

public unsafe class PageHasherTests
{
    private const int DigestBytes = PageHasher.DigestBytes;
    private const int MostPages = 33;

    public static TheoryData<int> Counts => [.. Enumerable.Range(0, MostPages + 1)];

    public static TheoryData<int> Seeds => [1, 2, 3, 5, 8, 13];

    [Theory]
    [MemberData(nameof(Counts))]
    public void EightLanes_AnyCount_EqualThePlatform(int count)
    {
        Assert.SkipUnless(EightLanes.IsSupported, "This machine has no AVX-512.");
        AssertLanes<EightLanes, Vector512<ulong>>(count);
    }

    [Theory]
    [MemberData(nameof(Counts))]
    public void FourLanes_AnyCount_EqualThePlatform(int count)
    {
        Assert.SkipUnless(FourLanes.IsSupported, "This machine has no AVX2.");
        AssertLanes<FourLanes, Vector256<ulong>>(count);
    }

    [Theory]
    [MemberData(nameof(Counts))]
    public void OneLane_AnyCount_EqualsThePlatform(int count) => AssertLanes<OneLane, ulong>(count);

    [Theory]
    [MemberData(nameof(Counts))]
    public void HashPages_OneAfterTheOther_EqualThePlatform(int count)
    {
        byte[] pages = RandomPages(count, seed: count);
        byte[] digests = new byte[count * DigestBytes];
        PageHasher.HashPages(pages, digests);
        Assert.Equal(Expected(pages), digests);
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    public void HashPages_ScatteredAndRepeated_EqualThePlatform(int seed)
    {
        var random = new Random(seed);
        byte[] pages = RandomPages(MostPages, seed);
        int[] order = [.. Enumerable.Range(0, 100).Select(_ => random.Next(MostPages))];
        byte[] expected = Expected([.. order.SelectMany(page => pages.Skip(page * PageSize.Bytes).Take(PageSize.Bytes))]);
        byte[] digests = new byte[order.Length * DigestBytes];
        fixed (byte* first = pages)
        {
            nint start = (nint)first;
            PageHasher.HashPages((ReadOnlySpan<nint>)[.. order.Select(page => start + (page * PageSize.Bytes))], digests);
        }
        Assert.True(expected.AsSpan().SequenceEqual(digests), $"seed {seed}");
    }

    [Fact]
    public void HashPages_MoreThanPointersAreKeptOf_EqualThePlatform()
    {
        byte[] pages = RandomPages(200, seed: 200);
        byte[] digests = new byte[200 * DigestBytes];
        PageHasher.HashPages(pages, digests);
        Assert.Equal(Expected(pages), digests);
    }

    [Theory]
    [InlineData(0x00)]
    [InlineData(0xFF)]
    [InlineData(0x80)]
    public void HashPages_OfOneByteRepeated_EqualThePlatform(byte value)
    {
        byte[] pages = new byte[8 * PageSize.Bytes];
        pages.AsSpan().Fill(value);
        byte[] digests = new byte[8 * DigestBytes];
        PageHasher.HashPages(pages, digests);
        Assert.Equal(Expected(pages), digests);
    }

    [Fact]
    public void HashPages_OneBitFlipped_ChangesThatPagesDigestOnly()
    {
        byte[] pages = RandomPages(8, seed: 8);
        byte[] before = new byte[8 * DigestBytes];
        byte[] after = new byte[8 * DigestBytes];
        PageHasher.HashPages(pages, before);
        for (int page = 0; page < 8; page++)
        {
            int at = (page * PageSize.Bytes) + (page * 585);
            pages[at] ^= 1;
            PageHasher.HashPages(pages, after);
            pages[at] ^= 1;
            int[] changed = [.. Enumerable.Range(0, 8).Where(i => !Digest(before, i).SequenceEqual(Digest(after, i)))];
            Assert.Equal([page], changed);
        }
    }

    [Theory]
    [InlineData(1, 48)]
    [InlineData(4095, 48)]
    [InlineData(4097, 48)]
    [InlineData(4096, 0)]
    [InlineData(4096, 47)]
    [InlineData(4096, 96)]
    [InlineData(0, 48)]
    public void HashPages_BytesThatAreNotPagesAndTheirDigests_Throws(int pageBytes, int digestBytes)
    {
        byte[] pages = new byte[pageBytes];
        byte[] digests = new byte[digestBytes];
        Assert.Throws<ArgumentException>(() => PageHasher.HashPages(pages, digests));
    }

    private static ReadOnlySpan<byte> Digest(byte[] digests, int page) => digests.AsSpan(page * DigestBytes, DigestBytes);

    // All of the pages by lanes, and with the leftovers left to the platform. Pages lie with gaps, in reverse, at odd addresses.
    private static void AssertLanes<TLanes, TWord>(int count)
        where TLanes : ILanes<TWord>
        where TWord : unmanaged
    {
        const int stride = PageSize.Bytes + 24;
        byte[] pages = RandomPages(count, seed: 100 + count);
        byte[] scattered = new byte[(count * stride) + 1];
        byte[] byLanes = new byte[count * DigestBytes];
        byte[] byBoth = new byte[count * DigestBytes];
        fixed (byte* start = scattered)
        {
            byte** each = stackalloc byte*[count];
            for (int i = 0; i < count; i++)
            {
                each[i] = start + 1 + ((count - 1 - i) * stride);
                pages.AsSpan(i * PageSize.Bytes, PageSize.Bytes).CopyTo(new Span<byte>(each[i], PageSize.Bytes));
            }
            PageHasher.HashPages<TLanes, TWord>(each, count, byLanes, fewest: 0);
            PageHasher.HashPages<TLanes, TWord>(each, count, byBoth, fewest: int.MaxValue);
        }
        byte[] expected = Expected(pages);
        Assert.Equal(expected, byLanes);
        Assert.Equal(expected, byBoth);
    }

    private static byte[] RandomPages(int count, int seed)
    {
        byte[] pages = new byte[count * PageSize.Bytes];
        new Random(seed).NextBytes(pages);
        return pages;
    }

    private static byte[] Expected(byte[] pages) => [.. pages.Chunk(PageSize.Bytes).SelectMany(SHA384.HashData)];
}
