using SimKvm.Kvm;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine.Addressing;

namespace SimKvm.Auditing;

/// <summary>Leaves of stage 2 that are alike and whose frames follow each other.</summary>
/// <param name="GfnEnd">Exclusive.</param>
/// <param name="Pfn">Frame of the first gfn.</param>
public sealed record Stage2Run(ulong GfnStart, ulong GfnEnd, ulong Pfn, PageLevel Level, bool Writable, bool IsPrivate);

/// <summary>A guest_memfd of a VM.</summary>
/// <param name="Size">Bytes.</param>
/// <param name="Flags">GUEST_MEMFD_FLAG_*</param>
/// <param name="FileReferences">Descriptors and mappings that hold the file.</param>
/// <param name="Slots">Ids of the slots that are bound to it, in gfn order.</param>
/// <param name="Folios">Its page cache as runs.</param>
/// <param name="PrivateIndexes">In profiles with in-place conversion: runs of pages that are private, present or not.</param>
public sealed record GuestMemfdDescription(
    ulong Size, ulong Flags, int FileReferences, IReadOnlyList<VmReference> Fds, IReadOnlyList<int> Slots, IReadOnlyList<FolioRun> Folios, IReadOnlyList<PageRun<bool>> PrivateIndexes)
{
    internal static IReadOnlyList<GuestMemfdDescription> Of(Vm vm)
    {
        var files = new List<GuestMemfd>();
        IEnumerable<GuestMemfd> open = vm.Host.Processes.SelectMany(process => process.Files.Open).Select(entry => entry.File).OfType<GuestMemfd>().Where(file => file.Vm == vm);
        foreach (GuestMemfd file in open.Concat(vm.Memslots.All.Select(slot => slot.GmemFile).OfType<GuestMemfd>()))
        {
            if (!files.Contains(file))
            {
                files.Add(file);
            }
        }
        return [.. files.Select(file => Of(vm, file))];
    }

    private static GuestMemfdDescription Of(Vm vm, GuestMemfd file) => new(
        file.Inode.Size,
        file.Inode.Flags,
        file.References,
        VmReference.Of(vm.Host, other => other == file),
        [.. vm.Memslots.All.Where(slot => slot.GmemFile == file).Select(slot => slot.Id)],
        [.. file.Inode.FolioRuns(0, file.Inode.Pages).Select(run => new FolioRun(run.Start, run.End, run.First.Pfn.Value, run.First.Uptodate, run.First.Poisoned, run.First.Order))],
        vm.Host.Profile.InPlaceConversion == InPlaceConversion.None ? [] : [.. PrivateRuns(file.Inode)]);

    private static IEnumerable<PageRun<bool>> PrivateRuns(GmemInode inode)
    {
        for (ulong index = 0, end; index < inode.Pages; index = end)
        {
            end = inode.PrivateRunEnd(index, inode.Pages);
            if (inode.IsPrivate(index))
            {
                yield return new PageRun<bool>(index, end, true);
            }
        }
    }
}

/// <summary>Pages of a guest_memfd that are alike and whose frames follow each other.</summary>
/// <param name="Start">First page index.</param>
/// <param name="End">Exclusive.</param>
/// <param name="Pfn">Frame of the first.</param>
/// <param name="Order">log2 of the pages of a folio.</param>
public sealed record FolioRun(ulong Start, ulong End, ulong Pfn, bool Uptodate, bool Poisoned, int Order);

/// <summary>A descriptor that keeps a VM alive.</summary>
/// <param name="Name">The name it has in procfs.</param>
public sealed record VmReference(int Pid, int Fd, FdKind Kind, string Name)
{
    internal static IReadOnlyList<VmReference> Of(Vm vm) => Of(
        vm.Host,
        file => file switch
        {
            VmFile of => of.Vm == vm,
            VcpuFile of => of.Vcpu.Vm == vm,
            GuestMemfd of => of.Vm == vm,
            _ => false,
        });

    internal static IReadOnlyList<VmReference> Of(SimHost host, Func<KernelFile, bool> match) =>
    [
        .. from process in host.Processes
           from entry in process.Files.Open
           where match(entry.File)
           select new VmReference(process.Pid, entry.Fd, entry.File.Kind, entry.File.Name),
    ];
}
