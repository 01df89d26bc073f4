namespace SimKvm.Tests.Model;

/// <summary>
/// Delta debugging (Zeller's ddmin): a part of a list, in order, that still fails and from which no single item can be left out.
/// </summary>
internal static class Shrinker
{
    /// <param name="items">A list that fails.</param>
    /// <param name="fails">Whether a part of it does.</param>
    public static IReadOnlyList<T> Shrink<T>(IReadOnlyList<T> items, Func<IReadOnlyList<T>, bool> fails)
    {
        IReadOnlyList<T> best = items;
        int size = Math.Max(1, best.Count / 2);
        while (true)
        {
            bool smaller = false;
            for (int start = 0; start < best.Count;)
            {
                IReadOnlyList<T> rest = [.. best.Take(start), .. best.Skip(start + size)];
                if (fails(rest))
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
