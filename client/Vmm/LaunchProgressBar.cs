using Spectre.Console;
using VmmService.Client.Launching;

namespace VmmService.Vmm;

/// <summary>Shows a launch to a person: one line for each step, on standard error, and only on a terminal.</summary>
internal static class LaunchProgressBar
{
    /// <summary>Runs <paramref name="launch"/>, which reports to the progress it is given; null when nobody is watching.</summary>
    public static async Task<T> ShowAsync<T>(VmmConsole console, bool enabled, Func<IProgress<SnpLaunchProgress>?, Task<T>> launch)
    {
        if (!enabled || !console.ErrorIsTerminal)
            return await launch(null);

        IAnsiConsole terminal = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(console.Error) });
        return await terminal.Progress()
            .AutoClear(true)
            .HideCompleted(false)
            .Columns(new TaskDescriptionColumn { Alignment = Justify.Left }, new ProgressBarColumn(), new PercentageColumn())
            .StartAsync(context => launch(new Bars(context)));
    }

    private sealed class Bars(ProgressContext context) : IProgress<SnpLaunchProgress>
    {
        private string? _step;
        private ProgressTask? _bar;

        public void Report(SnpLaunchProgress value)
        {
            if (value.Step != _step)
            {
                Finish();
                _step = value.Step;
                _bar = context.AddTask(Markup.Escape(value.Step), maxValue: Math.Max(1, value.Total));
            }

            _bar!.MaxValue = Math.Max(1, value.Total);
            _bar.Value = value.Done;
        }

        private void Finish()
        {
            if (_bar is not null)
                _bar.Value = _bar.MaxValue;
        }
    }
}
