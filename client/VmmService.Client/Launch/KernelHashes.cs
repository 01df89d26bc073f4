using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace VmmService.Client.Launch;

/// <summary>
/// The table of kernel, initrd and command-line hashes that a measured direct boot puts into guest memory (QEMU's sev kernel-hashes; snp.md 8.5).
/// </summary>
public sealed class KernelHashes
{
    /// <summary>Bytes of the table with its padding.</summary>
    public const int TableSize = 176;

    private const int PageBytes = 4096;
    private const int UnpaddedSize = 168;
    private const int EntrySize = 50;

    private static readonly Guid TableId = new("9438d606-4f22-4cc9-b479-a793d411fd21");
    private static readonly Guid CommandLineId = new("97d02dd8-bd20-4c94-aa78-e7714d36ab2a");
    private static readonly Guid InitrdId = new("44baf731-3a2f-4bd7-9af1-41e29169781d");
    private static readonly Guid KernelId = new("4de79437-abd2-427f-b835-d5b172d2045b");

    private readonly byte[] _commandLine;
    private readonly byte[] _initrd;
    private readonly byte[] _kernel;

    /// <param name="kernel">The whole kernel file.</param>
    /// <param name="initrd">The whole initrd; empty for none.</param>
    /// <param name="commandLine">Without the NUL, which is added; null or empty for none.</param>
    public KernelHashes(ReadOnlySpan<byte> kernel, ReadOnlySpan<byte> initrd = default, string? commandLine = null)
    {
        _kernel = SHA256.HashData(kernel);
        _initrd = SHA256.HashData(initrd);
        _commandLine = SHA256.HashData(Encoding.UTF8.GetBytes((commandLine ?? "") + '\0'));
    }

    /// <summary>The table, 176 bytes.</summary>
    public byte[] Table()
    {
        byte[] table = new byte[TableSize];
        TableId.TryWriteBytes(table);
        BinaryPrimitives.WriteUInt16LittleEndian(table.AsSpan(16), UnpaddedSize);
        Entry(table.AsSpan(18), CommandLineId, _commandLine);
        Entry(table.AsSpan(18 + EntrySize), InitrdId, _initrd);
        Entry(table.AsSpan(18 + (2 * EntrySize)), KernelId, _kernel);
        return table;
    }

    /// <summary>The page of an SNP guest that holds the table: zeros, but for the table at the place that the firmware names.</summary>
    /// <param name="area">The firmware's hash area.</param>
    /// <exception cref="FirmwareFormatException">The table does not fit into the page at that place.</exception>
    public byte[] Page(FirmwareArea area)
    {
        int offset = (int)(area.Base % PageBytes);
        if (offset + TableSize > PageBytes)
        {
            throw new FirmwareFormatException(
                $"The firmware puts the kernel-hashes table at 0x{area.Base:x}, {PageBytes - offset} bytes before the end of a page; the table has {TableSize}. The image is damaged.");
        }
        byte[] page = new byte[PageBytes];
        Table().CopyTo(page, offset);
        return page;
    }

    private static void Entry(Span<byte> entry, Guid id, byte[] hash)
    {
        id.TryWriteBytes(entry);
        BinaryPrimitives.WriteUInt16LittleEndian(entry[16..], EntrySize);
        hash.CopyTo(entry[18..]);
    }
}
