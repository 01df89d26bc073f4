namespace VmmService.Client.Launching;

/// <summary>What a VMM holds open, in the order of opening. Disposing closes it innermost first.</summary>
public sealed class HeldResources : IAsyncDisposable
{
    private readonly Stack<IAsyncDisposable> _held = [];

    /// <summary>Takes something over, and gives it back for use.</summary>
    public T Hold<T>(T each)
        where T : IAsyncDisposable
    {
        _held.Push(each);
        return each;
    }

    public async ValueTask DisposeAsync()
    {
        while (_held.TryPop(out IAsyncDisposable? next))
            await next.DisposeAsync();
    }
}
