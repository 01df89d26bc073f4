using System.Buffers.Binary;

namespace VmmService.Client.Launch;

/// <summary>A range of guest physical addresses, in bytes.</summary>
public readonly record struct GuestRange(ulong Start, ulong Size)
{
    public ulong End => Start + Size;

    public override string ToString() => $"0x{Start:x} to 0x{End:x}";
}

/// <summary>
/// The TD HOB: the list in which a VMM tells the firmware of a TD where memory is (tdx.md 6.6; PI specification, hand-off blocks). Its digest is the first event
/// that the firmware measures, so RTMR0 depends on the memory size.
/// </summary>
public static class TdHob
{
    /// <summary>Bytes of the last block, which the firmware does not measure.</summary>
    public const int EndSize = 8;

    private const int HandOffSize = 56;
    private const int ResourceSize = 48;
    private const ushort HandOffType = 1;
    private const ushort ResourceType = 3;
    private const ushort EndType = 0xffff;
    private const uint HandOffVersion = 9;
    private const uint SystemMemory = 0;
    private const uint UnacceptedMemory = 7;

    // Present, initialized, tested.
    private const uint ResourceAttributes = 7;

    /// <summary>Where QEMU's q35 machine puts memory: all of it below 4 GiB if it is less than 2816 MiB, else 2 GiB there and the rest from 4 GiB on.</summary>
    /// <param name="bytes">Whole pages.</param>
    public static IReadOnlyList<GuestRange> Q35Memory(ulong bytes)
    {
        const ulong mostBelow = 0xb000_0000, split = 2UL << 30;
        return bytes < mostBelow ? [new(0, bytes)] : [new(0, split), new(FirmwareImage.FourGiB, bytes - split)];
    }

    /// <summary>Makes the list.</summary>
    /// <param name="gpa">Where it will be.</param>
    /// <param name="ram">The guest's memory, which is unaccepted but for the next.</param>
    /// <param name="added">What the launch adds of it: TD_HOB and TEMP_MEM sections in table order.</param>
    /// <exception cref="LaunchInputException">A section is not in the memory, or overlaps another.</exception>
    public static byte[] Build(ulong gpa, IEnumerable<GuestRange> ram, IEnumerable<GuestRange> added)
    {
        List<(GuestRange Range, uint Type)> memory = [.. ram.Select(range => (range, UnacceptedMemory))];
        foreach (GuestRange section in added)
            Accept(memory, section);

        byte[] hob = new byte[HandOffSize + (memory.Count * ResourceSize) + EndSize];
        WriteHeader(hob, HandOffType, HandOffSize);
        BinaryPrimitives.WriteUInt32LittleEndian(hob.AsSpan(8), HandOffVersion);
        BinaryPrimitives.WriteUInt64LittleEndian(hob.AsSpan(48), gpa + (ulong)hob.Length);

        Span<byte> at = hob.AsSpan(HandOffSize);
        foreach ((GuestRange range, uint type) in memory.OrderBy(each => each.Range.Start))
        {
            WriteHeader(at, ResourceType, ResourceSize);
            BinaryPrimitives.WriteUInt32LittleEndian(at[24..], type);
            BinaryPrimitives.WriteUInt32LittleEndian(at[28..], ResourceAttributes);
            BinaryPrimitives.WriteUInt64LittleEndian(at[32..], range.Start);
            BinaryPrimitives.WriteUInt64LittleEndian(at[40..], range.Size);
            at = at[ResourceSize..];
        }

        WriteHeader(at, EndType, EndSize);
        return hob;
    }

    /// <summary>What the firmware measures of a list: all but its end.</summary>
    public static ReadOnlySpan<byte> Measured(ReadOnlySpan<byte> hob) => hob[..^EndSize];

    // Cuts the section out of the entry that has it; what is left on both sides stays as it was.
    private static void Accept(List<(GuestRange Range, uint Type)> memory, GuestRange section)
    {
        int index = memory.FindIndex(each => each.Range.Start <= section.Start && section.End <= each.Range.End);
        if (index < 0)
        {
            throw new LaunchInputException(
                $"The firmware wants memory at {section} before it runs, and the guest's memory is {string.Join(", ", memory.Where(each => each.Type == UnacceptedMemory).Select(each => each.Range))} there. "
                + "Give the guest more memory (--memory), or use another firmware.");
        }

        (GuestRange whole, uint type) = memory[index];
        if (type == SystemMemory)
            throw new LaunchInputException($"The firmware wants memory at {section}, which overlaps {whole}, another of its sections. The image contradicts itself: use another build.");

        List<(GuestRange Range, uint Type)> parts =
        [
            (new(whole.Start, section.Start - whole.Start), UnacceptedMemory), (section, SystemMemory), (new(section.End, whole.End - section.End), UnacceptedMemory),
        ];
        memory.RemoveAt(index);
        memory.InsertRange(index, parts.Where(part => part.Range.Size > 0));
    }

    private static void WriteHeader(Span<byte> at, ushort type, int length)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(at, type);
        BinaryPrimitives.WriteUInt16LittleEndian(at[2..], (ushort)length);
    }
}
