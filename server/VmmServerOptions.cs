using System.Net;

namespace VmmService.Server;

/// <summary>
/// What the daemon is configured with: section <c>Vmm</c> of appsettings.json, environment variables <c>VMM__NAME</c>, or flags (<c>--unix</c>, <c>--port</c>,
/// <c>--Vmm:NAME</c>), later ones winning.
/// </summary>
public sealed class VmmServerOptions
{
    public const string Section = "Vmm";
    public const int DefaultPort = 7788;

    /// <summary>Path of the Unix socket; empty for none.</summary>
    public string UnixSocket { get; set; } = DefaultUnixSocket();

    /// <summary>TCP port; 0 for any free one, -1 for none.</summary>
    public int Port { get; set; } = DefaultPort;

    /// <summary>TCP port of the key distribution paths over HTTP/1.1, for verifiers; 0 for any free one, -1 for none.</summary>
    public int KdsPort { get; set; } = -1;

    /// <summary>Address of the TCP ports. There is no authentication: anything but loopback gives everybody on that network the daemon.</summary>
    public string Address { get; set; } = IPAddress.Loopback.ToString();

    /// <summary>Log nothing below errors.</summary>
    public bool Quiet { get; set; }

    public int MaxHosts { get; set; } = 64;

    public int MaxProcessesPerHost { get; set; } = 256;

    /// <summary>RLIMIT_NOFILE of simulated processes.</summary>
    public int MaxFdsPerProcess { get; set; } = 4096;

    /// <summary>Physical memory that a client may give a simulated machine, in bytes.</summary>
    public ulong MaxHostMemoryBytes { get; set; } = 1UL << 40;

    /// <summary>Real memory, in bytes, that the pages of all simulated machines may take; a call that starts beyond it is refused.</summary>
    public ulong MaxBackedBytes { get; set; } = 8UL << 30;

    public int MaxMessageBytes { get; set; } = 64 << 20;

    /// <summary>Bytes of one ReadMemory.</summary>
    public int MaxReadBytes { get; set; } = 16 << 20;

    public int MaxTranscriptPage { get; set; } = 10_000;

    /// <summary>Runs of one list in an answer of InspectService.</summary>
    public int MaxInspectPage { get; set; } = 10_000;

    /// <summary>Steps that a script may execute, repetitions counted.</summary>
    public int MaxScriptSteps { get; set; } = 100_000;

    /// <summary>Bytes of calls that are kept of each host, for RecordService; 0 keeps none.</summary>
    public int MaxRecordedBytes { get; set; } = 4 << 20;

    /// <summary>Schedules that an exploration may run under one profile.</summary>
    public int MaxExploredSchedules { get; set; } = 1_000_000;

    /// <summary>Seconds that an exploration may take under one profile.</summary>
    public int MaxExploreSeconds { get; set; } = 600;

    /// <summary>Explorations that go on at the same time. Each keeps a processor busy.</summary>
    public int MaxExplorations { get; set; } = 2;

    /// <summary>Seconds without a call after which a process that is not attached exits.</summary>
    public int ProcessIdleSeconds { get; set; } = 900;

    private static string DefaultUnixSocket()
    {
        string? runtime = Environment.GetEnvironmentVariable("XDG_RUNTIME_DIR");
        return string.IsNullOrEmpty(runtime)
            ? Path.Combine(Path.GetTempPath(), $"vmmservice-{Environment.UserName}", "vmmservice.sock")
            : Path.Combine(runtime, "vmmservice.sock");
    }
}
