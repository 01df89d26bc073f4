using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Amd;

/// <summary>Random RMPUPDATEs and PSMASHes over four large pages against an array with one plain entry a frame.</summary>
public sealed class RmpPropertyTests
{
    private const int Frames = 4 * 512;

    public static TheoryData<int> Seeds => [1, 2, 3, 4, 5, 6];

    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomInstructions_MatchTheModel(int seed)
    {
        using var machine = new Machine(new MachineConfig { MemoryBytes = Frames * 4096 }, 1);
        var thread = new MachineThread(machine);
        var random = new Random(seed);
        var model = new Entry[Frames];
        for (int step = 0; step < 3000; step++)
        {
            string where = $"seed {seed}, step {step}";
            int large = random.Next(4) * 512;
            int pfn = random.Next(3) == 0 ? large : large + random.Next(512);
            RmpResult expected;
            RmpResult actual;
            if (random.Next(6) == 0)
            {
                expected = Psmash(model, pfn);
                actual = machine.Rmp.Psmash(thread, new Pfn((ulong)pfn));
            }
            else
            {
                var state = new RmpState(
                    random.Next(3) != 0,
                    random.Next(3) == 0 ? PageLevel.Page2M : PageLevel.Page4K,
                    random.Next(40) == 0,
                    (uint)random.Next(1, 4),
                    (ulong)random.Next(8) * (random.Next(4) == 0 ? 0x1000u : 0x20_0000u));
                expected = Update(model, pfn, state);
                actual = machine.Rmp.Update(thread, new Pfn((ulong)pfn), state);
            }
            Assert.True(expected == actual, $"{where}: model {expected}, machine {actual}");
            if (random.Next(200) == 0)
            {
                // A page becomes firmware's to give back, as SNP_PAGE_RECLAIM does, so that immutable pages do not pile up.
                for (int i = 0; i < Frames; i++)
                {
                    if (model[i].Immutable)
                    {
                        model[i] = model[i] with { Immutable = false };
                        machine.Rmp.Set(new Pfn((ulong)i), machine.Rmp.Entry(new Pfn((ulong)i)) with { Immutable = false });
                    }
                }
            }
            if (step % 16 == 0)
            {
                machine.Rmp.CheckInvariants();
                for (int i = 0; i < Frames; i++)
                {
                    Assert.True(machine.Rmp.TryRead(new Pfn((ulong)i), out RmpState read), where);
                    var seen = new Entry(read.Assigned, read.Level == PageLevel.Page2M, read.Immutable, read.Asid, read.Gpa);
                    Assert.True(seen == model[i], $"{where}: frame 0x{i:x} is {seen}, in the model {model[i]}");
                }
            }
        }
    }

    private static RmpResult Update(Entry[] model, int pfn, in RmpState state)
    {
        bool large = state.Level == PageLevel.Page2M;
        if (large && (pfn % 512 != 0 || (state.Assigned && state.Gpa % 0x20_0000 != 0)))
        {
            return RmpResult.FAIL_INPUT;
        }
        Span<Entry> target = model.AsSpan(pfn, large ? 512 : 1);
        foreach (Entry entry in target)
        {
            // The first page that stands in the way decides.
            if (entry.Immutable)
            {
                return RmpResult.FAIL_PERMISSION;
            }
            if (entry.Assigned && entry.Large != large)
            {
                return RmpResult.FAIL_OVERLAP;
            }
        }
        for (int i = 0; i < target.Length; i++)
        {
            target[i] = state.Assigned ? new Entry(true, large, state.Immutable, state.Asid, state.Gpa + ((ulong)i << 12)) : default;
        }
        return RmpResult.OK;
    }

    private static RmpResult Psmash(Entry[] model, int pfn)
    {
        if (pfn % 512 != 0)
        {
            return RmpResult.FAIL_INPUT;
        }
        if (!model[pfn].Assigned || !model[pfn].Large)
        {
            return RmpResult.FAIL_OVERLAP;
        }
        if (model[pfn].Immutable)
        {
            return RmpResult.FAIL_PERMISSION;
        }
        for (int i = pfn; i < pfn + 512; i++)
        {
            model[i] = model[i] with { Large = false };
        }
        return RmpResult.OK;
    }

    private readonly record struct Entry(bool Assigned, bool Large, bool Immutable, uint Asid, ulong Gpa);
}
