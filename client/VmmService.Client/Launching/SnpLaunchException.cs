namespace VmmService.Client.Launching;

/// <summary>A step of a launch failed. The reason is the inner exception: a <see cref="KvmException"/> or a <see cref="VmmServiceException"/>.</summary>
public sealed class SnpLaunchException(string step, Exception inner, string? addition = null)
    : Exception($"The launch failed at: {step}. {inner.Message}{(addition is null ? "" : $"{Environment.NewLine}{addition}")}", inner)
{
    /// <summary>What was being done.</summary>
    public string Step { get; } = step;
}
