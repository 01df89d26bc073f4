using VmmService.V1;

namespace VmmService.Client.Digest;

/// <summary>Reads what a VM of a daemon has measured, whoever launched it.</summary>
public static class RemoteTranscript
{
    /// <summary>All measured pages of a VM so far.</summary>
    /// <param name="connection">To the daemon.</param>
    /// <param name="host">Id of the host.</param>
    /// <param name="pid">Process in that host.</param>
    /// <param name="fd">The VM's fd in that process.</param>
    /// <param name="cancellation">Stops between two answers.</param>
    /// <exception cref="VmmServiceException">There is no such VM, or no daemon.</exception>
    /// <exception cref="FormatException">The daemon's records are of a kind that this library does not know.</exception>
    public static async Task<DigestTranscript> ReadTranscriptAsync(this VmmConnection connection, string host, uint pid, int fd, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(connection);
        List<DigestStep> steps = [];
        ListTranscriptResponse page;
        do
        {
            page = await connection.Call(connection.Stubs.Inspect.ListTranscriptAsync(
                new ListTranscriptRequest { Host = host, Pid = pid, Fd = fd, Start = (ulong)steps.Count }, cancellationToken: cancellation));
            steps.AddRange(page.Records.Select(StepOf));
        }
        while (page.Records.Count > 0 && (ulong)steps.Count < page.Total);

        return new DigestTranscript(steps);
    }

    // Both enums have firmware's numbers.
    private static DigestStep StepOf(TranscriptRecord record) =>
        Hash384.TryParse(record.ContentHash, out Hash384 contents) && Hash384.TryParse(record.DigestAfter, out Hash384 after) && Enum.IsDefined((MeasuredPageType)record.PageType)
            ? new DigestStep(new MeasuredPage((MeasuredPageType)record.PageType, record.Gpa, contents), after)
            : throw new FormatException($"record {record.Index} of the transcript is not of a known kind; is the daemon newer?");
}
