namespace VmmService.Client.Launching;

/// <summary>A step of a TD's launch failed. The reason is the inner exception: a <see cref="KvmException"/> or a <see cref="VmmServiceException"/>.</summary>
public sealed class TdxLaunchException(string step, Exception inner) : Exception($"The launch failed at: {step}. {inner.Message}", inner)
{
    /// <summary>What was being done.</summary>
    public string Step { get; } = step;
}
