using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace VmmService.Client.Launch;

/// <summary>
/// The SHA-256 of a kernel, its initrd and its command line, and the table that carries them into the guest (snp.md 8.5; QEMU writes the same bytes). The
/// firmware in the guest compares what it is given to boot with this table, and the table is part of the measurement; where it lies is the firmware's to say
/// (<see cref="FirmwareImage.KernelHashArea"/>).
/// </summary>
public sealed class KernelHashes
{
    /// <summary>Bytes of the table: a header and three entries.</summary>
    public const int TableSize = EntryHeaderSize + (3 * EntrySize);

    /// <summary>The table with zeros behind it up to a multiple of 16: what is put into the guest.</summary>
    public const int PaddedTableSize = (TableSize + 15) / 16 * 16;

    private const int PageSize = FirmwareImage.PageSize;
    private const int GuidSize = 16;
    private const int EntryHeaderSize = GuidSize + sizeof(ushort);
    private const int EntrySize = EntryHeaderSize + SHA256.HashSizeInBytes;

    private static readonly Guid s_tableGuid = new("9438d606-4f22-4cc9-b479-a793d411fd21");
    private static readonly Guid s_cmdlineGuid = new("97d02dd8-bd20-4c94-aa78-e7714d36ab2a");
    private static readonly Guid s_initrdGuid = new("44baf731-3a2f-4bd7-9af1-41e29169781d");
    private static readonly Guid s_kernelGuid = new("4de79437-abd2-427f-b835-d5b172d2045b");

    // Command lines are text; what is not (half of a surrogate pair) would be hashed as something else than the guest gets.
    private static readonly UTF8Encoding s_utf8 = new(encoderShouldEmitUTF8Identifier: false, throwOnInvalidBytes: true);

    private KernelHashes(byte[] kernel, byte[] initrd, byte[] cmdline)
    {
        Kernel = kernel;
        Initrd = initrd;
        Cmdline = cmdline;
    }

    /// <summary>Takes hashes that are known already, 32 bytes each, whatever they are of.</summary>
    public static KernelHashes Of(ReadOnlySpan<byte> kernel, ReadOnlySpan<byte> initrd, ReadOnlySpan<byte> cmdline)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(kernel.Length, SHA256.HashSizeInBytes);
        ArgumentOutOfRangeException.ThrowIfNotEqual(initrd.Length, SHA256.HashSizeInBytes);
        ArgumentOutOfRangeException.ThrowIfNotEqual(cmdline.Length, SHA256.HashSizeInBytes);
        return new KernelHashes(kernel.ToArray(), initrd.ToArray(), cmdline.ToArray());
    }

    /// <summary>SHA-256 of the whole kernel file.</summary>
    public ReadOnlyMemory<byte> Kernel { get; }

    /// <summary>SHA-256 of the whole initrd; of nothing if there is none.</summary>
    public ReadOnlyMemory<byte> Initrd { get; }

    /// <summary>SHA-256 of the command line in UTF-8 with one NUL behind it; of the NUL alone if there is none.</summary>
    public ReadOnlyMemory<byte> Cmdline { get; }

    /// <summary>Hashes streams from where they stand to their ends, without holding them in memory.</summary>
    /// <param name="kernel">The kernel file.</param>
    /// <param name="initrd">Null for none.</param>
    /// <param name="cmdline">Null for none.</param>
    /// <param name="cancellation">Gives up reading.</param>
    /// <exception cref="LaunchInputException">The command line has a NUL in it or is not text.</exception>
    public static async Task<KernelHashes> ComputeAsync(Stream kernel, Stream? initrd = null, string? cmdline = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(kernel);
        byte[] cmdlineHash = HashCmdline(cmdline ?? "");
        byte[] kernelHash = await SHA256.HashDataAsync(kernel, cancellation);
        byte[] initrdHash = initrd is null ? SHA256.HashData([]) : await SHA256.HashDataAsync(initrd, cancellation);
        return new KernelHashes(kernelHash, initrdHash, cmdlineHash);
    }

    /// <summary>Hashes the files that a person named; null if no kernel is to be booted.</summary>
    /// <exception cref="LaunchInputException">A file cannot be read, or there is an initrd or a command line for no kernel.</exception>
    public static async Task<KernelHashes?> FromFilesAsync(string? kernelPath, string? initrdPath, string? cmdline, CancellationToken cancellation = default)
    {
        if (kernelPath is null)
        {
            string given = (initrdPath, cmdline) switch
            {
                (not null, not null) => "An initrd (--initrd) and a command line (--append) were given",
                (not null, null) => "An initrd (--initrd) was given",
                (null, not null) => "A command line (--append) was given",
                _ => "",
            };
            return given.Length == 0
                ? null
                : throw new LaunchInputException(
                    $"{given} without a kernel. They are measured only as companions of a kernel, in one table of hashes, and a guest that boots from its disk brings "
                    + "its own. Add --kernel FILE, or leave them out.");
        }

        try
        {
            await using FileStream kernel = InputStream.Open("kernel", kernelPath);
            await using FileStream? initrd = initrdPath is null ? null : InputStream.Open("initrd", initrdPath);
            return await ComputeAsync(kernel, initrd, cmdline, cancellation);
        }
        catch (IOException exception)
        {
            throw new LaunchInputException($"The kernel '{kernelPath}' or its initrd cannot be read to the end: {exception.Message}", exception);
        }
    }

    /// <summary>The table with its padding, <see cref="PaddedTableSize"/> bytes: what legacy SEV measures behind the firmware.</summary>
    public byte[] BuildTable()
    {
        byte[] table = new byte[PaddedTableSize];
        WriteHeader(table, s_tableGuid, TableSize);
        int at = EntryHeaderSize;
        foreach ((Guid guid, ReadOnlyMemory<byte> hash) in new[] { (s_cmdlineGuid, Cmdline), (s_initrdGuid, Initrd), (s_kernelGuid, Kernel) })
        {
            WriteHeader(table.AsSpan(at), guid, EntrySize);
            hash.Span.CopyTo(table.AsSpan(at + EntryHeaderSize));
            at += EntrySize;
        }

        return table;
    }

    /// <summary>The page that SNP measures: zeros, with the table where the guest looks for it.</summary>
    /// <param name="tableGpa">Base of the firmware's kernel-hash area; its place in the page counts.</param>
    /// <exception cref="LaunchInputException">The table would reach past the end of the page.</exception>
    public byte[] BuildPage(uint tableGpa)
    {
        int offset = (int)(tableGpa % PageSize);
        if (offset + PaddedTableSize > PageSize)
        {
            throw new LaunchInputException(
                $"The table of kernel hashes would start at 0x{tableGpa:x}, 0x{offset:x} bytes into its page, and takes 0x{PaddedTableSize:x} bytes, so it does not end in that page; "
                + "only one page is launched for it. The base of the firmware's kernel-hash area is wrong: use another build of the firmware, or launch without --kernel.");
        }

        byte[] page = new byte[PageSize];
        BuildTable().CopyTo(page.AsSpan(offset));
        return page;
    }

    private static void WriteHeader(Span<byte> at, Guid guid, int length)
    {
        guid.TryWriteBytes(at);
        BinaryPrimitives.WriteUInt16LittleEndian(at[GuidSize..], (ushort)length);
    }

    private static byte[] HashCmdline(string cmdline)
    {
        int nul = cmdline.IndexOf('\0', StringComparison.Ordinal);
        if (nul >= 0)
        {
            throw new LaunchInputException(
                $"The kernel command line (--append) has a NUL at character {nul}. A NUL ends a command line, so the kernel would not see what stands behind it. Leave it out.");
        }

        try
        {
            return SHA256.HashData(s_utf8.GetBytes(cmdline + '\0'));
        }
        catch (EncoderFallbackException exception)
        {
            throw new LaunchInputException(
                $"The kernel command line (--append) is not text: character {exception.Index} is half of a surrogate pair and has no UTF-8 form. Write it again.", exception);
        }
    }
}
