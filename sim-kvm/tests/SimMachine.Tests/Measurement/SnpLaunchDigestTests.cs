// The launch digest: layout of PAGE_INFO, the published and computed chains, and what of a page counts.

using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text.Json;
using SimMachine.Addressing;
using SimMachine.Measurement;
using Xunit;

namespace SimMachine.Tests.Measurement;

public class SnpLaunchDigestTests
{
    private static readonly byte[] s_zeros = new byte[SnpLaunchDigest.Size];

    public static TheoryData<string> Chains => [.. SnpVectors.IdsOf("page-info-chain")];

    public static TheoryData<string> VmsaPages => [.. SnpVectors.IdsOf("vmsa-page")];

    public static TheoryData<int> Seeds => [1, 2, 3, 5, 8, 13];

    [Theory]
    [InlineData(nameof(SnpPageInfo.DIGEST_CUR), 0x00)]
    [InlineData(nameof(SnpPageInfo.CONTENTS), 0x30)]
    [InlineData(nameof(SnpPageInfo.LENGTH), 0x60)]
    [InlineData(nameof(SnpPageInfo.PAGE_TYPE), 0x62)]
    [InlineData(nameof(SnpPageInfo.IMI_PAGE), 0x63)]
    [InlineData(nameof(SnpPageInfo.RESERVED), 0x64)]
    [InlineData(nameof(SnpPageInfo.VMPL1_PERMS), 0x65)]
    [InlineData(nameof(SnpPageInfo.VMPL2_PERMS), 0x66)]
    [InlineData(nameof(SnpPageInfo.VMPL3_PERMS), 0x67)]
    [InlineData(nameof(SnpPageInfo.GPA), 0x68)]
    public void PageInfo_Field_IsWhereFirmwareHasIt(string field, int offset)
    {
        Assert.Equal(offset, (int)Marshal.OffsetOf<SnpPageInfo>(field));
        Assert.Equal(0x70, Marshal.SizeOf<SnpPageInfo>());
    }

    [Theory]
    [MemberData(nameof(Chains))]
    public void Extend_ChainOfTheVectors_GivesEveryDigest(string id)
    {
        JsonElement vector = SnpVectors.Get(id);
        JsonElement parameters = vector.GetProperty("params");
        var digest = new SnpLaunchDigest(parameters.Bytes("initial"));
        List<string> steps = [];
        foreach (JsonElement op in parameters.GetProperty("ops").EnumerateArray())
        {
            var type = (SnpPageType)op.GetProperty("type").GetInt32();
            digest.Extend(type, SnpVectors.Hex(op.GetProperty("gpa").GetString()!), ContentHash(type, op));
            steps.Add(Convert.ToHexStringLower(digest.Current));
        }
        JsonElement expected = vector.GetProperty("expected");
        Assert.Equal(expected.GetProperty("digest").GetString(), steps[^1]);
        if (expected.TryGetProperty("steps", out JsonElement each))
        {
            Assert.Equal(each.EnumerateArray().Select(step => step.GetString()!), steps);
        }
    }

    [Theory]
    [MemberData(nameof(VmsaPages))]
    public void ContentHash_VmsaOfTheVectors_IsItsSha384WhateverTheGuestTscFieldsHold(string id)
    {
        JsonElement expected = SnpVectors.Get(id).GetProperty("expected");
        byte[] page = new byte[PageSize.Bytes];
        foreach (JsonElement run in expected.GetProperty("nonzero_qwords").EnumerateArray())
        {
            Convert.FromHexString(run[1].GetString()!).CopyTo(page, (int)SnpVectors.Hex(run[0].GetString()!));
        }
        byte[] hash = new byte[SnpLaunchDigest.Size];
        SnpLaunchDigest.ContentHash(SnpPageType.VMSA, page, hash);
        Assert.Equal(expected.GetProperty("sha384").GetString(), Convert.ToHexStringLower(hash));

        page.AsSpan(0x2F0, 16).Fill(0xA5);
        SnpLaunchDigest.ContentHash(SnpPageType.VMSA, page, hash);
        Assert.Equal(expected.GetProperty("sha384").GetString(), Convert.ToHexStringLower(hash));
    }

    [Theory]
    [InlineData(0x2EF)]
    [InlineData(0x300)]
    public void ContentHash_VmsaBytesBesideTheGuestTscFields_Count(int offset)
    {
        byte[] page = new byte[PageSize.Bytes];
        byte[] hash = new byte[SnpLaunchDigest.Size];
        page[offset] = 1;
        SnpLaunchDigest.ContentHash(SnpPageType.VMSA, page, hash);
        Assert.Equal(SHA384.HashData(page), hash);
    }

    [Fact]
    public void ContentHash_NormalPage_CountsTheGuestTscFieldsToo()
    {
        byte[] page = new byte[PageSize.Bytes];
        byte[] hash = new byte[SnpLaunchDigest.Size];
        page[0x2F0] = 1;
        SnpLaunchDigest.ContentHash(SnpPageType.NORMAL, page, hash);
        Assert.Equal(SHA384.HashData(page), hash);
    }

    [Theory]
    [InlineData(SnpPageType.ZERO)]
    [InlineData(SnpPageType.UNMEASURED)]
    [InlineData(SnpPageType.SECRETS)]
    [InlineData(SnpPageType.CPUID)]
    public void ContentHash_TypesWhoseContentIsNotMeasured_IsZero(SnpPageType type)
    {
        byte[] page = new byte[PageSize.Bytes];
        byte[] hash = new byte[SnpLaunchDigest.Size];
        page.AsSpan().Fill(7);
        hash.AsSpan().Fill(7);
        SnpLaunchDigest.ContentHash(type, page, hash);
        Assert.Equal(s_zeros, hash);
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    public void Extend_AnyPages_IsThePlatformsSha384OfThePageInfo(int seed)
    {
        var random = new Random(seed);
        var digest = new SnpLaunchDigest();
        byte[] info = new byte[SnpPageInfo.Bytes];
        for (int step = 0; step < 200; step++)
        {
            byte[] expected = info[..SnpLaunchDigest.Size];
            Assert.True(digest.Current.SequenceEqual(expected), $"seed {seed}, step {step}");
            random.NextBytes(info);
            expected.CopyTo(info, 0);
            info[0x60] = 0x70;
            info[0x61] = 0;
            info[0x63] &= 1;
            info[0x64] = 0;
            ulong gpa = BitConverter.ToUInt64(info, 0x68);
            digest.Extend((SnpPageType)info[0x62], gpa, info.AsSpan(0x30, 48), info[0x63] == 1, info[0x65], info[0x66], info[0x67]);
            SHA384.HashData(info).CopyTo(info, 0);
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(47)]
    [InlineData(49)]
    public void Extend_HashOfAnotherSize_ThrowsAndLeavesTheDigest(int size)
    {
        var digest = new SnpLaunchDigest();
        Assert.Throws<ArgumentOutOfRangeException>(() => digest.Extend(SnpPageType.NORMAL, 0, new byte[size]));
        Assert.True(digest.Current.SequenceEqual(s_zeros));
    }

    [Theory]
    [InlineData(SnpPageType.NORMAL, 4095)]
    [InlineData(SnpPageType.NORMAL, 8192)]
    [InlineData(SnpPageType.VMSA, 0)]
    [InlineData(SnpPageType.VMSA, 4097)]
    public void ContentHash_NotAPage_Throws(SnpPageType type, int size) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => SnpLaunchDigest.ContentHash(type, new byte[size], new byte[SnpLaunchDigest.Size]));

    // CONTENTS as the vector gives it, worked out here where it gives the page.
    private static byte[] ContentHash(SnpPageType type, JsonElement op)
    {
        byte[] hash = new byte[SnpLaunchDigest.Size];
        if (op.TextOr("input") is { } input)
        {
            int start = op.GetProperty("page_index").GetInt32() * PageSize.Bytes;
            SnpLaunchDigest.ContentHash(type, SnpVectors.Input(input).AsSpan(start, PageSize.Bytes), hash);
            Assert.Equal(op.Bytes("contents_sha384"), hash);
        }
        else if (op.TextOr("data") is { } data)
        {
            byte[] buffer = MarkedBuffer();
            int page = data[data.LastIndexOf("page ", StringComparison.Ordinal) + "page ".Length] - '0';
            SnpLaunchDigest.ContentHash(type, buffer.AsSpan(page * PageSize.Bytes, PageSize.Bytes), hash);
        }
        else if (op.TextOr("contents_sha384") is { } known)
        {
            hash = Convert.FromHexString(known);
        }
        else
        {
            SnpLaunchDigest.ContentHash(type, default, hash);
        }
        return hash;
    }

    // chain-gce-update says in words what it measures: three pages of zeros that begin and end with a mark.
    private static byte[] MarkedBuffer()
    {
        byte[] buffer = new byte[3 * PageSize.Bytes];
        for (int i = 0; i < 4; i++)
        {
            "LGTM"u8.CopyTo(buffer.AsSpan(i * 4));
            "LGTM"u8.CopyTo(buffer.AsSpan(buffer.Length - 16 + (i * 4)));
        }
        Assert.Equal(SnpVectors.Get("chain-gce-update").GetProperty("params").Bytes("buffer_sha256"), SHA256.HashData(buffer));
        return buffer;
    }
}
