using System.Buffers.Binary;
using System.Security.Cryptography;
using VmmService.Client.Digest;
using VmmService.Client.Launch;

namespace VmmService.Client.Attestation;

/// <summary>An event that was measured while a TD booted.</summary>
/// <param name="Register">Which register took it: 0 MRTD, which nobody extends at run time, 1 to 4 RTMR0 to RTMR3.</param>
/// <param name="Type">TCG event type.</param>
/// <param name="Digest">SHA-384 that the register was extended by.</param>
/// <param name="Data">What the log says of the event; only some types are digested as they stand here.</param>
public sealed record TdEvent(uint Register, uint Type, Hash384 Digest, ReadOnlyMemory<byte> Data)
{
    /// <summary>EV_NO_ACTION: told, not measured.</summary>
    public const uint NoAction = 3;

    /// <summary>EV_EFI_PLATFORM_FIRMWARE_BLOB2: the variable store.</summary>
    public const uint FirmwareBlob = 0x8000_000a;

    /// <summary>EV_EFI_HANDOFF_TABLES2: the hand-off blocks.</summary>
    public const uint HandOffTables = 0x8000_000b;

    /// <summary>RTMR that was extended; null if none was.</summary>
    public int? Rtmr => Type != NoAction && Register is >= 1 and <= 4 ? (int)Register - 1 : null;
}

/// <summary>
/// Runtime measurement registers, and the log in which a TD tells how they came about (tdx.md 6.3, 6.7): that of the CCEL ACPI table, in the format of TCG's "crypto agile" logs. A log
/// comes from anyone; what gives it weight is that replaying it gives the registers of a quote.
/// </summary>
public static class TdEventLog
{
    /// <summary>RTMR0 to RTMR3.</summary>
    public const int Registers = 4;

    private const ushort Sha384 = 0xc;
    private const int MaxEvents = 1 << 16;

    // The first event has the old format: register, type, a SHA-1 digest, size.
    private const int OldHeaderSize = 4 + 4 + SHA1.HashSizeInBytes + 4;

    // Signature, class, version and sizes of a number; then how many algorithms, and each with its digest's size.
    private const int AlgorithmsOffset = 24;

    private static ReadOnlySpan<byte> SpecId => "Spec ID Event03\0"u8;

    /// <summary>What a TD's firmware measures before all else, as a VMM can foresee it: the hand-off blocks, then the variable store, both into RTMR0.</summary>
    public static IReadOnlyList<TdEvent> FirstEvents(TdxLaunchPlan plan)
    {
        ArgumentNullException.ThrowIfNull(plan);
        List<TdEvent> events = [];
        if (!plan.Hob.IsEmpty)
            events.Add(new(1, TdEvent.HandOffTables, Hash384.Of(TdHob.Measured(plan.Hob.Span)), default));
        foreach (TdvfSection section in plan.Metadata.Sections.Where(section => section.Type == TdvfSectionType.CFV))
            events.Add(new(1, TdEvent.FirmwareBlob, Hash384.Of(plan.Firmware.Bytes.Span.Slice((int)section.DataOffset, (int)section.RawDataSize)), default));
        return events;
    }

    /// <summary>A register after one more digest: TDG.MR.RTMR.EXTEND.</summary>
    public static Hash384 Extend(Hash384 register, Hash384 digest)
    {
        Span<byte> both = stackalloc byte[2 * Hash384.Size];
        register.CopyTo(both);
        digest.CopyTo(both[Hash384.Size..]);
        return Hash384.Of(both);
    }

    /// <summary>RTMR0 to RTMR3 after all events, from zeros.</summary>
    public static Hash384[] Replay(IEnumerable<TdEvent> events)
    {
        ArgumentNullException.ThrowIfNull(events);
        var registers = new Hash384[Registers];
        foreach (TdEvent each in events)
        {
            if (each.Rtmr is { } rtmr)
                registers[rtmr] = Extend(registers[rtmr], each.Digest);
        }

        return registers;
    }

    /// <summary>Reads a log, as /sys/firmware/acpi/tables/data/CCEL has it: events up to the first that was never written, which is zeros or ones.</summary>
    /// <exception cref="FormatException">It is not such a log, or cut off.</exception>
    public static IReadOnlyList<TdEvent> Parse(ReadOnlyMemory<byte> log)
    {
        var reader = new Reader(log);
        Dictionary<ushort, int> algorithms = ReadAlgorithms(ref reader);
        List<TdEvent> events = [];
        while (!reader.IsAtEnd)
        {
            if (events.Count == MaxEvents)
                throw new FormatException($"the event log has more than {MaxEvents} events");
            events.Add(ReadEvent(ref reader, algorithms));
        }

        return events;
    }

    // The first event names the hash algorithms of all others; it is not measured.
    private static Dictionary<ushort, int> ReadAlgorithms(ref Reader reader)
    {
        ReadOnlySpan<byte> header = reader.Take(OldHeaderSize, "first event").Span;
        int size = reader.Bound(BinaryPrimitives.ReadUInt32LittleEndian(header[(OldHeaderSize - 4)..]), "first event");
        ReadOnlySpan<byte> data = reader.Take(size, "first event").Span;
        if (BinaryPrimitives.ReadUInt32LittleEndian(header[4..]) != TdEvent.NoAction || data.Length < AlgorithmsOffset + 4 || !data.StartsWith(SpecId))
            throw new FormatException("the event log does not begin with a Spec ID Event03, so it is not one of the crypto agile format");

        uint count = BinaryPrimitives.ReadUInt32LittleEndian(data[AlgorithmsOffset..]);
        ReadOnlySpan<byte> list = data[(AlgorithmsOffset + 4)..];
        if (count == 0 || count > list.Length / 4)
            throw new FormatException($"the event log states {count} hash algorithms, and {list.Length / 4} fit its first event");

        Dictionary<ushort, int> algorithms = [];
        for (int i = 0; i < count; i++)
            algorithms[BinaryPrimitives.ReadUInt16LittleEndian(list[(4 * i)..])] = BinaryPrimitives.ReadUInt16LittleEndian(list[((4 * i) + 2)..]);
        return algorithms.GetValueOrDefault(Sha384) == Hash384.Size ? algorithms : throw new FormatException("the event log has no SHA-384 digests, which the registers of a TD take");
    }

    private static TdEvent ReadEvent(ref Reader reader, Dictionary<ushort, int> algorithms)
    {
        uint register = reader.UInt32("event");
        uint type = reader.UInt32("event");
        uint count = reader.UInt32("event");
        Hash384? digest = null;
        for (uint i = 0; i < count; i++)
        {
            ushort algorithm = reader.UInt16("event");
            if (!algorithms.TryGetValue(algorithm, out int size))
                throw new FormatException($"an event has a digest of algorithm 0x{algorithm:x}, which the first event does not name");
            ReadOnlySpan<byte> value = reader.Take(size, "digest").Span;
            if (algorithm == Sha384)
                digest = new Hash384(value);
        }

        int length = reader.Bound(reader.UInt32("event"), "event");
        ReadOnlyMemory<byte> data = reader.Take(length, "event");
        return new TdEvent(register, type, digest ?? throw new FormatException("an event has no SHA-384 digest"), data);
    }

    private ref struct Reader(ReadOnlyMemory<byte> log)
    {
        private int _at;

        public readonly bool IsAtEnd
        {
            get
            {
                ReadOnlySpan<byte> left = log.Span[_at..];
                return left.IsEmpty || left.IndexOfAnyExcept((byte)0xff) < 0 || left.IndexOfAnyExcept((byte)0) < 0;
            }
        }

        public uint UInt32(string what) => BinaryPrimitives.ReadUInt32LittleEndian(Take(4, what).Span);

        public ushort UInt16(string what) => BinaryPrimitives.ReadUInt16LittleEndian(Take(2, what).Span);

        public readonly int Bound(uint size, string what) => size <= (uint)(log.Length - _at) ? (int)size : throw CutOff(what);

        public ReadOnlyMemory<byte> Take(int size, string what)
        {
            if (size > log.Length - _at)
                throw CutOff(what);
            ReadOnlyMemory<byte> taken = log.Slice(_at, size);
            _at += size;
            return taken;
        }

        private readonly FormatException CutOff(string what) => new($"the event log is cut off at offset 0x{_at:x}, in the {what}");
    }
}
