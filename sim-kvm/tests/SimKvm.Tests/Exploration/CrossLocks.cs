using SimKvm.Locking;
using SimKvm.Userspace;

namespace SimKvm.Tests.Exploration;

/// <summary>A call that no kernel has: it takes two locks, one inside the other.</summary>
internal static class CrossLocks
{
    public static void Take(Process process, SimLock outer, SimLock inner, bool firstShared = false, bool secondShared = false) => process.CallForTest("two locks", current =>
    {
        using LockScope first = firstShared ? outer.EnterShared(current) : outer.Enter(current);
        using LockScope second = secondShared ? inner.EnterShared(current) : inner.Enter(current);
        return Errno.OK;
    });
}
