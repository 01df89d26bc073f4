using System.Runtime.CompilerServices;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// A call into the simulated kernel that is under way. Awaiting it gives the result and throws <see cref="KvmException"/> for an errno; awaiting
/// <see cref="Reply"/> instead gives the message as the daemon sent it, errno or not, for those who study errors rather than suffer from them.
/// </summary>
/// <typeparam name="TReply">The response message.</typeparam>
/// <typeparam name="TResult">What the call returns when it succeeds.</typeparam>
public sealed class KvmCall<TReply, TResult>
    where TReply : class
{
    private readonly string _operation;
    private readonly Func<TReply, Outcome> _outcome;
    private readonly Func<TReply, TResult> _result;
    private readonly Func<TReply, SevStatus?>? _firmwareStatus;
    private readonly Func<TReply, TdxStatus?>? _hwError;
    private readonly Lock _once = new();
    private Task<TResult>? _task;

    internal KvmCall(
        string operation,
        Task<TReply> reply,
        Func<TReply, Outcome> outcome,
        Func<TReply, TResult> result,
        Func<TReply, SevStatus?>? firmwareStatus = null,
        Func<TReply, TdxStatus?>? hwError = null)
    {
        _operation = operation;
        Reply = reply;
        _outcome = outcome;
        _result = result;
        _firmwareStatus = firmwareStatus;
        _hwError = hwError;
    }

    /// <summary>The response message, whatever errno it carries. Faults only with <see cref="VmmServiceException"/> or cancellation.</summary>
    public Task<TReply> Reply { get; }

    /// <summary>The result as a task; faults with <see cref="KvmException"/> for an errno.</summary>
    public Task<TResult> AsTask()
    {
        // The result may be an object that owns an fd, so it is made once however often it is asked for.
        lock (_once)
        {
            return _task ??= Finish();
        }
    }

    public TaskAwaiter<TResult> GetAwaiter() => AsTask().GetAwaiter();

    public ConfiguredTaskAwaitable<TResult> ConfigureAwait(bool continueOnCapturedContext) => AsTask().ConfigureAwait(continueOnCapturedContext);

    private async Task<TResult> Finish()
    {
        TReply reply = await Reply.ConfigureAwait(false);
        Outcome outcome = _outcome(reply);
        return outcome.Errno == 0 ? _result(reply) : throw new KvmException(_operation, outcome, _firmwareStatus?.Invoke(reply), _hwError?.Invoke(reply));
    }
}
