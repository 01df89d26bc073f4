// The transcript: what goes in comes out, in order, also while more goes in.

using System.Security.Cryptography;
using SimMachine.Measurement;
using Xunit;

namespace SimMachine.Tests.Measurement;

public class MeasurementTranscriptTests
{
    private const ulong VmsaGpa = 0xffff_ffff_f000;

    // Around the places where storage grows: within the first chunk, and from chunk to chunk.
    public static TheoryData<int> Sizes => [0, 1, 15, 16, 17, 32, 33, 511, 512, 513, 1023, 1024, 1025, 3000];

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Read_All_GivesWhatWasAppended(int size)
    {
        MeasurementTranscript transcript = Filled(size);
        Assert.Equal(size, transcript.Count);
        TranscriptRecord[] records = [.. transcript.Read(0, long.MaxValue)];
        Assert.Equal(size, records.Length);
        for (int i = 0; i < size; i++)
        {
            AssertRecord(i, records[i]);
        }
    }

    [Theory]
    [InlineData(0, 0, 0)]
    [InlineData(0, 10, 10)]
    [InlineData(500, 30, 30)]
    [InlineData(990, 30, 10)]
    [InlineData(999, 1, 1)]
    [InlineData(1000, 1, 0)]
    [InlineData(long.MaxValue, long.MaxValue, 0)]
    public void Read_Part_GivesAtMostThatPart(long start, long count, int expected)
    {
        long[] indices = [.. Filled(1000).Read(start, count).Select(record => record.Index)];
        Assert.Equal(Enumerable.Range(0, expected).Select(i => start + i), indices);
    }

    [Theory]
    [InlineData(-1, 1)]
    [InlineData(0, -1)]
    [InlineData(long.MinValue, long.MinValue)]
    public void Read_NegativeArgument_ThrowsAtOnce(long start, long count) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => Filled(1).Read(start, count));

    [Fact]
    public void Read_WhileStepsAreAdded_GivesTheRecordsOfItsBeginning()
    {
        MeasurementTranscript transcript = Filled(10);
        int read = 0;
        foreach (TranscriptRecord record in transcript.Read(0, long.MaxValue))
        {
            AssertRecord(read++, record);
            for (int i = 0; i < 200; i++)
            {
                Append(transcript);
            }
        }
        Assert.Equal(10, read);
        Assert.Equal(2010, transcript.Count);
    }

    [Fact]
    public void Record_ReadOnce_KeepsItsContentWhileStorageGrows()
    {
        MeasurementTranscript transcript = Filled(16);
        TranscriptRecord[] early = [.. transcript.Read(0, 16)];
        while (transcript.Count < 1500)
        {
            Append(transcript);
        }
        Assert.All(early, record => AssertRecord((int)record.Index, record));
    }

    [Theory]
    [InlineData(47, 48)]
    [InlineData(48, 49)]
    public void Append_HashOfAnotherSize_ThrowsAndAddsNothing(int contentSize, int digestSize)
    {
        var transcript = new MeasurementTranscript();
        Assert.Throws<ArgumentOutOfRangeException>(() => transcript.Append(SnpPageType.NORMAL, 0, new byte[contentSize], new byte[digestSize]));
        Assert.Equal(0, transcript.Count);
    }

    [Fact]
    public void Runs_OfALaunch_PutPagesTogether()
    {
        var transcript = new MeasurementTranscript();
        Add(transcript, SnpPageType.NORMAL, 0xffe0_0000, 512);
        Add(transcript, SnpPageType.ZERO, 0x80_0000, 9);
        Add(transcript, SnpPageType.ZERO, 0x80_a000, 3);
        Add(transcript, SnpPageType.SECRETS, 0x80_d000, 1);
        Add(transcript, SnpPageType.CPUID, 0x80_e000, 1);
        Add(transcript, SnpPageType.VMSA, VmsaGpa, 1);
        Add(transcript, SnpPageType.VMSA, VmsaGpa, 1);
        Assert.Equal(
            [
                "0xffe00000..0xffffffff NORMAL 512 pages",
                "0x800000..0x808fff ZERO 9 pages",
                "0x80a000..0x80cfff ZERO 3 pages",
                "0x80d000..0x80dfff SECRETS 1 page",
                "0x80e000..0x80efff CPUID 1 page",
                "0xfffffffff000..0xffffffffffff VMSA 1 page",
                "0xfffffffff000..0xffffffffffff VMSA 1 page",
            ],
            transcript.Runs().Select(run => run.ToString()));
        Assert.Equal([0L, 512, 521, 524, 525, 526, 527], transcript.Runs().Select(run => run.Index));
    }

    [Fact]
    public void Runs_CarryTheDigestAfterTheirLastPage()
    {
        MeasurementTranscript transcript = Filled(700);
        foreach (TranscriptRun run in transcript.Runs())
        {
            TranscriptRecord last = transcript.Read(run.Index + run.Pages - 1, 1).Single();
            Assert.Equal(last.DigestAfter.ToArray(), run.DigestAfter.ToArray());
        }
    }

    [Fact]
    public void Runs_LastPageOfTheAddressSpaceAndTheFirst_StayApart()
    {
        var transcript = new MeasurementTranscript();
        Add(transcript, SnpPageType.ZERO, 0xffff_ffff_ffff_f000, 1);
        Add(transcript, SnpPageType.ZERO, 0, 1);
        Assert.Equal(
            ["0xfffffffffffff000..0xffffffffffffffff ZERO 1 page", "0x0..0xfff ZERO 1 page"], transcript.Runs().Select(run => run.ToString()));
    }

    [Fact]
    public void Runs_OfNothing_AreNone() => Assert.Empty(new MeasurementTranscript().Runs());

    private static void Add(MeasurementTranscript transcript, SnpPageType type, ulong gpa, int pages)
    {
        for (int i = 0; i < pages; i++)
        {
            transcript.Append(type, gpa + ((ulong)i << 12), new byte[48], new byte[48]);
        }
    }

    private static MeasurementTranscript Filled(int size)
    {
        var transcript = new MeasurementTranscript();
        while (transcript.Count < size)
        {
            Append(transcript);
        }
        return transcript;
    }

    private static void Append(MeasurementTranscript transcript)
    {
        int index = (int)transcript.Count;
        transcript.Append(TypeOf(index), GpaOf(index), Hash(index), Hash(-1 - index));
    }

    private static void AssertRecord(int index, TranscriptRecord record)
    {
        Assert.Equal(index, record.Index);
        Assert.Equal(TypeOf(index), record.PageType);
        Assert.Equal(GpaOf(index), record.Gpa);
        Assert.Equal(Hash(index), record.ContentHash.ToArray());
        Assert.Equal(Hash(-1 - index), record.DigestAfter.ToArray());
    }

    private static SnpPageType TypeOf(int index) => (SnpPageType)(1 + (index / 7 % 6));

    private static ulong GpaOf(int index) => (ulong)index << 12;

    private static byte[] Hash(int value) => SHA384.HashData(BitConverter.GetBytes(value));
}
