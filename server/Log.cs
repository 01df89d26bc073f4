namespace VmmService.Server;

/// <summary>Every text that the daemon logs. No content of memory and no key is ever logged.</summary>
internal static partial class Log
{
    [LoggerMessage(1, LogLevel.Information, "Listening on {Address}")]
    public static partial void Listening(ILogger logger, string address);

    [LoggerMessage(2, LogLevel.Warning, "Listening on {Address}, which is not loopback: whoever reaches it has the daemon")]
    public static partial void ListeningBeyondLoopback(ILogger logger, string address);

    [LoggerMessage(3, LogLevel.Information, "Stopping: no new calls, {Hosts} hosts will be switched off")]
    public static partial void Stopping(ILogger logger, int hosts);

    [LoggerMessage(10, LogLevel.Information, "Host {Host} booted {Profile}, seed {Seed}")]
    public static partial void HostBooted(ILogger logger, string host, string profile, ulong seed);

    [LoggerMessage(11, LogLevel.Information, "Host {Host} switched off: {Reason}")]
    public static partial void HostSwitchedOff(ILogger logger, string host, string reason);

    [LoggerMessage(12, LogLevel.Debug, "Host {Host}: process {Pid} started")]
    public static partial void ProcessStarted(ILogger logger, string host, int pid);

    [LoggerMessage(13, LogLevel.Debug, "Host {Host}: process {Pid} exited: {Reason}")]
    public static partial void ProcessExited(ILogger logger, string host, int pid, string reason);

    [LoggerMessage(20, LogLevel.Debug, "{Method}: {Text}")]
    public static partial void CallAnswered(ILogger logger, string method, string text);

    [LoggerMessage(21, LogLevel.Warning, "Finding of kind {Kind}: {Text}")]
    public static partial void FindingReported(ILogger logger, string kind, string text);

    [LoggerMessage(30, LogLevel.Error, "{Method} failed in the daemon itself; please report this")]
    public static partial void Unhandled(ILogger logger, string method, Exception exception);
}
