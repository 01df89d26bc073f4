using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine;
using Xunit;

namespace SimKvm.Tests;

/// <summary>mmap, munmap, loads and stores of anonymous memory. What a guest_memfd adds is with the guest_memfds.</summary>
public sealed class MmapTests : KvmTest
{
    private const uint ReadWrite = Vmm.ProtRead | Vmm.ProtWrite;
    private const uint Anonymous = Vmm.MapPrivate | Vmm.MapAnonymous;
    private const uint Fixed = 0x10;
    private const uint FixedNoReplace = 0x10_0000;

    private static readonly CheckTable<MmapCall> Table = new(
        new Check<MmapCall>("offset", Errno.EINVAL, UserMemory.BadOffset, call => call.Offset = 0x800),
        new Check<MmapCall>("fd", Errno.EBADF, FdTable.NotOpen, call => (call.Fd, call.Flags) = (999, call.Flags & ~Vmm.MapAnonymous)),
        new Check<MmapCall>("length 0", Errno.EINVAL, UserMemory.ZeroLength, call => call.Length = 0) { Tags = "length" },
        new Check<MmapCall>("length wraps", Errno.ENOMEM, UserMemory.ZeroLength, call => call.Length = ulong.MaxValue) { Tags = "length" },
        new Check<MmapCall>("length too large", Errno.ENOMEM, UserMemory.ZeroLength, call => call.Length = 1UL << 47) { Tags = "length" },
        new Check<MmapCall>("fixed leaves user space", Errno.ENOMEM, UserMemory.ZeroLength, call => call.SetFixed(UserMemory.TaskSize - 0x1000)) { Tags = "address" },
        new Check<MmapCall>("fixed unaligned", Errno.EINVAL, UserMemory.FixedUnaligned, call => call.SetFixed(0x10_0800)) { Tags = "address" },
        new Check<MmapCall>("fixed occupied", Errno.EEXIST, UserMemory.FixedOccupied, call => call.SetFixedOccupied()) { Tags = "address length" },
        new Check<MmapCall>("type", Errno.EINVAL, UserMemory.BadFlags, call => call.Flags &= ~3u));

    public static TheoryData<string, string> Singles => Table.Singles();

    public static TheoryData<string, string, string> Pairs => Table.Pairs();

    [Theory]
    [MemberData(nameof(Singles))]
    public void Mmap_OneCheckViolated_IsRefusedAndChangesNothing(string profile, string check)
    {
        TestHost host = Boot(profile);
        var call = new MmapCall(host);
        Table[check].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[check].Errno, Table[check].Rule);
        Assert.Equal(Vmm.Content(1), host.Vmm.Load(call.Occupied, 4096));
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Mmap_TwoChecksViolated_AnswersTheFirst(string profile, string first, string second)
    {
        TestHost host = Boot(profile);
        var call = new MmapCall(host);
        Table[second].Violate(call);
        Table[first].Violate(call);
        AssertRefusedUnchanged(host, call.Issue, Table[first].Errno, Table[first].Rule);
    }

    [Theory]
    [InlineData(0x800, 0x1000)]
    [InlineData(0x1000, 0)]
    [InlineData(0x1000, ulong.MaxValue)]
    [InlineData(0x8000_0000_0000, 0x1000)]
    [InlineData(0x7fff_ffff_e000, 0x2000)]
    public void Munmap_OfNoRangeOfUserAddresses_IsEinval(ulong address, ulong length)
    {
        TestHost host = Boot();
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Munmap(address, length), Errno.EINVAL, UserMemory.BadUnmapRange);
    }

    [Fact]
    public void Munmap_WhereNothingIsMapped_Succeeds()
    {
        TestHost host = Boot();
        AssertOk(host.Vmm.Process.Munmap(0x1000, 0x1000));
        AssertOk(host.Vmm.Process.Munmap(0, UserMemory.TaskSize));
    }

    [Fact]
    public void UntouchedMemory_ReadsAsZerosAndHasNoFrames()
    {
        TestHost host = Boot();
        long frames = host.Machine.AllocatedPages;
        ulong address = host.Vmm.Map(1 << 20);
        Assert.Equal(new byte[10000], host.Vmm.Load(address + 100, 10000));
        Assert.Equal(frames, host.Machine.AllocatedPages);
    }

    [Fact]
    public void Store_TakesAFrameForEachPage_AndMunmapGivesThemBack()
    {
        TestHost host = Boot();
        long frames = host.Machine.AllocatedPages;
        ulong address = host.Vmm.Map(4);
        host.Vmm.Store(address + 4090, new byte[] { 1, 2, 3, 4, 5, 6, 7, 8 });
        Assert.Equal(frames + 2, host.Machine.AllocatedPages);
        Assert.Equal([0, 1, 2, 3, 4, 5, 6, 7, 8, 0], host.Vmm.Load(address + 4089, 10));
        AssertOk(host.Vmm.Process.Munmap(address, 4096));
        Assert.Equal(frames + 1, host.Machine.AllocatedPages);
        Assert.Equal([7, 8], host.Vmm.Load(address + 4096, 2));
        AssertOk(host.Vmm.Process.Munmap(address, 4 * 4096));
        Assert.Equal(frames, host.Machine.AllocatedPages);
    }

    [Fact]
    public void Access_StopsWhereTheMappingEnds_AndSaysHowFarItCame()
    {
        TestHost host = Boot();
        ulong address = host.Vmm.Map(1);
        CallReport store = host.Vmm.Process.Write(address + 4096 - 3, new byte[] { 9, 9, 9, 9, 9 });
        AssertRefused(store, Errno.EFAULT, UserMemory.NotMapped);
        Assert.Equal(3, store.Value);
        byte[] loaded = new byte[5];
        CallReport load = host.Vmm.Process.Read(address + 4096 - 3, loaded);
        AssertRefused(load, Errno.EFAULT, UserMemory.NotMapped);
        Assert.Equal(3, load.Value);
        Assert.Equal([9, 9, 9, 0, 0], loaded);
    }

    [Theory]
    [InlineData(0, false, false)]
    [InlineData(Vmm.ProtRead, true, false)]
    [InlineData(Vmm.ProtWrite, true, true)]
    [InlineData(Vmm.ProtExec, true, false)]
    [InlineData(ReadWrite, true, true)]
    public void Protection_IsThatOfX86(uint prot, bool readable, bool writable)
    {
        TestHost host = Boot();
        ulong address = host.Vmm.Map(1, prot);
        Check(host.Vmm.Process.Read(address, new byte[1]), readable);
        Check(host.Vmm.Process.Write(address, new byte[1]), writable);

        static void Check(CallReport report, bool allowed)
        {
            if (allowed)
            {
                AssertOk(report);
            }
            else
            {
                AssertRefused(report, Errno.EFAULT, UserMemory.Protected);
            }
        }
    }

    [Fact]
    public void Fixed_ReplacesWhatWasThere_AndNoReplaceDoesNot()
    {
        TestHost host = Boot();
        ulong address = host.Vmm.MapFilled(3);
        AssertOk(host.Vmm.Process.Mmap(address + 4096, 4096, ReadWrite, Anonymous | Fixed, -1, 0));
        Assert.Equal(Vmm.Content(1), host.Vmm.Load(address, 4096));
        Assert.Equal(new byte[4096], host.Vmm.Load(address + 4096, 4096));
        Assert.Equal(Vmm.Content(3), host.Vmm.Load(address + 8192, 4096));
        AssertRefused(host.Vmm.Process.Mmap(address, 4096, ReadWrite, Anonymous | FixedNoReplace, -1, 0), Errno.EEXIST, UserMemory.FixedOccupied);
        Assert.Equal(Vmm.Content(1), host.Vmm.Load(address, 4096));
    }

    [Fact]
    public void Addresses_AreTheLowestGaps_AndAHintIsFollowedWhereItIsFree()
    {
        TestHost host = Boot();
        ulong first = host.Vmm.Map(4);
        ulong second = host.Vmm.Map(4);
        Assert.Equal(first + (4 * 4096), second);
        AssertOk(host.Vmm.Process.Munmap(first, 2 * 4096));
        Assert.Equal(first, host.Vmm.Map(2));
        Assert.Equal(0x40_0000, host.Vmm.Process.Mmap(0x40_0123, 4096, ReadWrite, Anonymous, -1, 0).Value);
        Assert.NotEqual(0x40_0000, AssertOk(host.Vmm.Process.Mmap(0x40_0000, 4096, ReadWrite, Anonymous, -1, 0)).Value);
    }

    [Fact]
    public void Store_WithoutMemoryLeft_FailsAndSaysSo()
    {
        TestHost host = Boot(machine: new MachineConfig { MemoryBytes = 4 * 4096 });
        ulong address = host.Vmm.Map(8);
        CallReport report = host.Vmm.Process.Write(address, new byte[8 * 4096]);
        Assert.Equal(Errno.EFAULT, report.Errno);
        Assert.Equal(3 * 4096, report.Value);
        Assert.Same(UserMemory.OutOfMemory, report.Causes[0].Rule);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void RandomMappings_MatchAModelOfPages(int seed)
    {
        TestHost host = Boot();
        var random = new Random(seed);
        const ulong basePage = 0x100;
        var model = new Dictionary<ulong, byte>();
        for (int step = 0; step < 400; step++)
        {
            ulong page = basePage + (ulong)random.Next(24);
            ulong count = (ulong)random.Next(1, 6);
            switch (random.Next(4))
            {
                case 0:
                    AssertOk(host.Vmm.Process.Mmap(page << 12, count << 12, ReadWrite, Anonymous | Fixed, -1, 0));
                    ForEach(page, count, each => model[each] = 0);
                    break;
                case 1:
                    AssertOk(host.Vmm.Process.Munmap(page << 12, count << 12));
                    ForEach(page, count, each => model.Remove(each));
                    break;
                default:
                    byte value = (byte)random.Next(1, 256);
                    CallReport report = host.Vmm.Process.Write(page << 12, Enumerable.Repeat(value, (int)(count << 12)).ToArray());
                    ulong stored = 0;
                    while (stored < count && model.ContainsKey(page + stored))
                    {
                        model[page + stored++] = value;
                    }
                    Assert.True(report.Value == (long)(stored << 12), $"seed {seed}, step {step}: {report.Value} bytes stored, the model stored {stored} pages");
                    break;
            }
            for (ulong each = basePage; each < basePage + 32; each++)
            {
                byte[] content = new byte[4096];
                bool readable = host.Vmm.Process.Read(each << 12, content).Succeeded;
                Assert.True(readable == model.TryGetValue(each, out byte expected), $"seed {seed}, step {step}: page 0x{each:x}");
                Assert.True(content.AsSpan().IndexOfAnyExcept(readable ? expected : (byte)0) < 0, $"seed {seed}, step {step}: content of page 0x{each:x}");
            }
        }

        static void ForEach(ulong start, ulong count, Action<ulong> act)
        {
            for (ulong i = 0; i < count; i++)
            {
                act(start + i);
            }
        }
    }

    private sealed class MmapCall
    {
        private readonly TestHost _host;
        private ulong _address;

        public MmapCall(TestHost host)
        {
            _host = host;
            Occupied = host.Vmm.MapFilled(1);
        }

        public ulong Occupied { get; }

        public ulong Length { get; set; } = 0x4000;

        public uint Flags { get; set; } = Anonymous;

        public int Fd { get; set; } = -1;

        public ulong Offset { get; set; }

        public void SetFixed(ulong address)
        {
            _address = address;
            Flags |= Fixed;
        }

        public void SetFixedOccupied()
        {
            _address = Occupied - 0x2000;
            Flags |= FixedNoReplace;
        }

        public CallReport Issue() => _host.Vmm.Process.Mmap(_address, Length, ReadWrite, Flags, Fd, Offset);
    }
}
