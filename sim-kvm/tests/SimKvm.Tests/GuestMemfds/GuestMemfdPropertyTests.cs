using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// Random allocations, holes, stores through two mappings and loads against a dictionary of pages: which pages are there, what is in them, how many frames the
/// machine has out, and when seq advances.
/// </summary>
public sealed class GuestMemfdPropertyTests : KvmTest
{
    private const int Pages = 40;

    public static TheoryData<int> Seeds => [6, 9, 15, 25, 42, 77];

    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomCalls_MatchTheModel(int seed)
    {
        TestHost host = Boot();
        var random = new Random(seed);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        int gmem = vm.CreateGmem(Pages, 3);
        vm.AddGmemSlot(0, 0x100000, 10, gmem, 5 * Vmm.Page);
        ulong[] mappings =
        [
            (ulong)host.Vmm.Process.Mmap(0, (Pages + 4) << 12, 3, Vmm.MapShared, gmem, 0).Value,
            (ulong)host.Vmm.Process.Mmap(0, (Pages + 4) << 12, 3, Vmm.MapShared, gmem, 0).Value,
        ];
        GmemInode inode = host.Vmm.Gmem(gmem).Inode;
        long frames = host.Machine.AllocatedPages;
        // Null: allocated and never touched.
        var model = new SortedDictionary<ulong, byte?>();
        ulong seq = 0;

        for (int step = 0; step < 500; step++)
        {
            string where = $"seed {seed}, step {step}";
            ulong start = (ulong)random.Next(Pages + 4);
            ulong count = (ulong)random.Next(1, 8);
            ulong address = mappings[random.Next(2)] + (start << 12);
            bool inside = start + count <= Pages;
            switch (random.Next(4))
            {
                case 0:
                    CallReport allocated = host.Vmm.Process.Fallocate(gmem, 1, (long)(start << 12), (long)(count << 12));
                    Assert.True(allocated.Errno == (inside ? Errno.OK : Errno.EINVAL), where);
                    for (ulong page = start; inside && page < start + count; page++)
                    {
                        model.TryAdd(page, null);
                    }
                    break;
                case 1:
                    Assert.True(host.Vmm.Process.Fallocate(gmem, 3, (long)(start << 12), (long)(count << 12)).Succeeded, where);
                    for (ulong page = start; page < start + count; page++)
                    {
                        model.Remove(page);
                    }
                    seq += start < 15 && start + count > 5 ? 1UL : 0;
                    break;
                case 2:
                    byte value = (byte)random.Next(1, 256);
                    CallReport stored = host.Vmm.Process.Write(address, Vmm.Content(value));
                    Assert.True(stored.Errno == (start < Pages ? Errno.OK : Errno.EFAULT), where);
                    if (start < Pages)
                    {
                        model[start] = value;
                    }
                    break;
                default:
                    byte[] content = new byte[4096];
                    CallReport loaded = host.Vmm.Process.Read(address, content);
                    Assert.True(loaded.Errno == (start < Pages ? Errno.OK : Errno.EFAULT), where);
                    if (start < Pages)
                    {
                        // A load makes the page, too.
                        byte expected = model.GetValueOrDefault(start) ?? 0;
                        model[start] = expected;
                        Assert.True(content.AsSpan().IndexOfAnyExcept(expected) < 0, $"{where}: content of page {start}");
                    }
                    break;
            }
            for (ulong index = 0; index < Pages; index++)
            {
                bool present = inode.TryGet(index, out Folio folio);
                Assert.True(present == model.TryGetValue(index, out byte? content), $"{where}: page {index}");
                Assert.True(folio.Uptodate == (present && content is not null), $"{where}: page {index} uptodate");
            }
            Assert.True(inode.CountPages() == (ulong)model.Count, where);
            Assert.True(host.Machine.AllocatedPages == frames + model.Count, where);
            Assert.True(vm.Seq == seq, $"{where}: seq {vm.Seq}, model {seq}");
        }
    }
}
