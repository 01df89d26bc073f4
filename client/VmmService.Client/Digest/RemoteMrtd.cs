using System.Security.Cryptography;
using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Digest;

/// <summary>Reads what a TD of a daemon has measured, whoever launched it.</summary>
public static class RemoteMrtd
{
    /// <summary>What a step is of when nobody knows the firmware's sections.</summary>
    public const string UnknownSection = "memory";

    /// <summary>All measured steps of a TD so far, and its MRTD.</summary>
    /// <param name="connection">To the daemon.</param>
    /// <param name="host">Id of the host.</param>
    /// <param name="pid">Process in that host.</param>
    /// <param name="fd">The VM's fd in that process.</param>
    /// <param name="cancellation">Stops between two answers.</param>
    /// <exception cref="VmmServiceException">There is no such TD, or no daemon.</exception>
    /// <exception cref="FormatException">The daemon's records are of a kind that this library does not know.</exception>
    public static async Task<(IReadOnlyList<MrtdStep> Steps, string Mrtd)> ReadMrtdAsync(
        this VmmConnection connection, string host, uint pid, int fd, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(connection);
        List<MrtdRecord> records = [];
        ListMrtdTranscriptResponse page;
        do
        {
            page = await connection.Call(connection.Stubs.Tdx.ListMrtdTranscriptAsync(
                new ListMrtdTranscriptRequest { Host = host, Pid = pid, Fd = fd, Start = (ulong)records.Count }, cancellationToken: cancellation));
            records.AddRange(page.Records);
        }
        while (page.Records.Count > 0 && (ulong)records.Count < page.Total);

        DescribeTdResponse td = await connection.Call(connection.Stubs.Tdx.DescribeTdAsync(new DescribeTdRequest { Host = host, Pid = pid, Fd = fd }, cancellationToken: cancellation));
        return (StepsOf(records), td.Mrtd);
    }

    // Chunks that follow each other in a page are a step together.
    private static List<MrtdStep> StepsOf(List<MrtdRecord> records)
    {
        List<MrtdStep> steps = [];
        for (int i = 0; i < records.Count;)
        {
            MrtdRecord record = records[i];
            if (record.Call == MrtdCall.PageAdd)
            {
                steps.Add(new MrtdStep(Extends: false, record.Gpa, default, UnknownSection));
                i++;
                continue;
            }

            List<byte> hashes = [];
            ulong next = record.Gpa;
            do
            {
                hashes.AddRange(HashOf(records[i]));
                next += MrtdDigest.ChunkSize;
                i++;
            }
            while (next % FirmwareImage.PageSize != 0 && i < records.Count && records[i].Call == MrtdCall.MrExtend && records[i].Gpa == next);
            steps.Add(new MrtdStep(Extends: true, record.Gpa, Hash384.Of([.. hashes]), UnknownSection));
        }

        return steps;
    }

    private static byte[] HashOf(MrtdRecord record) => record.Call == MrtdCall.MrExtend && record.ContentHash.Length == 2 * SHA256.HashSizeInBytes
        ? Convert.FromHexString(record.ContentHash)
        : throw new FormatException($"record {record.Index} of the transcript is not of a known kind; is the daemon newer?");
}
