using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using VmmService.Client.Digest;

namespace VmmService.Vmm;

/// <summary>One of two launches to be compared, in any of the ways in which it can be named: options of a launch in quotes, a VM of a daemon, or a file.</summary>
internal static class DigestSides
{
    public const string Help =
        """
        A and B are each one of
          FILE               output of `vmm launch snp --json`, `vmm digest compute --json`, or either with --transcript; - is standard input
          "--firmware F ..." options of `vmm digest compute`, in quotes
          vm:HOST/PID/FD     a VM of the daemon at --server
        """;

    private const string VmPrefix = "vm:";

    /// <exception cref="UsageException">It names nothing that can be read.</exception>
    public static async Task<DigestSide> ReadAsync(string text, string? server, CancellationToken cancellation)
    {
        if (IsVm(text))
            return await OfVmAsync(text, server, cancellation);
        return text.Length > 1 && text[0] == '-' ? await OfOptionsAsync(text, cancellation) : await TranscriptFile.ReadAsync(text, cancellation);
    }

    private static async Task<DigestSide> OfOptionsAsync(string text, CancellationToken cancellation)
    {
        var inputs = new DigestInputs();
        var command = new Command("launch");
        inputs.AddTo(command);
        ParseResult parsed = command.Parse([.. CommandLineParser.SplitCommandLine(text)]);
        if (parsed.Errors.Count > 0)
            throw new UsageException($"in '{text}': {parsed.Errors[0].Message}. Try: vmm digest compute --help");

        DigestLaunch launch = await inputs.ReadAsync(parsed, cancellation);
        if (!launch.IsSnp)
            throw new UsageException($"in '{text}': a digest of mode {launch.Mode} is one hash over everything and has no pages to compare; only SNP digests have.");

        MeasuredLaunch measured = launch.Measured();
        return new DigestSide(text, DigestTranscript.Measure(measured.Pages()), new LaunchFacts
        {
            Firmware = launch.Firmware.Image,
            FirmwareSha256 = Sha256Hex.Of(launch.Firmware.Image.Bytes.Span),
            KernelSha256 = launch.Kernel is null ? null : Convert.ToHexStringLower(launch.Kernel.Kernel.Span),
            InitrdSha256 = launch.InitrdPath is null ? null : Convert.ToHexStringLower(launch.Kernel!.Initrd.Span),
            Append = launch.Append,
            SevFeatures = launch.GuestFeatures,
            Signature = launch.Signature,
            Regions = [.. measured.Regions.Select(region => new NamedRegion(region.Gpa, region.Size, region.Label))],
        });
    }

    private static async Task<DigestSide> OfVmAsync(string text, string? server, CancellationToken cancellation)
    {
        (string host, uint pid, int fd) = ParseVm(text, server);
        await using DaemonSession session = await DaemonSession.OpenAsync(server, cancellation);
        try
        {
            return new DigestSide(text, await session.Connection.ReadTranscriptAsync(host, pid, fd, cancellation), new LaunchFacts());
        }
        catch (FormatException exception)
        {
            throw new UsageException($"{text}: {exception.Message}");
        }
    }

    /// <summary>Whether a side names a VM of a daemon.</summary>
    internal static bool IsVm(string text) => text.StartsWith(VmPrefix, StringComparison.Ordinal);

    /// <summary>The VM that a side names.</summary>
    /// <exception cref="UsageException">It is not named as VMs are, or no daemon is given.</exception>
    internal static (string Host, uint Pid, int Fd) ParseVm(string text, string? server)
    {
        string[] parts = text[VmPrefix.Length..].Split('/');
        if (parts.Length != 3
            || parts[0].Length == 0
            || !uint.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out uint pid)
            || !int.TryParse(parts[2], NumberStyles.None, CultureInfo.InvariantCulture, out int fd))
        {
            throw new UsageException($"{text}: a VM is named vm:HOST/PID/FD, such as vm:h1/1/5");
        }

        if (server is null)
            throw new UsageException($"{text}: a VM is a daemon's; say which with --server");

        return (parts[0], pid, fd);
    }
}
