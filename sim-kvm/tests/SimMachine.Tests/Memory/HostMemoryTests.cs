using SimMachine.Addressing;
using Xunit;

namespace SimMachine.Tests.Memory;

public sealed class HostMemoryTests : IDisposable
{
    private const uint GuestKey = 7;
    private readonly HostMemory _memory = new(totalPages: 1000, seed: 42);

    public static TheoryData<int> Seeds => [21, 22, 23, 24];

    public void Dispose() => _memory.Dispose();

    [Fact]
    public void TryAllocate_HandsOutAscendingFramesFromOne()
    {
        Assert.Equal([1UL, 2UL, 3UL], Allocate(3).Select(pfn => pfn.Value));
    }

    [Fact]
    public void TryAllocate_AfterFree_HandsOutTheFrameFreedLast()
    {
        var pfns = Allocate(4);
        _memory.Free(pfns[1]);
        _memory.Free(pfns[2]);
        Assert.Equal([pfns[2], pfns[1], new Pfn(5)], Allocate(3));
    }

    [Fact]
    public void TryAllocate_PastTheLimit_FailsUntilAFrameIsFreed()
    {
        var pfns = Allocate(1000);
        Assert.False(_memory.TryAllocate(out _));
        _memory.Free(pfns[500]);
        Assert.True(_memory.TryAllocate(out var pfn));
        Assert.Equal(pfns[500], pfn);
        Assert.True(pfn.Value <= _memory.TotalPages);
    }

    [Fact]
    public void NewFrame_HasNoBackingAndReadsAsZeros()
    {
        var pfn = Allocate(1)[0];
        Assert.True(AllZero(Page(pfn, 0)));
        Assert.True(_memory.TryGetPlainSpan(pfn, 0, out var page));
        Assert.Equal(4096, page.Length);
        Assert.Equal(-1, page.IndexOfAnyExcept((byte)0));
        Assert.Equal(0, _memory.BackedPages);
    }

    [Fact]
    public void PartialWrite_ToANewFrame_LeavesZerosAround()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 4090, [1, 2, 3, 4, 5, 6], 0);
        var page = Page(pfn, 0);
        Assert.Equal([0, 1, 2, 3, 4, 5, 6], page[4089..]);
        Assert.True(AllZero(page.AsSpan(0, 4090)));
        Assert.Equal(1, _memory.BackedPages);
    }

    [Fact]
    public void Read_UnderAnotherKey_IsStableNoiseThatIsNotThePlaintext()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(3), GuestKey);
        var cipher = Page(pfn, 0);
        Assert.Equal(cipher, Page(pfn, 0));
        Assert.DoesNotContain(Enumerable.Range(0, 256), i => cipher.AsSpan(i * 16, 16).SequenceEqual(Pattern(3).AsSpan(i * 16, 16)));
        Assert.NotEqual(cipher, Page(pfn, 8));
        Assert.Equal(Pattern(3), Page(pfn, GuestKey));
        Assert.False(_memory.TryGetPlainSpan(pfn, 0, out _));
    }

    [Fact]
    public void Read_UnderAnotherKey_DoesNotTellZerosFromAnythingElse()
    {
        var pfn = Allocate(1)[0];
        var cipher = Page(pfn, GuestKey);
        Assert.False(AllZero(cipher));
        Assert.Equal(0, _memory.BackedPages);
        Assert.Equal(256, cipher.Chunk(16).Select(Convert.ToHexString).Distinct().Count());
    }

    [Theory]
    [InlineData(0, 1)]
    [InlineData(31, 2)]
    [InlineData(100, 4096 - 100)]
    [InlineData(4095, 1)]
    public void Read_OfAPartOfCiphertext_IsThatPartOfThePage(int offset, int length)
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(1), GuestKey);
        var part = new byte[length];
        _memory.Read(pfn, offset, part, 0);
        Assert.Equal(Page(pfn, 0).AsSpan(offset, length).ToArray(), part);
    }

    [Fact]
    public void Ciphertext_ChangesWithEachWrite()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(1), GuestKey);
        var (cipher, version) = (Page(pfn, 0), _memory.VersionOf(pfn));
        _memory.Write(pfn, 0, [9], GuestKey);
        Assert.NotEqual(cipher, Page(pfn, 0));
        Assert.NotEqual(version, _memory.VersionOf(pfn));
    }

    [Fact]
    public void Ciphertext_FollowsFromSeedAndCallsAlone()
    {
        using var same = new HostMemory(10, 42);
        using var other = new HostMemory(10, 43);
        var page = new byte[4096];
        var pfn = Allocate(1)[0];
        _memory.Encrypt(pfn, GuestKey);
        foreach (var (memory, equal) in new[] { (same, true), (other, false) })
        {
            Assert.True(memory.TryAllocate(out var twin));
            memory.Encrypt(twin, GuestKey);
            memory.Read(twin, 0, page, 0);
            Assert.Equal(equal, Page(pfn, 0).AsSpan().SequenceEqual(page));
        }
    }

    [Fact]
    public void PartialWrite_UnderANewKey_TakesTheBlockOf16Bytes_AndLeavesTheOthersTheirKey()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(5), GuestKey);
        var before = Page(pfn, 0);
        _memory.Write(pfn, 100, [0xaa], 0);

        // The rest of the block is what the new key read there.
        var block = Page(pfn, 0)[96..112];
        before[100] = 0xaa;
        Assert.Equal(before[96..112], block);

        var guest = Page(pfn, GuestKey);
        Assert.Equal(Pattern(5)[..96], guest[..96]);
        Assert.Equal(Pattern(5)[112..], guest[112..]);
        Assert.NotEqual(Pattern(5)[96..112], guest[96..112]);
        Assert.Equal(HostMemory.Mixed, _memory.KeyOf(pfn));
    }

    [Fact]
    public void PartialWrite_UnderANewKeyToAnUnwrittenFrame_KeepsTheZerosOfTheOtherBlocks()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 32, new byte[16], GuestKey);
        Assert.Equal(new byte[16], Page(pfn, GuestKey)[32..48]);
        Assert.Equal(new byte[32], Page(pfn, 0)[..32]);
        Assert.NotEqual(new byte[16], Page(pfn, 0)[32..48]);
    }

    [Fact]
    public void BlocksThatComeUnderOneKeyAgain_AreAPageOfThatKey()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(5), GuestKey);
        _memory.Write(pfn, 0, Pattern(6).AsSpan(0, 2048), 0);
        _memory.Write(pfn, 2048, Pattern(6).AsSpan(2048), 0);
        Assert.Equal(0U, _memory.KeyOf(pfn));
        Assert.Equal(Pattern(6), Page(pfn, 0));
    }

    [Fact]
    public void EncryptingAPageOfSeveralKeys_TakesWhatTheHostReads()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(5), 0);
        _memory.Write(pfn, 512, new byte[16], GuestKey);
        var host = Page(pfn, 0);
        _memory.Encrypt(pfn, GuestKey + 1);
        Assert.Equal(host, Page(pfn, GuestKey + 1));
    }

    [Fact]
    public void WholePageWrite_UnderANewKey_ReplacesContentsAndKey()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(5), GuestKey);
        _memory.Write(pfn, 0, Pattern(6), 0);
        Assert.Equal(Pattern(6), Page(pfn, 0));
    }

    [Fact]
    public void EmptyWrite_ChangesNothing()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 4096, [], GuestKey);
        Assert.Equal((0U, 0U, 0L), (_memory.KeyOf(pfn), _memory.VersionOf(pfn), _memory.BackedPages));
    }

    [Fact]
    public void Encrypt_KeepsThePlaintextUnderTheNewKey()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(5), 0);
        _memory.Encrypt(pfn, GuestKey);
        Assert.Equal(Pattern(5), Page(pfn, GuestKey));
        Assert.NotEqual(Pattern(5), Page(pfn, 0));
    }

    [Fact]
    public void Zero_DropsTheBackingAndSetsTheKey()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(5), 0);
        _memory.Zero(pfn, GuestKey);
        Assert.Equal(0, _memory.BackedPages);
        Assert.True(AllZero(Page(pfn, GuestKey)));
        Assert.False(AllZero(Page(pfn, 0)));
    }

    [Theory]
    [InlineData(GuestKey, 0U)]
    [InlineData(GuestKey, 9U)]
    [InlineData(0U, GuestKey)]
    [InlineData(0U, 0U)]
    public void CopyPage_CopiesWhatTheReadersKeySees(uint sourceKey, uint targetKey)
    {
        var pfns = Allocate(3);
        _memory.Write(pfns[0], 0, Pattern(5), GuestKey);
        var seen = Page(pfns[0], sourceKey);
        _memory.CopyPage(pfns[0], sourceKey, pfns[1], targetKey);
        Assert.Equal(seen, Page(pfns[1], targetKey));
        _memory.CopyPage(pfns[0], sourceKey, pfns[0], targetKey);
        Assert.Equal(seen, Page(pfns[0], targetKey));
    }

    [Fact]
    public void CopyPage_OfAnUnwrittenFrame_NeedsNoBacking()
    {
        var pfns = Allocate(2);
        _memory.Write(pfns[1], 0, Pattern(1), 0);
        _memory.CopyPage(pfns[0], 0, pfns[1], GuestKey);
        Assert.True(AllZero(Page(pfns[1], GuestKey)));
        Assert.Equal(0, _memory.BackedPages);
    }

    [Fact]
    public void RecycledFrame_ReadsAsZerosUnderKeyZero()
    {
        var pfn = Allocate(1)[0];
        _memory.Write(pfn, 0, Pattern(5), GuestKey);
        _memory.Free(pfn);
        Assert.Equal(pfn, Allocate(1)[0]);
        Assert.True(AllZero(Page(pfn, 0)));
        Assert.NotEqual(Pattern(5), Page(pfn, GuestKey));
    }

    [Fact]
    public void RecycledBytes_AreNotSeenThroughAnotherFrame()
    {
        var pfns = Allocate(2);
        _memory.Write(pfns[0], 0, Pattern(5), 0);
        _memory.Free(pfns[0]);
        _memory.Write(pfns[1], 0, [1], 0);
        Assert.True(AllZero(Page(pfns[1], 0).AsSpan(1)));
    }

    [Fact]
    public void LeakedFrame_IsCountedAndNeverHandedOutAgain()
    {
        var pfns = Allocate(1000);
        _memory.Write(pfns[3], 0, Pattern(5), GuestKey);
        _memory.Leak(pfns[3]);
        Assert.Equal((999L, 1L, 0L), (_memory.AllocatedPages, _memory.LeakedPages, _memory.BackedPages));
        Assert.False(_memory.TryAllocate(out _));
        Assert.True(_memory.IsLeaked(pfns[3]));
        Assert.Throws<InvalidOperationException>(() => _memory.Free(pfns[3]));
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(2UL)]
    [InlineData(3UL)]
    [InlineData(ulong.MaxValue)]
    public void FrameThatIsNotAllocated_IsRefusedByEveryOperation(ulong value)
    {
        var pfns = Allocate(2);
        _memory.Free(pfns[1]);
        var pfn = new Pfn(value);
        Assert.False(_memory.IsAllocated(pfn));
        Assert.Throws<InvalidOperationException>(() => _memory.Free(pfn));
        Assert.Throws<InvalidOperationException>(() => _memory.Leak(pfn));
        Assert.Throws<InvalidOperationException>(() => _memory.Read(pfn, 0, new byte[1], 0));
        Assert.Throws<InvalidOperationException>(() => _memory.Write(pfn, 0, [1], 0));
        Assert.Throws<InvalidOperationException>(() => _memory.Zero(pfn, 0));
        Assert.Throws<InvalidOperationException>(() => _memory.Encrypt(pfn, 0));
        Assert.Throws<InvalidOperationException>(() => _memory.CopyPage(pfns[0], 0, pfn, 0));
        Assert.Throws<InvalidOperationException>(() => _memory.CopyPage(pfn, 0, pfns[0], 0));
        Assert.Throws<InvalidOperationException>(() => _memory.TryGetPlainSpan(pfn, 0, out _));
        _memory.CheckInvariants();
    }

    [Theory]
    [InlineData(-1, 1)]
    [InlineData(4096, 1)]
    [InlineData(4000, 97)]
    [InlineData(0, 4097)]
    [InlineData(int.MaxValue, 1)]
    public void BytesOutsideThePage_AreRefused(int offset, int length)
    {
        var pfn = Allocate(1)[0];
        Assert.Throws<ArgumentOutOfRangeException>(() => _memory.Read(pfn, offset, new byte[length], 0));
        Assert.Throws<ArgumentOutOfRangeException>(() => _memory.Write(pfn, offset, new byte[length], 0));
        Assert.Equal(0, _memory.BackedPages);
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(HostMemory.MaxPages + 1)]
    public void Machine_OfImpossibleSize_IsRefused(ulong totalPages) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => new HostMemory(totalPages, 0));

    [Fact]
    public void Dispose_ReturnsAllPagesAndEndsUse()
    {
        var arena = new PageArena();
        var memory = new HostMemory(1000, 1, arena);
        for (var i = 0; i < 600; i++)
        {
            Assert.True(memory.TryAllocate(out var pfn));
            memory.Write(pfn, 0, [1], 0);
        }
        Assert.Equal(600, arena.RentedPages);
        memory.Dispose();
        memory.Dispose();
        Assert.Equal(0, arena.RentedPages);
        Assert.Throws<ObjectDisposedException>(() => memory.TryAllocate(out _));
        Assert.Throws<ObjectDisposedException>(() => memory.Read(new Pfn(1), 0, new byte[1], 0));
    }

    /// <summary>All operations at random against plain byte arrays, on two machines that share an arena with each other.</summary>
    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomSteps_MatchTheModel(int seed)
    {
        var random = new Random(seed);
        var arena = new PageArena();
        var machines = new[] { new HostMemory(40, 1, arena), new HostMemory(40, 2, arena) };
        // Plaintext of each byte, and the key of each block of 16.
        var models = new[] { new Dictionary<Pfn, (uint[] Keys, byte[] Bytes)>(), [] };
        var buffer = new byte[4096];
        for (var step = 0; step < 3000; step++)
        {
            var at = $"seed {seed}, step {step}";
            var which = random.Next(2);
            var (memory, model) = (machines[which], models[which]);
            if (model.Count == 0 || random.Next(4) == 0)
            {
                if (memory.TryAllocate(out var fresh))
                    model.Add(fresh, (Keys(0), new byte[4096]));
                else
                    Assert.True(model.Count + memory.LeakedPages == 40, at);
                continue;
            }
            var pfns = model.Keys.Order().ToArray();
            var pfn = pfns[random.Next(pfns.Length)];
            var key = (uint)random.Next(3);
            var (keys, bytes) = model[pfn];
            switch (random.Next(7))
            {
                case 0:
                    memory.Free(pfn);
                    model.Remove(pfn);
                    break;
                case 1 when random.Next(10) == 0:
                    memory.Leak(pfn);
                    model.Remove(pfn);
                    break;
                case 2:
                    memory.Zero(pfn, key);
                    model[pfn] = (Keys(key), new byte[4096]);
                    break;
                case 3:
                    if (keys.Distinct().Count() > 1)
                    {
                        memory.Read(pfn, 0, buffer, 0);
                        bytes = buffer.ToArray();
                    }
                    memory.Encrypt(pfn, key);
                    model[pfn] = (Keys(key), bytes);
                    break;
                case 4:
                    var target = pfns[random.Next(pfns.Length)];
                    var targetKey = (uint)random.Next(3);
                    memory.Read(pfn, 0, buffer, key);
                    memory.CopyPage(pfn, key, target, targetKey);
                    model[target] = (Keys(targetKey), buffer.ToArray());
                    break;
                default:
                    var offset = random.Next(0, 4096);
                    var data = new byte[random.Next(3) == 0 ? 4096 : random.Next(1, 4097 - offset)];
                    random.NextBytes(data);
                    offset = data.Length == 4096 ? 0 : offset;
                    memory.Read(pfn, 0, buffer, key);
                    memory.Write(pfn, offset, data, key);
                    for (var block = offset / 16; block <= (offset + data.Length - 1) / 16; block++)
                    {
                        buffer.AsSpan(block * 16, 16).CopyTo(bytes.AsSpan(block * 16));
                        keys[block] = key;
                    }
                    data.CopyTo(bytes, offset);
                    break;
            }
            memory.CheckInvariants();
            foreach (var (frame, expected) in model)
            {
                var whole = expected.Keys.Distinct().Count() == 1;
                Assert.True(memory.TryGetPlainSpan(frame, expected.Keys[0], out var page) == whole && (!whole || page.SequenceEqual(expected.Bytes)), at);
                Assert.True(!memory.TryGetPlainSpan(frame, expected.Keys[0] + 1, out _), at);
                for (uint reader = 0; !whole && reader < 3; reader++)
                {
                    var seen = new byte[4096];
                    memory.Read(frame, 0, seen, reader);
                    for (var block = 0; block < 256; block++)
                        Assert.True(expected.Keys[block] == reader == seen.AsSpan(block * 16, 16).SequenceEqual(expected.Bytes.AsSpan(block * 16, 16)), at);
                }
            }
            Assert.True(memory.AllocatedPages == model.Count, at);
            Assert.True(arena.RentedPages == machines.Sum(machine => machine.BackedPages), at);
        }
        machines[0].Dispose();
        machines[1].Dispose();
        Assert.Equal(0, arena.RentedPages);
    }

    private static uint[] Keys(uint key) => [.. Enumerable.Repeat(key, 256)];

    private Pfn[] Allocate(int count)
    {
        var pfns = new Pfn[count];
        for (var i = 0; i < count; i++)
            Assert.True(_memory.TryAllocate(out pfns[i]));
        return pfns;
    }

    private byte[] Page(Pfn pfn, uint key)
    {
        var page = new byte[4096];
        _memory.Read(pfn, 0, page, key);
        return page;
    }

    private static byte[] Pattern(int salt) => [.. Enumerable.Range(0, 4096).Select(i => (byte)(i * 31 + i / 256 + salt))];

    private static bool AllZero(ReadOnlySpan<byte> bytes) => bytes.IndexOfAnyExcept((byte)0) < 0;
}
