namespace VmmService.Server.Sessions;

/// <summary>Looks for idle processes now and then.</summary>
internal sealed class IdleReaper(HostRegistry hosts, TimeProvider time) : BackgroundService
{
    private static readonly TimeSpan Period = TimeSpan.FromSeconds(15);

    protected override async Task ExecuteAsync(CancellationToken stoppingToken)
    {
        using var timer = new PeriodicTimer(Period, time);
        try
        {
            while (await timer.WaitForNextTickAsync(stoppingToken))
            {
                hosts.ReapIdle();
            }
        }
        catch (OperationCanceledException)
        {
            // The daemon stops.
        }
    }
}
