// The physical memory of one simulated machine: frames, what is in them, and under which key it was last written. Who may touch a
// frame (RMP, stage 2) is decided by the caller before it comes here; what a wrong key gets to see is decided here. PageArena
// lends the bytes; HostMemory.Frames.cs has the table of frames and their allocation.
//
// Invariants: plaintext is seen under the frame's own key and no other; a frame's contents never outlive its owner; a frame that
// nobody wrote has no bytes behind it and reads as zeros; and since frame numbers, versions and ciphertext follow from the seed
// and the calls alone, two machines that get the same calls agree on every byte. Not thread safe: a host runs one call at a time.

using System.Buffers.Binary;
using System.Security.Cryptography;
using SimMachine.Addressing;

namespace SimMachine;

/// <summary>Page frames with contents and encryption keys. Key 0 is plain memory; what other keys mean is the caller's choice (an ASID,
/// a KeyID).</summary>
/// <remarks>
/// All operations throw <see cref="ArgumentOutOfRangeException"/> for bytes outside a page and <see cref="InvalidOperationException"/>
/// for a frame that is not allocated; either is a bug of the caller, never an outcome of the simulation.
/// </remarks>
public sealed unsafe partial class HostMemory : IDisposable
{
    /// <summary>What <see cref="KeyOf"/> says of a frame whose blocks have different keys. No processor has so many.</summary>
    public const uint Mixed = uint.MaxValue;

    // Memory encryption works on blocks of 16 bytes.
    private const int KeyBlock = 16;

    private const int CipherBlock = SHA256.HashSizeInBytes;
    private static readonly byte[] s_zeroPage = GC.AllocateArray<byte>(PageSize.Bytes, pinned: true);

    private readonly ulong _seed;
    private readonly PageArena _arena;

    // Keys of the blocks of frames that have several; few frames do.
    private readonly Dictionary<ulong, uint[]> _mixedKeys = [];

    /// <param name="totalPages">Frames that can be handed out, numbers 1 to totalPages; at most <see cref="MaxPages"/>.</param>
    /// <param name="seed">The host's seed: what a wrong key reads follows from it.</param>
    public HostMemory(ulong totalPages, ulong seed)
        : this(totalPages, seed, PageArena.Shared)
    {
    }

    internal HostMemory(ulong totalPages, ulong seed, PageArena arena)
    {
        ArgumentOutOfRangeException.ThrowIfZero(totalPages);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(totalPages, MaxPages);
        TotalPages = totalPages;
        _seed = seed;
        _arena = arena;
    }

    /// <summary>Whose explorer is told which frames are looked at and changed; null for memory without one.</summary>
    internal Machine? Machine { get; init; }

    /// <summary>Safety net for a machine that was dropped without <see cref="Dispose"/>: its pages go back to the arena.</summary>
    ~HostMemory() => ReturnAllPages();

    /// <summary>The key under which the frame was last written; <see cref="Mixed"/> where its blocks have several.</summary>
    public uint KeyOf(Pfn pfn) => Allocated(pfn).Key;

    /// <summary>A number that changes whenever the frame's contents or key are changed.</summary>
    public uint VersionOf(Pfn pfn) => Allocated(pfn).Version;

    /// <summary>Reads through a key: the plaintext under the frame's own, a pseudo-ciphertext under any other. The latter is stable
    /// until the frame is next changed.</summary>
    public void Read(Pfn pfn, int offset, Span<byte> destination, uint key)
    {
        CheckBounds(offset, destination.Length);
        Declare(pfn, write: false);
        ref readonly var frame = ref Allocated(pfn);
        if (frame.Key == key)
            Plain(in frame).Slice(offset, destination.Length).CopyTo(destination);
        else if (frame.Key == Mixed)
            ReadMixed(pfn, in frame, offset, destination, key);
        else
            ReadCipher(pfn, in frame, offset, destination, key);
        GC.KeepAlive(this);
    }

    /// <summary>Writes through a key, which becomes that of the blocks of 16 bytes that are touched. A block that is written in part is
    /// read through the key first, as a cache line is: what another key had there becomes what this one reads.</summary>
    public void Write(Pfn pfn, int offset, ReadOnlySpan<byte> source, uint key)
    {
        CheckBounds(offset, source.Length);
        Declare(pfn, write: true);
        ref readonly var old = ref Allocated(pfn);
        if (source.IsEmpty)
            return;
        var whole = source.Length == PageSize.Bytes;
        var page = old.Page;
        var fresh = page == null ? _arena.Rent() : null;
        if (page == null)
            page = fresh;
        var bytes = new Span<byte>(page, PageSize.Bytes);
        if (!whole && fresh != null)
            bytes.Clear();
        var frameKey = whole || old.Key == key ? key : MixKeys(pfn, in old, bytes, offset, source.Length, key);
        source.CopyTo(bytes[offset..]);

        ref var frame = ref Touch(pfn);
        if (fresh != null)
            SetPage(ref frame, fresh);
        SetKey(pfn, ref frame, frameKey);
        frame.Version++;
        GC.KeepAlive(this);
    }

    /// <summary>Makes the page read as zeros under the key. The bytes behind it go back to the arena.</summary>
    public void Zero(Pfn pfn, uint key)
    {
        Declare(pfn, write: true);
        Allocated(pfn);
        ref var frame = ref Touch(pfn);
        DropPage(ref frame);
        SetKey(pfn, ref frame, key);
        frame.Version++;
    }

    /// <summary>Encrypts in place, as the launch commands of firmware do: the plaintext stays, the key under which it is seen changes. Of a page with
    /// several keys the plaintext is what key 0 reads.</summary>
    public void Encrypt(Pfn pfn, uint toKey)
    {
        Declare(pfn, write: true);
        if (Allocated(pfn).Key == Mixed)
        {
            Span<byte> bytes = stackalloc byte[PageSize.Bytes];
            Read(pfn, 0, bytes, 0);
            Write(pfn, 0, bytes, toKey);
            return;
        }
        ref var frame = ref Touch(pfn);
        frame.Key = toKey;
        frame.Version++;
    }

    /// <summary>The page's 4096 bytes without a copy, if the key is the frame's.</summary>
    /// <param name="pfn">The frame.</param>
    /// <param name="key">The key of the reader.</param>
    /// <param name="page">Good until the frame is changed or freed, and while this object is held.</param>
    public bool TryGetPlainSpan(Pfn pfn, uint key, out ReadOnlySpan<byte> page)
    {
        Declare(pfn, write: false);
        ref readonly var frame = ref Allocated(pfn);
        page = frame.Key == key ? Plain(in frame) : default;
        return frame.Key == key;
    }

    /// <summary>Copies what <paramref name="sourceKey"/> reads; the target's key becomes <paramref name="targetKey"/>.</summary>
    public void CopyPage(Pfn source, uint sourceKey, Pfn target, uint targetKey)
    {
        Declare(source, write: false);
        Allocated(target);
        ref readonly var frame = ref Allocated(source);
        if (frame.Key == sourceKey && frame.Page == null)
        {
            Zero(target, targetKey);
        }
        else if (frame.Key == sourceKey)
        {
            Write(target, 0, Plain(in frame), targetKey);
        }
        else
        {
            Span<byte> bytes = stackalloc byte[PageSize.Bytes];
            Read(source, 0, bytes, sourceKey);
            Write(target, 0, bytes, targetKey);
        }
    }

    /// <summary>Returns all contents to the arena. The machine's memory cannot be used afterwards.</summary>
    public void Dispose()
    {
        ReturnAllPages();
        GC.SuppressFinalize(this);
    }

    // See Baton.Touch.
    private void Declare(Pfn pfn, bool write) => Machine?.Baton?.Touch(this, pfn.Value, pfn.Value + 1, write);

    private void SetKey(Pfn pfn, ref Frame frame, uint key)
    {
        if (frame.Key == Mixed && key != Mixed)
            _mixedKeys.Remove(pfn.Value);
        frame.Key = key;
    }

    /// <summary>Prepares a write of part of a page under a key that is not the whole page's.</summary>
    /// <returns>The frame's key afterwards.</returns>
    private uint MixKeys(Pfn pfn, in Frame frame, Span<byte> bytes, int offset, int length, uint key)
    {
        if (!_mixedKeys.TryGetValue(pfn.Value, out var keys))
        {
            keys = new uint[PageSize.Bytes / KeyBlock];
            Array.Fill(keys, frame.Key);
        }
        int first = offset / KeyBlock, last = (offset + length - 1) / KeyBlock;
        Span<byte> edge = stackalloc byte[KeyBlock];
        foreach (var block in first == last ? [first] : new[] { first, last })
        {
            var covered = block * KeyBlock >= offset && (block + 1) * KeyBlock <= offset + length;
            if (covered || keys[block] == key)
                continue;
            ReadCipher(pfn, in frame, block * KeyBlock, edge, key);
            edge.CopyTo(bytes[(block * KeyBlock)..]);
        }
        keys.AsSpan(first, last - first + 1).Fill(key);
        if (!keys.AsSpan().ContainsAnyExcept(key))
            return key;
        _mixedKeys[pfn.Value] = keys;
        return Mixed;
    }

    private void ReadMixed(Pfn pfn, in Frame frame, int offset, Span<byte> destination, uint key)
    {
        var keys = _mixedKeys[pfn.Value];
        for (var done = 0; done < destination.Length;)
        {
            var at = offset + done;
            var part = destination[done..Math.Min(destination.Length, done + KeyBlock - (at % KeyBlock))];
            if (keys[at / KeyBlock] == key)
                Plain(in frame).Slice(at, part.Length).CopyTo(part);
            else
                ReadCipher(pfn, in frame, at, part, key);
            done += part.Length;
        }
    }

    private static ReadOnlySpan<byte> Plain(in Frame frame) =>
        frame.Page == null ? s_zeroPage : new ReadOnlySpan<byte>(frame.Page, PageSize.Bytes);

    /// <summary>What a foreign key sees: SHA-256(seed, pfn, frame's key, reader's key, version, block), little endian, 32 bytes a block.
    /// It says nothing about the plaintext, yet differs whenever frame, keys or version differ.</summary>
    private void ReadCipher(Pfn pfn, in Frame frame, int offset, Span<byte> destination, uint key)
    {
        Span<byte> input = stackalloc byte[32];
        Span<byte> block = stackalloc byte[CipherBlock];
        BinaryPrimitives.WriteUInt64LittleEndian(input, _seed);
        BinaryPrimitives.WriteUInt64LittleEndian(input[8..], pfn.Value);
        BinaryPrimitives.WriteUInt32LittleEndian(input[16..], frame.Key);
        BinaryPrimitives.WriteUInt32LittleEndian(input[20..], key);
        BinaryPrimitives.WriteUInt32LittleEndian(input[24..], frame.Version);
        while (!destination.IsEmpty)
        {
            BinaryPrimitives.WriteInt32LittleEndian(input[28..], offset / CipherBlock);
            SHA256.HashData(input, block);
            var part = block[(offset % CipherBlock)..];
            part = part[..Math.Min(part.Length, destination.Length)];
            part.CopyTo(destination);
            destination = destination[part.Length..];
            offset += part.Length;
        }
    }

    private static void CheckBounds(int offset, int length)
    {
        if (offset < 0 || offset > PageSize.Bytes || length > PageSize.Bytes - offset)
            throw new ArgumentOutOfRangeException(nameof(offset), $"{length} bytes at offset {offset} are not within a page.");
    }
}
