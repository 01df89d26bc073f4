using BenchmarkDotNet.Columns;
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Exporters;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Loggers;
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
    .WithOptions(ConfigOptions.JoinSummary | ConfigOptions.DisableOptimizationsValidator);

Type[] all = [typeof(IoctlBench), typeof(MeasuredLaunchBench), typeof(RpcBench)];
BenchmarkSwitcher.FromTypes(all).Run(args.Where(arg => arg != "--quick").DefaultIfEmpty("--filter").Concat(args.Length == 0 || args is ["--quick"] ? ["*"] : []).ToArray(), config);
