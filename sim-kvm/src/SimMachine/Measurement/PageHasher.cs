using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Security.Cryptography;
using SimMachine.Addressing;

namespace SimMachine.Measurement;

/// <summary>
/// SHA-384 of many pages at once. Page hashes do not depend on each other, so a vector carries one page in each of its lanes: eight, or four, or,
/// where neither width is to be had, the platform's SHA-384 takes them one by one. The algorithm is in Sha384Lanes.cs.
/// </summary>
/// <remarks>Digests do not depend on the machine: which way a page was hashed is a matter of time alone.</remarks>
public static unsafe class PageHasher
{
    /// <summary>Bytes of a page's digest.</summary>
    public const int DigestBytes = Sha384Constants.DigestBytes;

    // A vector that straddled two lines would be loaded at half the speed.
    private const int CacheLine = 64;
    private const int PointersAtOnce = 64;

    // 2 MiB of scattered pages against SHA384.HashData (OpenSSL 3.0) page by page, each pair in one run, on an EPYC of family 25, model 17 (Zen
    // 4): eight lanes 2430 MiB/s to 745, 3.3 times; four lanes on the same machine with AVX-512 switched off 1360 to 750, 1.8 times; one lane 0.7
    // times, hence the platform for single pages. A batch takes as long as 2.5 pages by the platform in eight lanes, 2.2 in four: from three pages
    // on it pays, even if lanes stay idle.
    private const int FewestInEightLanes = 3;
    private const int FewestInFourLanes = 3;

    /// <summary>Hashes pages that lie one after the other.</summary>
    /// <param name="pages">Whole pages of 4096 bytes.</param>
    /// <param name="digests">48 bytes a page, in order.</param>
    /// <exception cref="ArgumentException">Part of a page, or not just as many digests as pages.</exception>
    public static void HashPages(ReadOnlySpan<byte> pages, Span<byte> digests)
    {
        if (pages.Length % PageSize.Bytes != 0)
        {
            throw new ArgumentException($"{pages.Length} bytes are not whole pages.", nameof(pages));
        }
        int total = pages.Length / PageSize.Bytes;
        CheckRoom(total, digests);

        byte** each = stackalloc byte*[PointersAtOnce];
        fixed (byte* first = pages)
        {
            for (int done = 0; done < total; done += PointersAtOnce)
            {
                int count = Math.Min(total - done, PointersAtOnce);
                for (int i = 0; i < count; i++)
                {
                    each[i] = first + ((long)(done + i) * PageSize.Bytes);
                }
                HashPages(each, count, digests.Slice(done * DigestBytes, count * DigestBytes));
            }
        }
    }

    /// <summary>Hashes pages that lie anywhere in native or pinned memory.</summary>
    /// <param name="pages">An address a page, each good for 4096 bytes; the same may come more than once.</param>
    /// <param name="digests">48 bytes a page, in order.</param>
    /// <exception cref="ArgumentException">Not just as many digests as pages.</exception>
    public static void HashPages(ReadOnlySpan<nint> pages, Span<byte> digests)
    {
        fixed (nint* each = pages)
        {
            HashPages((byte**)each, pages.Length, digests);
        }
    }

    /// <inheritdoc cref="HashPages(ReadOnlySpan{nint}, Span{byte})"/>
    public static void HashPages(byte** pages, int count, Span<byte> digests)
    {
        if (EightLanes.IsSupported)
        {
            HashPages<EightLanes, Vector512<ulong>>(pages, count, digests, FewestInEightLanes);
        }
        else if (FourLanes.IsSupported)
        {
            HashPages<FourLanes, Vector256<ulong>>(pages, count, digests, FewestInFourLanes);
        }
        else
        {
            HashEach(pages, count, digests);
        }
    }

    /// <summary>Hashes by lanes of one width.</summary>
    /// <param name="fewest">Pages left over from full batches for which a batch with lanes to spare is still better than the platform.</param>
    internal static void HashPages<TLanes, TWord>(byte** pages, int count, Span<byte> digests, int fewest)
        where TLanes : ILanes<TWord>
        where TWord : unmanaged
    {
        CheckRoom(count, digests);
        fixed (byte* first = digests)
        {
            int done = 0;
            for (; count - done >= TLanes.Count; done += TLanes.Count)
            {
                HashBatch<TLanes, TWord>(pages + done, first + (done * DigestBytes), TLanes.Count);
            }
            int left = count - done;
            if (left >= fewest && left > 0)
            {
                // Lanes to spare hash the last page once more.
                byte** filled = stackalloc byte*[TLanes.Count];
                for (int lane = 0; lane < TLanes.Count; lane++)
                {
                    filled[lane] = pages[done + Math.Min(lane, left - 1)];
                }
                HashBatch<TLanes, TWord>(filled, first + (done * DigestBytes), left);
            }
            else
            {
                HashEach(pages + done, left, digests[(done * DigestBytes)..]);
            }
        }
    }

    private static void HashEach(byte** pages, int count, Span<byte> digests)
    {
        CheckRoom(count, digests);
        for (int i = 0; i < count; i++)
        {
            SHA384.HashData(new ReadOnlySpan<byte>(pages[i], PageSize.Bytes), digests.Slice(i * DigestBytes, DigestBytes));
        }
    }

    private static void CheckRoom(int count, Span<byte> digests)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(count);
        if (digests.Length != (long)count * DigestBytes)
        {
            throw new ArgumentException($"{count} pages have {(long)count * DigestBytes} bytes of digests, not {digests.Length}.", nameof(digests));
        }
    }

    // A page a lane. Digests of the first `wanted` lanes are stored.
    [SkipLocalsInit]
    private static void HashBatch<TLanes, TWord>(byte** pages, byte* digests, int wanted)
        where TLanes : ILanes<TWord>
        where TWord : unmanaged
    {
        byte* memory = stackalloc byte[((Sha384Constants.Rounds + Sha384Constants.StateWords) * sizeof(TWord)) + CacheLine];
        TWord* words = (TWord*)(((nuint)memory + (CacheLine - 1)) & ~(nuint)(CacheLine - 1));
        TWord* state = words + Sha384Constants.Rounds;

        Sha384Lanes<TLanes, TWord>.Start(state);
        for (int offset = 0; offset < PageSize.Bytes; offset += Sha384Constants.BlockBytes)
        {
            TLanes.Load(pages, offset, words);
            Sha384Lanes<TLanes, TWord>.Expand(words);
            Sha384Lanes<TLanes, TWord>.Compress(state, words);
        }
        // A page is whole blocks, so padding is one more block and the same for all.
        Sha384Lanes<TLanes, TWord>.LoadPadding(words, PageSize.Bytes);
        Sha384Lanes<TLanes, TWord>.Expand(words);
        Sha384Lanes<TLanes, TWord>.Compress(state, words);

        for (int lane = 0; lane < wanted; lane++)
        {
            Sha384Lanes<TLanes, TWord>.StoreDigest(state, lane, new Span<byte>(digests + (lane * DigestBytes), DigestBytes));
        }
    }
}
