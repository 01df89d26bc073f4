using Spectre.Console;
using VmmService.Client.Launching;

namespace VmmService.Vmm;

/// <summary>Shows a launch to a person: one bar with the step beside it, on standard error, and only on a terminal.</summary>
internal static class LaunchProgressBar
{
    /// <summary>Runs <paramref name="launch"/>, which reports to the progress it is given; null when nobody is watching.</summary>
    public static async Task<T> ShowAsync<T>(VmmConsole console, bool enabled, Func<IProgress<LaunchProgress>?, Task<T>> launch)
    {
        if (!enabled || !console.ErrorIsTerminal)
            return await launch(null);

        IAnsiConsole terminal = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(console.Error) });
        return await terminal.Progress()
            .AutoClear(true)
            .Columns(new ProgressBarColumn(), new PercentageColumn(), new TaskDescriptionColumn { Alignment = Justify.Left })
            .StartAsync(context =>
            {
                var bar = new Bar(context.AddTask("launch"));
                // Drawn at once, not when the clock says so: what is done sooner was seen to begin.
                context.Refresh();
                return launch(bar);
            });
    }

    private sealed class Bar(ProgressTask task) : IProgress<LaunchProgress>
    {
        public void Report(LaunchProgress value)
        {
            task.Description = Markup.Escape(value.Step);
            task.MaxValue = value.Total;
            task.Value = value.Done;
        }
    }
}
