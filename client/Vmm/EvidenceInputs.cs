using System.CommandLine;
using System.Globalization;
using System.Text.RegularExpressions;
using Google.Protobuf;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>
/// What the commands that verify evidence have in common: a folder with what goes beside it, whose files can be named one by one; the time; how findings are told.
/// </summary>
internal sealed partial class EvidenceInputs(string folder, string folderDescription)
{
    public const string ExitCodes =
        """
        Exit codes:
          0    accepted
          1    refused, or incomplete: without the trusted root or a part of what goes beside the evidence nobody can say
          2    the command line or an input file cannot be used
          3    the daemon could not be reached, or failed
          130  interrupted
        """;

    private static readonly string[] s_timeForms = ["yyyy-MM-dd", "yyyy-MM-dd'T'HH:mmK", "yyyy-MM-dd'T'HH:mm:ssK"];

    private readonly Option<string?> _folder = new(folder) { Description = folderDescription + " What is not in it is not given; an option for one of its files goes before it.", HelpName = "DIR" };
    private readonly Option<string?> _reportData = new("--report-data") { Description = "The challenge: 64 bytes as hexadecimal digits; fewer are filled up with zeros.", HelpName = "HEX" };
    private readonly Option<bool> _allowDebug = new("--allow-debug") { Description = "Accept a guest that its host may look into." };
    private readonly Option<string?> _at = new("--at") { Description = "When it is verified: 2026-01-31 or 2026-01-31T12:00:00Z, UTC unless it says otherwise. [default: now]", HelpName = "TIME" };
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object: verdict, simulated, checks.");
    private readonly Option<string?> _server = InfoCommands.ServerOption();

    /// <summary>Adds the options, those of the folder's files behind it.</summary>
    public void AddTo(Command command, params Option[] files)
    {
        foreach (Option option in (Option[])[_folder, .. files, _reportData, _allowDebug, _at, _json, _server])
            command.Add(option);
    }

    public static Option<string?> File(string name, string description) => new(name) { Description = description, HelpName = "FILE" };

    /// <summary>The content of a part: named by its option, or in the folder; empty where it is neither.</summary>
    /// <param name="label">Of PEM; null for what is taken as it is.</param>
    /// <param name="names">Names in the folder, the first that is there counts.</param>
    /// <exception cref="UsageException">It cannot be read.</exception>
    public async Task<ByteString> ReadAsync(ParseResult parsed, Option<string?> option, string? label, CancellationToken cancellation, params string[] names)
    {
        (string from, string? path) = parsed.GetValue(option) is { } file ? (option.Name, file) : (_folder.Name, InFolder(parsed, names));
        if (path is null)
            return ByteString.Empty;
        byte[] bytes = label is null ? await EvidenceFile.ReadAsync(from, path, cancellation) : await EvidenceFile.ReadDerAsync(from, path, label, cancellation);
        return UnsafeByteOperations.UnsafeWrap(bytes);
    }

    /// <summary>Path of the first of the names that the folder has; null without one.</summary>
    /// <exception cref="UsageException">There is no such folder.</exception>
    public string? InFolder(ParseResult parsed, params string[] names)
    {
        if (parsed.GetValue(_folder) is not { } path)
            return null;
        return Directory.Exists(path)
            ? names.Select(name => Path.Combine(path, name)).FirstOrDefault(System.IO.File.Exists)
            : throw new UsageException($"{_folder.Name} {path}: there is no such folder");
    }

    /// <summary>The challenge, 64 bytes; empty where none is given.</summary>
    public ByteString Challenge(ParseResult parsed) => parsed.GetValue(_reportData) is { } hex ? UnsafeByteOperations.UnsafeWrap(ReportData.Parse(hex)) : ByteString.Empty;

    public bool AllowDebug(ParseResult parsed) => parsed.GetValue(_allowDebug);

    /// <summary>Seconds since 1970.</summary>
    public long At(ParseResult parsed)
    {
        string? text = parsed.GetValue(_at);
        DateTimeOffset time = text is null ? TimeProvider.System.GetUtcNow()
            : DateTimeOffset.TryParseExact(text, s_timeForms, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal, out DateTimeOffset given) ? given
            : throw new UsageException($"--at {text}: not a time; use 2026-01-31 or 2026-01-31T12:00:00Z");
        return time.ToUnixTimeSeconds();
    }

    /// <summary>Has the evidence verified and prints what is found.</summary>
    /// <param name="verify">Asks the daemon.</param>
    /// <param name="untrusted">Path of a root that came with the evidence and is trusted for want of a better one; null where the user named one, or there is none.</param>
    /// <param name="rootOption">Names a root.</param>
    /// <param name="options">The options for what the daemon knows by the fields of its request.</param>
    public async Task<int> VerifyAsync(
        ParseResult parsed, VmmConsole console, Func<VmmConnection, Task<EvidenceFindings>> verify, string? untrusted, string rootOption,
        IReadOnlyDictionary<string, string> options, CancellationToken cancellation)
    {
        await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation);
        EvidenceFindings findings = await verify(session.Connection);
        foreach (EvidenceCheck check in findings.Checks.Where(each => each.Result == EvidenceCheckResult.NotMade))
            check.Found = FieldNames().Replace(check.Found, fields => FieldName().Replace(fields.Value, field => OptionOf(field.Value, options)));
        bool json = parsed.GetValue(_json);
        if (untrusted is not null)
        {
            string note = $"the trusted root is {untrusted}, which came with the evidence; {rootOption} names one that you trust yourself";
            await (json ? console.Error.WriteLineAsync($"vmm: {note}") : console.Output.WriteLineAsync($"Note: {note}.\n"));
        }
        if (json)
            await console.Output.WriteLineAsync(EvidenceText.ToJson(findings));
        else
            EvidenceText.Write(console.Output, findings);
        return findings.Verdict == EvidenceVerdict.Accepted ? ExitCode.Ok : ExitCode.KernelRefused;
    }

    private string OptionOf(string field, IReadOnlyDictionary<string, string> options) => field switch
    {
        "at" => _at.Name,
        "expected.report_data" => _reportData.Name,
        "expected.allow_debug" => _allowDebug.Name,
        _ => options.GetValueOrDefault(field, field),
    };

    // "give it (root_crl, pck_crl)"
    [GeneratedRegex(@"\([a-z_.]+(, [a-z_.]+)*\)")]
    private static partial Regex FieldNames();

    [GeneratedRegex("[a-z_.]+")]
    private static partial Regex FieldName();
}

/// <summary>Expectations of measured values.</summary>
internal static class MeasuredValue
{
    /// <summary>The digits of a SHA-384; empty where none are given.</summary>
    /// <exception cref="UsageException">They are not 96.</exception>
    public static string Parse(string option, string? digits)
    {
        const int size = 48;
        return digits is null ? ""
            : digits.Length == 2 * size && digits.All(char.IsAsciiHexDigit) ? digits
            : throw new UsageException($"{option} {digits}: not {2 * size} hexadecimal digits");
    }
}
