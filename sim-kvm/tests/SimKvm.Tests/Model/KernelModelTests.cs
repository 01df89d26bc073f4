using System.Globalization;
using System.Text;
using SimKvm.Locking;
using SimKvm.Profiles;
using Xunit;

namespace SimKvm.Tests.Model;

/// <summary>
/// Random sequences of calls on the simulated kernel and on <see cref="ModelKernel"/>: after each call both have given the same answer, are in the same state, and
/// the kernel's structures and reference counts are sound; at the end nothing is left and the locks were taken in the order of section 1.2.
/// </summary>
/// <remarks>
/// VMM_MODEL_COUNT raises the number of sequences for each profile. A failure names a shrunk sequence; VMM_MODEL_RUN set to that name repeats it.
/// </remarks>
public sealed class KernelModelTests
{
    private const int Length = 250;

    private static readonly int s_count = int.Parse(Environment.GetEnvironmentVariable("VMM_MODEL_COUNT") ?? "15", CultureInfo.InvariantCulture);

    public static TheoryData<string> Profiles => [.. KernelProfiles.All.Select(profile => profile.Id)];

    [Theory]
    [MemberData(nameof(Profiles))]
    public void RandomSequences_AgreeWithTheModel(string profile)
    {
        Behaviours? behaviours = Behaviours.Of(profile);
        Assert.SkipWhen(behaviours is null, $"{profile} differs as a whole: section 14 has no row of it that the model could use");
        for (int seed = 1; seed <= s_count; seed++)
        {
            Check(new SequenceId(profile, seed, Length), behaviours!);
        }
    }

    [Fact]
    public void SequenceThatWasAskedFor_AgreesWithTheModel()
    {
        string? run = Environment.GetEnvironmentVariable("VMM_MODEL_RUN");
        Assert.SkipWhen(run is null, "VMM_MODEL_RUN names no sequence to repeat");
        var id = SequenceId.Parse(run!);
        Check(id, Behaviours.Of(id.Profile)!);
    }

    // The net has no holes that a mistake of the size of one behaviour slips through, and what it catches comes out small.
    [Theory]
    [InlineData("binding overlap")]
    [InlineData("signed offset")]
    [InlineData("flags of guest_memfd")]
    [InlineData("guest_memfd for every VM")]
    [InlineData("toggle")]
    [InlineData("cleared when allocated")]
    [InlineData("populate")]
    public void WrongBehaviourInTheModel_IsFoundAndShrunk(string which)
    {
        Behaviours right = Behaviours.Of("K72")!;
        (string profile, Behaviours wrong) = which switch
        {
            "binding overlap" => ("K72", right with { BindOverlap = Errno.EINVAL }),
            "signed offset" => ("K72", right with { BindSigned = true }),
            "flags of guest_memfd" => ("K72", right with { CreateFlagsPrivate = 3 }),
            "guest_memfd for every VM" => ("K72", right with { GmemForEveryVm = false }),
            "toggle" => ("K616", Behaviours.Of("K616")! with { ToggleRefused = true }),
            "cleared when allocated" => ("K72", right with { AllocatedIsUptodate = true }),
            "populate" => ("K72", right with { Populate = PopulateForm.WholeLoop }),
            _ => throw new ArgumentOutOfRangeException(nameof(which)),
        };
        SequenceId id = Enumerable.Range(1, 200).Select(seed => new SequenceId(profile, seed, Length)).First(each => Run(each, wrong) is not null);

        SequenceId shrunk = Shrink(id, wrong);

        Assert.NotNull(Run(SequenceId.Parse(shrunk.ToString()), wrong));
        Assert.Null(Run(shrunk, Behaviours.Of(profile)!));
        Assert.InRange(shrunk.Kept!.Count, 1, 12);
    }

    [Fact]
    public void Sequences_TakeEveryLockOfGuestMemory()
    {
        var edges = new HashSet<(LockClass Outer, LockClass Inner)>();
        for (int seed = 1; seed <= 60; seed++)
        {
            using var twin = new Twin(KernelProfiles.K72, Behaviours.Of("K72")!);
            foreach (Call call in Sequence.Generate(seed, Length, twin.Model.Behaviours))
            {
                call.Play(twin);
                twin.CompareStates();
            }
            twin.Finish();
            edges.UnionWith(twin.Edges);
        }
        Assert.Superset(
            new HashSet<(LockClass, LockClass)>
            {
                (LockOrder.Slots, LockOrder.SlotsArch), (LockOrder.Slots, LockOrder.Mmap), (LockOrder.Slots, LockOrder.Invalidate), (LockOrder.Slots, LockOrder.Mmu),
                (LockOrder.Mmap, LockOrder.Folio), (LockOrder.Invalidate, LockOrder.Folio), (LockOrder.Invalidate, LockOrder.Mmu),
            },
            edges);
        Assert.Subset(LockEdges.Allowed.ToHashSet(), edges);
    }

    [Fact]
    public void Shrinker_LeavesWhatIsNeededAndNothingElse()
    {
        int[] items = [.. Enumerable.Range(0, 100)];
        Assert.Equal([3, 50, 51, 99], Shrinker.Shrink(items, part => new[] { 3, 50, 51, 99 }.All(part.Contains)));
        Assert.Equal([0], Shrinker.Shrink(items, part => part.Contains(0)));
    }

    private static void Check(SequenceId id, Behaviours behaviours)
    {
        if (Run(id, behaviours) is null)
        {
            return;
        }
        SequenceId shrunk = Shrink(id, behaviours);
        var text = new StringBuilder($"VMM_MODEL_RUN={shrunk}\n");
        foreach (Call call in shrunk.Calls)
        {
            text.Append(CultureInfo.InvariantCulture, $"  {call}\n");
        }
        Assert.Fail(text.Append(Run(shrunk, behaviours)).ToString());
    }

    private static SequenceId Shrink(SequenceId id, Behaviours behaviours) => id with
    {
        Kept = Shrinker.Shrink(id.Kept ?? [.. Enumerable.Range(0, id.Calls.Count)], part => Run(id with { Kept = part }, behaviours) is not null),
    };

    // What went wrong, or null. An exception of the kernel's is as wrong as a wrong answer.
    private static string? Run(SequenceId id, Behaviours behaviours)
    {
        using var twin = new Twin(KernelProfiles.Find(id.Profile)!, behaviours);
        Call? last = null;
        try
        {
            foreach (Call call in id.Calls)
            {
                last = call;
                call.Play(twin);
                twin.CompareStates();
            }
            last = null;
            twin.Finish();
            return null;
        }
        catch (Exception exception) when (exception is DisagreementException or InvalidOperationException or ArgumentException or KeyNotFoundException or NullReferenceException)
        {
            return $"after {last?.ToString() ?? "the end"}: {(exception is DisagreementException ? exception.Message : exception.ToString())}";
        }
    }
}
