using System.Security.Cryptography;
using System.Text.Json;
using VmmService.Client.Attestation;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>Runtime measurement registers: replaying events, reading logs, foreseeing the first of them.</summary>
public sealed class TdEventLogTests
{
    public static TheoryData<string> Sequences => TdxVectors.Ids("rtmr");

    public static TheoryData<string> Hobs => TdxVectors.Ids("td_hob");

    [Theory]
    [MemberData(nameof(Sequences))]
    public void Replay_OfVectorEvents_GivesTheRegisters(string id)
    {
        JsonElement vector = TdxVectors.Get("rtmr", id);
        Assert.Equal(Registers(vector), TdEventLog.Replay(Events(vector)).Select(each => each.ToString()));
    }

    [Theory]
    [MemberData(nameof(Sequences))]
    public void Parse_OfALogOfThem_GivesTheSameEvents(string id)
    {
        JsonElement vector = TdxVectors.Get("rtmr", id);
        TdEvent[] events = [.. Events(vector)];
        // Firmware leaves the rest of the area as it was.
        foreach (byte rest in (byte[])[0, 0xff])
        {
            byte[] log = [.. LogOf(events), .. Enumerable.Repeat(rest, 512)];
            IReadOnlyList<TdEvent> parsed = TdEventLog.Parse(log);
            Assert.Equal(events.Select(each => (each.Register, each.Type, each.Digest)), parsed.Select(each => (each.Register, each.Type, each.Digest)));
            Assert.Equal(Registers(vector), TdEventLog.Replay(parsed).Select(each => each.ToString()));
        }
    }

    [Fact]
    public void Replay_EventsThatAreOnlyTold_LeaveTheRegisters()
    {
        var digest = Hash384.Of("told"u8);
        TdEvent[] events = [new(1, TdEvent.NoAction, digest, default), new(0, 1, digest, default), new(5, 1, digest, default)];
        Assert.All(TdEventLog.Replay(events), register => Assert.Equal(default, register));
    }

    [Theory]
    [MemberData(nameof(Hobs))]
    public void FirstEvents_OfAPlan_BeginWithTheHobOfItsMemory(string id)
    {
        // The vectors' guest, with the sections of an image of our own at the vectors' places.
        JsonElement vector = TdxVectors.Get("td_hob", id);
        ulong memory = vector.GetProperty("ram").EnumerateArray().Aggregate(0UL, (sum, range) => sum + TdxVectors.Number(range[1]));
        List<(uint Type, ulong Gpa, ulong Size)> sections = [.. vector.GetProperty("accepted_in_metadata_order").EnumerateArray()
            .Select(range => (TdxVectors.Number(range[0]) == TdxVectors.Number(vector, "hob_gpa") ? 2u : 3, TdxVectors.Number(range[0]), TdxVectors.Number(range[1])))];
        var plan = TdxLaunchPlan.Create(FirmwareImage.Parse(TdvfImages.With(sections)), memory);

        IReadOnlyList<TdEvent> events = TdEventLog.FirstEvents(plan);

        Assert.Equal([TdEvent.HandOffTables, TdEvent.FirmwareBlob], events.Select(each => each.Type));
        Assert.Equal(TdxVectors.Text(vector, "td_hob_digest"), events[0].Digest.ToString());
        Assert.Equal(TdxVectors.Text(vector, "rtmr0_after_only_this_event"), TdEventLog.Replay(events.Take(1))[0].ToString());
        Assert.Equal(Hash384.Of(plan.Firmware.Bytes.Span[..0x1000]), events[1].Digest);
    }

    [Fact]
    public void Parse_LogCutOffAnywhere_IsRefusedOrEndsAtAnEvent()
    {
        TdEvent[] events = [.. Events(TdxVectors.Get("rtmr", "rtmr-two-order"))];
        byte[] log = LogOf(events);
        HashSet<int> between = [LogOf([]).Length, LogOf(events[..1]).Length];
        for (int length = 0; length < log.Length; length++)
        {
            if (between.Contains(length))
                Assert.Equal(length == between.Min() ? 0 : 1, TdEventLog.Parse(log.AsMemory(0, length)).Count);
            else
                Assert.Throws<FormatException>(() => TdEventLog.Parse(log.AsMemory(0, length)));
        }
    }

    [Theory]
    [InlineData("another first event", 4, 4)]
    [InlineData("another signature", 32, 1)]
    [InlineData("no algorithm", 32 + 24, 1)]
    [InlineData("more algorithms than fit", 32 + 25, 1)]
    [InlineData("no SHA-384", 32 + 28, 0xc ^ 0xb)]
    [InlineData("a digest size that SHA-384 has not", 32 + 30, 1)]
    [InlineData("an event of an unknown algorithm", 32 + 33 + 12, 1)]
    [InlineData("an event longer than the log", 32 + 33 + 17 + 48, 0x80)]
    public void Parse_LogWithALie_IsRefused(string lie, int offset, int xor)
    {
        byte[] log = LogOf([.. Events(TdxVectors.Get("rtmr", "rtmr-single"))]);
        log[offset] ^= (byte)xor;
        Assert.True(Record.Exception(() => TdEventLog.Parse(log)) is FormatException, lie);
    }

    private static IEnumerable<string> Registers(JsonElement vector) => vector.GetProperty("rtmr").EnumerateArray().Select(each => each.GetString()!);

    private static IEnumerable<TdEvent> Events(JsonElement vector) => vector.GetProperty("extends").EnumerateArray().Select((each, i) => new TdEvent(
        each.GetProperty("rtmr").GetUInt32() + 1, (uint)i + 0x10, new Hash384(TdxVectors.Bytes(each, "digest")), new byte[i % 5]));

    internal static byte[] LogOf(JsonElement vector) => LogOf([.. Events(vector)]);

    // TCG's PC client format, crypto agile: a first event of the old form, then events with one digest each.
    private static byte[] LogOf(TdEvent[] events)
    {
        var log = new MemoryStream();
        var writer = new BinaryWriter(log);
        writer.Write(0u);
        writer.Write(TdEvent.NoAction);
        writer.Write(new byte[SHA1.HashSizeInBytes]);
        byte[] specification = [.. "Spec ID Event03\0"u8, 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0xc, 0, 48, 0, 0];
        writer.Write(specification.Length);
        writer.Write(specification);
        foreach (TdEvent each in events)
        {
            writer.Write(each.Register);
            writer.Write(each.Type);
            writer.Write(1u);
            writer.Write((ushort)0xc);
            writer.Write(Convert.FromHexString(each.Digest.ToString()));
            writer.Write(each.Data.Length);
            writer.Write(each.Data.Span);
        }

        return log.ToArray();
    }
}
