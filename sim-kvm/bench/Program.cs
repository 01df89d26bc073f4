using BenchmarkDotNet.Columns;
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Exporters;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Loggers;
using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;
using BenchmarkDotNet.Toolchains.InProcess.Emit;
using SimKvm.Bench;

// `--quick` takes a few short iterations of everything, for a first look.
bool quick = args.Contains("--quick");
Job job = (quick ? Job.ShortRun : Job.Default).WithToolchain(InProcessEmitToolchain.Instance);
IConfig config = ManualConfig.CreateEmpty()
    .AddJob(job)
    .AddLogger(ConsoleLogger.Default)
    .AddExporter(MarkdownExporter.GitHub)
    .AddColumnProvider(DefaultColumnProviders.Instance)
    .WithOptions(ConfigOptions.DisableOptimizationsValidator);

Type[] all = [typeof(IoctlBench), typeof(MeasuredLaunchBench), typeof(RpcBench), typeof(DigestSearchBench), typeof(ExploreBench)];
string[] rest = [.. args.Where(arg => arg != "--quick")];
IEnumerable<Summary> summaries = BenchmarkSwitcher.FromTypes(all).Run(rest.Length > 0 ? rest : ["--filter", "*"], config);

// Throughput of what moves measured memory: the table above has times only.
foreach (BenchmarkReport report in summaries.SelectMany(summary => summary.Reports))
{
    if (report.BenchmarkCase.Descriptor.Type == typeof(MeasuredLaunchBench) && report.ResultStatistics is { } statistics)
    {
        double mebibytesPerSecond = MeasuredLaunchBench.Size / (double)(1 << 20) / (statistics.Mean / 1e9);
        Console.WriteLine($"{mebibytesPerSecond,8:F0} MiB/s  {report.BenchmarkCase.Descriptor.WorkloadMethodDisplayInfo.Trim('\'')}");
    }
}
