using SimKvm.Abi;
using SimKvm.Tests.Support;
using SimMachine.Addressing;
using Xunit;

namespace SimKvm.Tests;

/// <summary>Random attribute changes against a dictionary with an entry for each private page: values, runs, uniformity, and when seq advances.</summary>
public sealed class AttributesPropertyTests : KvmTest
{
    public static TheoryData<string, int> ProfilesAndSeeds
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (int seed in new[] { 4, 7, 11, 18, 29, 47 })
            {
                data.Add(K616, seed);
                data.Add(K72, seed);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(ProfilesAndSeeds))]
    public void RandomChanges_MatchTheModel(string profile, int seed)
    {
        TestHost host = Boot(profile);
        var random = new Random(seed);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        var values = new HashSet<ulong>();
        var slotted = new HashSet<ulong>();
        ulong seq = 0;
        // Around the borders of a node of the tree that keeps them (512 pages).
        const ulong limit = 1200;
        for (int step = 0; step < 300; step++)
        {
            string where = $"seed {seed}, profile {profile}, step {step}";
            ulong start = Point(random, limit);
            ulong end = Math.Min(limit, start + 1 + (ulong)random.Next(random.Next(3) == 0 ? 600 : 6));
            if (random.Next(12) == 0)
            {
                uint slot = (uint)random.Next(3);
                if (vm.Kernel.Memslots.All.Any(each => each.Id == slot))
                {
                    Forget(vm, slot, slotted);
                    vm.DeleteSlot(slot);
                }
                else if (vm.TrySetRegion2(slot, 0, start << 12, end - start).Succeeded)
                {
                    for (ulong gfn = start; gfn < end; gfn++)
                    {
                        slotted.Add(gfn);
                    }
                }
                continue;
            }
            bool makePrivate = random.Next(2) == 0;
            bool changes = false;
            bool touchesSlot = false;
            for (ulong gfn = start; gfn < end; gfn++)
            {
                changes |= makePrivate ? values.Add(gfn) : values.Remove(gfn);
                touchesSlot |= slotted.Contains(gfn);
            }
            seq += changes && touchesSlot ? 1UL : 0;
            Assert.True(vm.TrySetAttributes(start << 12, (end - start) << 12, makePrivate ? TestVm.Private : 0).Succeeded, where);
            Assert.True(seq == vm.Seq, $"{where}: seq {vm.Seq}, model {seq}");

            ulong[] runs = [.. vm.Describe().Attributes.SelectMany(run => Enumerable.Range(0, (int)run.Count).Select(i => run.Start + (ulong)i))];
            Assert.True(values.Order().SequenceEqual(runs), $"{where}: runs");
            ulong first = Point(random, limit - 1);
            ulong last = Math.Min(limit, first + 1 + (ulong)random.Next(40));
            var range = new GfnRange(new Gfn(first), new Gfn(last));
            int inside = values.Count(gfn => gfn >= first && gfn < last);
            Assert.True(vm.Kernel.Attributes.AllEqual(range, TestVm.Private) == (inside == (int)(last - first)), $"{where}: {range} all private");
            Assert.True(vm.Kernel.Attributes.AllEqual(range, 0) == (inside == 0), $"{where}: {range} all shared");
            Assert.True(vm.Kernel.Attributes.IsPrivate(new Gfn(first)) == values.Contains(first), $"{where}: gfn {first}");
        }
    }

    private static void Forget(TestVm vm, uint slot, HashSet<ulong> slotted)
    {
        foreach (SimKvm.Kvm.Memslot each in vm.Kernel.Memslots.All.Where(each => each.Id == slot))
        {
            for (ulong gfn = each.BaseGfn; gfn < each.BaseGfn + each.Npages; gfn++)
            {
                slotted.Remove(gfn);
            }
        }
    }

    private static ulong Point(Random random, ulong limit) =>
        Math.Min(limit - 1, (ulong)(random.Next(3) == 0 ? 505 + random.Next(14) : random.Next((int)limit)));
}
