namespace VmmService.Vmm;

/// <summary>The command line or an input file cannot be used. The message is one paragraph: what, where, why, what to try.</summary>
internal sealed class UsageException(string message) : Exception(message);
