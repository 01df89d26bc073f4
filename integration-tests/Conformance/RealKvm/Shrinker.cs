namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>Delta debugging: a part of a list, in order, that still fails and from which no single item can be left out.</summary>
internal static class Shrinker
{
    public static async Task<IReadOnlyList<T>> ShrinkAsync<T>(IReadOnlyList<T> items, Func<IReadOnlyList<T>, Task<bool>> fails)
    {
        IReadOnlyList<T> best = items;
        int size = Math.Max(1, best.Count / 2);
        while (true)
        {
            bool smaller = false;
            for (int start = 0; start < best.Count;)
            {
                IReadOnlyList<T> rest = [.. best.Take(start), .. best.Skip(start + size)];
                if (await fails(rest))
                {
                    best = rest;
                    smaller = true;
                }
                else
                {
                    start += size;
                }
            }
            if (size == 1 && !smaller)
            {
                return best;
            }
            size = Math.Max(1, size / 2);
        }
    }
}
