namespace VmmService.Client.Launching;

/// <summary>How far a launch has come.</summary>
/// <param name="Step">What is being done.</param>
/// <param name="Done">Pages loaded, pages measured and vCPUs measured so far.</param>
/// <param name="Total">How many there are in the whole launch.</param>
public readonly record struct LaunchProgress(string Step, ulong Done, ulong Total);

/// <summary>A step of a launch failed. The reason is the inner exception: a <see cref="KvmException"/> or a <see cref="VmmServiceException"/>.</summary>
public sealed class LaunchException(string step, Exception inner) : Exception($"The launch failed at: {step}. {inner.Message}", inner)
{
    /// <summary>What was being done.</summary>
    public string Step { get; } = step;
}

/// <summary>What every launch does beside its ioctls: says where it is, keeps what it opened, and when a step fails closes that and names the step.</summary>
/// <param name="total">Pages and vCPUs of the whole launch.</param>
/// <param name="progress">Told of each step; null for nobody.</param>
internal sealed class LaunchSteps(ulong total, IProgress<LaunchProgress>? progress)
{
    private string _step = "";

    /// <summary>What the guest will hold open.</summary>
    public HeldResources Held { get; } = new();

    /// <summary>How much of the total is done.</summary>
    public ulong Done { get; private set; }

    /// <exception cref="LaunchException">A step failed. What was opened is closed.</exception>
    public async Task<T> RunAsync<T>(Func<Task<T>> launch)
    {
        try
        {
            return await launch();
        }
        catch (Exception exception)
        {
            await Held.DisposeAsync();
            if (exception is KvmException or VmmServiceException)
                throw new LaunchException(_step, exception);
            throw;
        }
    }

    public void Begin(string step)
    {
        _step = step;
        Report(Done);
    }

    public void Report(ulong done)
    {
        Done = done;
        progress?.Report(new LaunchProgress(_step, done, total));
    }

    /// <summary>The last of it, whatever was counted.</summary>
    public void BeginLast(string step)
    {
        Done = total;
        Begin(step);
    }
}
