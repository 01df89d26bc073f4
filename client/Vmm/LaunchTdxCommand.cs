using System.CommandLine;
using System.Text.Json;
using VmmService.Client;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.Client.Launching;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>vmm launch tdx: reads the files, plans the launch, has it performed, prints what came out.</summary>
internal sealed class LaunchTdxCommand
{
    /// <summary>The profile that measures regions at their end, where --order asks for it and --profile for none.</summary>
    private const string PerRegionProfile = "TDX24";

    private readonly VmmConsole _console;
    private readonly TdxInputs _inputs = new();
    private readonly Option<uint?> _vcpus = Numbers.Option<uint>("--vcpus", "Number of vCPUs; at most as many as the host has processors.", "N", 1);
    private readonly Option<ulong?> _attributes = Numbers.Option<ulong>("--attributes", "ATTRIBUTES of the TD. [default: 0x10000000, SEPT_VE_DISABLE]", "MASK");
    private readonly Option<ulong?> _xfam = Numbers.Option<ulong>("--xfam", "XFAM of the TD. [default: 0x3]", "MASK");
    private readonly Option<string?> _profile = new("--profile")
    {
        Description = $"Kernel generation of the host, see `vmm profiles`. Without it the daemon's default, or {PerRegionProfile} for --order per-region.",
        HelpName = "PROFILE",
    };

    private readonly Option<ulong?> _seed = Numbers.Option<ulong>("--seed", "Seed of the host: keys come from it.", "N", 0);
    private readonly Option<string?> _server = InfoCommands.ServerOption();
    private readonly Option<bool> _json = InfoCommands.JsonOption("Print one JSON object with all of it.");
    private readonly Option<bool> _transcript = new("--transcript") { Description = "Print every measured call, not runs of alike ones." };
    private readonly Option<bool> _quiet = new("--quiet") { Description = "Show no progress." };

    private LaunchTdxCommand(VmmConsole console) => _console = console;

    public static Command Create(VmmConsole console)
    {
        var it = new LaunchTdxCommand(console);
        var command = new Command(
            "tdx",
            $"""
            Launch an Intel TDX guest ioctl by ioctl the way a VMM does, and print its MRTD and what was measured.

            Numbers are decimal, or hexadecimal with 0x.

            {ExitCode.Help}
            """);
        command.Add(it._json);
        command.Add(it._transcript);
        command.Add(it._quiet);
        it._inputs.AddTo(command);
        foreach (Option option in (Option[])[it._vcpus, it._attributes, it._xfam, it._profile, it._seed, it._server])
            command.Add(option);
        command.SetAction(it.RunAsync);
        return command;
    }

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancellation)
    {
        TdxLaunch inputs = await _inputs.ReadAsync(parsed, cancellation);
        var options = new TdxLaunchOptions
        {
            Vcpus = (int)Math.Min(parsed.GetValue(_vcpus) ?? 1, int.MaxValue),
            Attributes = parsed.GetValue(_attributes) ?? TdxLaunchOptions.DefaultAttributes,
            Xfam = parsed.GetValue(_xfam) ?? new TdxLaunchOptions().Xfam,
        };
        if (options.Vcpus == 0)
            throw new UsageException("--vcpus 0: a TD without vCPU cannot be finalised; give at least 1");

        string? profile = parsed.GetValue(_profile) ?? (inputs.Order == MrtdOrder.PerRegion ? PerRegionProfile : null);
        await using DaemonSession session = await DaemonSession.OpenAsync(parsed.GetValue(_server), cancellation);
        await using RemoteHost host = await session.Connection.CreateHostAsync(
            profile, parsed.GetValue(_seed) ?? 0, new MachineConfig { Platform = Platform.IntelTdx }, cancellation: cancellation);
        await using RemoteProcess process = await host.CreateProcessAsync(cancellation);
        await using LaunchedTd td = await LaunchProgressBar.ShowAsync(
            _console, !parsed.GetValue(_json) && !parsed.GetValue(_quiet), progress => TdxLauncher.LaunchAsync(process, inputs.Plan, options, progress, cancellation));

        TdxLaunchReport report = TdxLaunchReport.Of(td, inputs, host, session.Name);
        if (parsed.GetValue(_json))
            await _console.Output.WriteLineAsync(JsonSerializer.Serialize(report, DigestReport.Json));
        else
            await WriteAsync(_console.Output, report, inputs, parsed.GetValue(_transcript) ? td.Vm.TdxLaunch() : null, cancellation);
        return ExitCode.Ok;
    }

    private static async Task WriteAsync(TextWriter output, TdxLaunchReport report, TdxLaunch inputs, VmmService.Client.TdxLaunch? everyCall, CancellationToken cancellation)
    {
        output.WriteLine($"MRTD            {report.Mrtd}");
        if (report.Mrtd != report.ComputedMrtd)
            output.WriteLine($"                {report.ComputedMrtd} was computed for --order {report.Order}: profile {report.Profile} measures in another order");
        output.WriteLine();
        output.WriteLine($"Firmware        {DigestTdxComputeCommand.DescribeFirmware(inputs.Firmware)}");
        output.WriteLine($"                {report.Firmware.Size} bytes, sha256 {report.Firmware.Sha256}");
        output.WriteLine($"VMM             {report.Vmm}");
        output.WriteLine($"vCPUs           {report.Vcpus}, RCX {report.HobGpa}");
        output.WriteLine($"Attributes      {report.Attributes}, XFAM {report.Xfam}");
        output.WriteLine($"Memory          {Numbers.Size(report.MemoryBytes)}");
        output.WriteLine($"Kernel profile  {report.Profile}, seed {report.Seed}, daemon {report.Server}");
        output.WriteLine();
        output.WriteLine($"Measured, in order ({report.MeasuredCalls} calls)");
        if (everyCall is null)
        {
            foreach (string run in report.Measured)
                output.WriteLine($"  {run}");
            return;
        }

        await foreach (MrtdRecord record in everyCall.Transcript(cancellation))
            output.WriteLine($"  {record.Index}  {(record.Call == MrtdCall.PageAdd ? "PAGE.ADD " : "MR.EXTEND")}  {Numbers.Hex(record.Gpa)}  {(record.ContentHash.Length > 0 ? $"sha256 {record.ContentHash}" : "")}".TrimEnd());
    }
}

/// <summary>What a TD's launch came to, as data: the property names are those of --json.</summary>
/// <param name="Mrtd">As the TDX module measured it, 96 lower-case hexadecimal digits.</param>
/// <param name="ComputedMrtd">As it is computed of the firmware, without a launch, for the order that was asked for.</param>
/// <param name="Measured">Runs of alike measured calls.</param>
internal sealed record TdxLaunchReport(
    string Mrtd,
    string VmType,
    string ComputedMrtd,
    string Order,
    string Profile,
    string Server,
    LaunchReport.FirmwareEntry Firmware,
    string Vmm,
    int Vcpus,
    string Attributes,
    string Xfam,
    ulong MemoryBytes,
    ulong Seed,
    string HobGpa,
    IReadOnlyList<MrtdReport.RegionEntry> Regions,
    ulong MeasuredCalls,
    IReadOnlyList<string> Measured)
{
    public static TdxLaunchReport Of(LaunchedTd td, TdxLaunch inputs, RemoteHost host, string server)
    {
        FirmwareImage image = inputs.Firmware.Image;
        return new TdxLaunchReport(
            td.Mrtd,
            "TDX",
            inputs.Mrtd().ToString(),
            inputs.Order == MrtdOrder.PerPage ? "per-page" : "per-region",
            host.Profile,
            server,
            new LaunchReport.FirmwareEntry(inputs.Firmware.Path, image.Size, Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(image.Bytes.Span)), inputs.Firmware.Source),
            inputs.Plan.Flavor.Name,
            td.Vcpus.Count,
            Numbers.Hex(td.Options.Attributes),
            Numbers.Hex(td.Options.Xfam),
            inputs.Memory,
            host.Seed,
            Numbers.Hex(inputs.Plan.HobGpa),
            [.. inputs.Plan.Regions.Select(region => new MrtdReport.RegionEntry(region.Label, Numbers.Hex(region.Gpa), region.Size, region.Extend))],
            td.Description.MeasuredCalls,
            td.Description.Measured);
    }
}
