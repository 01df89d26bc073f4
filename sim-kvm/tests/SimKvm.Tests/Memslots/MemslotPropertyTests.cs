using SimKvm.Abi;
using SimKvm.Auditing;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// Random slots, bindings and closed files against a slow model that keeps a dictionary entry for each page: errno, slots, bindings and the number of
/// invalidations agree after each step.
/// </summary>
public sealed class MemslotPropertyTests : KvmTest
{
    private const int FilePages = 12;

    public static TheoryData<string, int> ProfilesAndSeeds
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (int seed in new[] { 1, 2, 3, 5, 8, 13, 21, 34 })
            {
                data.Add(K616, seed);
                data.Add(K72, seed);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(ProfilesAndSeeds))]
    public void RandomCalls_MatchTheModel(string profile, int seed)
    {
        TestHost host = Boot(profile);
        var random = new Random(seed);
        // A default VM has two address spaces; the other kind has guest_memfd in every profile.
        TestVm vm = host.Vmm.CreateVm(seed % 2 == 0 && profile == K72 ? VmType.KVM_X86_DEFAULT_VM : VmType.KVM_X86_SW_PROTECTED_VM);
        var model = new Model(profile, vm.Kernel.AddressSpaceCount);
        var files = new List<int>();
        for (int step = 0; step < 600; step++)
        {
            string where = $"seed {seed}, profile {profile}, step {step}";
            int kind = random.Next(20);
            if (kind == 0 && files.Count < 4)
            {
                int fd = vm.CreateGmem(FilePages);
                files.Add(fd);
                model.Files.Add(fd, []);
            }
            else if (kind == 1 && files.Count > 0)
            {
                int fd = files[random.Next(files.Count)];
                files.Remove(fd);
                model.CloseFile(fd);
                Assert.True(host.Vmm.Close(fd).Succeeded, where);
            }
            else
            {
                var slot = new ModelSlot(
                    random.Next(8) == 0 ? random.Next(3) : 0,
                    random.Next(5),
                    (ulong)random.Next(24),
                    (ulong)(random.Next(3) == 0 ? 0 : random.Next(1, 7)),
                    (ulong)random.Next(3) * 0x100000,
                    random.Next(6) switch { 0 => KvmMem.LOG_DIRTY_PAGES, 1 => KvmMem.READONLY, 2 or 3 or 4 => KvmMem.GUEST_MEMFD, _ => 0 },
                    files.Count > 0 && random.Next(8) != 0 ? files[random.Next(files.Count)] : 3,
                    (ulong)random.Next(FilePages));
                Errno expected = model.Set(slot);
                CallReport report = vm.TrySetRegion2(
                    (uint)((slot.AsId << 16) | slot.Id), slot.Flags, slot.Gfn << 12, slot.Npages, slot.Uaddr, slot.File, slot.Pgoff << 12);
                Assert.True(expected == report.Errno, $"{where}: {slot}: model {expected}, kernel {report.Errno} {string.Join("; ", report.Causes)}");
            }
            vm.Kernel.Memslots.CheckInvariants();
            Compare(vm, model, where);
        }
    }

    private static void Compare(TestVm vm, Model model, string where)
    {
        string[] expected = [.. model.Slots.Values.OrderBy(slot => slot.AsId).ThenBy(slot => slot.Gfn).Select(slot =>
            $"{slot.AsId} {slot.Id} {slot.Gfn} {slot.Npages} {slot.Uaddr} {slot.Flags} {model.IsBound(slot)}")];
        string[] actual = [.. vm.Describe().Slots.Select((SlotDescription slot) =>
            $"{slot.AsId} {slot.Id} {slot.BaseGfn} {slot.Npages} {slot.UserspaceAddr} {slot.Flags} {slot.GmemBound}")];
        Assert.True(expected.SequenceEqual(actual), $"{where}:\nmodel\n{string.Join('\n', expected)}\nkernel\n{string.Join('\n', actual)}");

        foreach ((int fd, Dictionary<ulong, (int, int)> bound) in model.Files)
        {
            for (ulong index = 0; index < FilePages; index++)
            {
                Memslot? slot = vm.Vmm.Gmem(fd).BoundSlot(index);
                (int, int)? actualSlot = slot is null ? null : (slot.AsId, slot.Id);
                (int, int)? expectedSlot = bound.TryGetValue(index, out (int, int) key) ? key : null;
                Assert.True(actualSlot == expectedSlot, $"{where}: page {index} of fd {fd} is bound to {actualSlot}, in the model to {expectedSlot}");
            }
        }
        // Which slot a gfn belongs to.
        for (ulong gfn = 0; gfn < 32; gfn++)
        {
            int? expectedId = model.Pages.TryGetValue((0, gfn), out int id) ? id : null;
            Assert.True(vm.Kernel.Memslots.Find(new SimMachine.Addressing.Gfn(gfn))?.Id == expectedId, $"{where}: slot of gfn {gfn}");
        }
        Assert.Equal(0, vm.Kernel.Mmu.InProgress);
    }

    private sealed record ModelSlot(int AsId, int Id, ulong Gfn, ulong Npages, ulong Uaddr, uint Flags, int File, ulong Pgoff);

    /// <summary>Section 5.1 of the specification, page by page, for arguments that are aligned and small.</summary>
    private sealed class Model(string profile, int addressSpaces)
    {
        public SortedDictionary<(int AsId, int Id), ModelSlot> Slots { get; } = [];

        public Dictionary<(int AsId, ulong Gfn), int> Pages { get; } = [];

        // File, then page of it, to the slot that it is bound to.
        public SortedDictionary<int, Dictionary<ulong, (int, int)>> Files { get; } = [];

        public bool IsBound(ModelSlot slot) =>
            Files.TryGetValue(slot.File, out Dictionary<ulong, (int, int)>? bound) && bound.GetValueOrDefault(slot.Pgoff, (-1, -1)) == (slot.AsId, slot.Id);

        public void CloseFile(int fd)
        {
            // The number may come back for another file: what was bound to this one has no file any more.
            foreach (ModelSlot slot in Slots.Values.Where(slot => slot.File == fd).ToArray())
            {
                Slots[(slot.AsId, slot.Id)] = slot with { File = -1 };
            }
            Files.Remove(fd);
        }

        public Errno Set(ModelSlot slot)
        {
            bool gmem = (slot.Flags & KvmMem.GUEST_MEMFD) != 0;
            if (slot.AsId >= addressSpaces)
            {
                return Errno.EINVAL;
            }
            Slots.TryGetValue((slot.AsId, slot.Id), out ModelSlot? old);
            if (slot.Npages == 0)
            {
                if (old is null)
                {
                    return Errno.EINVAL;
                }
                Remove(old);
                return Errno.OK;
            }
            if (old is not null)
            {
                bool oldGmem = (old.Flags & KvmMem.GUEST_MEMFD) != 0;
                if (gmem || (oldGmem && profile == K72) || old.Uaddr != slot.Uaddr || old.Npages != slot.Npages
                    || ((old.Flags ^ slot.Flags) & KvmMem.READONLY) != 0)
                {
                    return Errno.EINVAL;
                }
            }
            for (ulong gfn = slot.Gfn; gfn < slot.Gfn + slot.Npages; gfn++)
            {
                if ((old is null || old.Gfn != slot.Gfn) && Pages.TryGetValue((slot.AsId, gfn), out int id) && id != slot.Id)
                {
                    return Errno.EEXIST;
                }
            }
            if (gmem)
            {
                if (!Files.TryGetValue(slot.File, out Dictionary<ulong, (int, int)>? bound) || slot.Pgoff + slot.Npages > FilePages)
                {
                    // Descriptor 3 is /dev/kvm.
                    return Errno.EINVAL;
                }
                for (ulong i = 0; i < slot.Npages; i++)
                {
                    if (bound.ContainsKey(slot.Pgoff + i))
                    {
                        return profile == K72 ? Errno.EEXIST : Errno.EINVAL;
                    }
                }
                for (ulong i = 0; i < slot.Npages; i++)
                {
                    bound[slot.Pgoff + i] = (slot.AsId, slot.Id);
                }
            }
            if (old is not null)
            {
                Remove(old);
            }
            Slots[(slot.AsId, slot.Id)] = gmem ? slot : slot with { File = -1 };
            for (ulong i = 0; i < slot.Npages; i++)
            {
                Pages[(slot.AsId, slot.Gfn + i)] = slot.Id;
            }
            return Errno.OK;
        }

        private void Remove(ModelSlot slot)
        {
            for (ulong i = 0; i < slot.Npages; i++)
            {
                Pages.Remove((slot.AsId, slot.Gfn + i));
                if (Files.TryGetValue(slot.File, out Dictionary<ulong, (int, int)>? bound))
                {
                    bound.Remove(slot.Pgoff + i);
                }
            }
            Slots.Remove((slot.AsId, slot.Id));
        }
    }
}
