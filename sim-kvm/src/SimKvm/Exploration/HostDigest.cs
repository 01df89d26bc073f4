using System.Globalization;
using System.Security.Cryptography;
using SimKvm.Kvm;
using SimMachine.Addressing;

namespace SimKvm.Exploration;

/// <summary>
/// What calls left behind, as text: attributes, slots, the pages of each guest_memfd with their content, and the content of user memory behind slots, and the measurement of a launch. Not in it is what only
/// tells how it came about: frame numbers, and what stage 2 happens to map.
/// </summary>
internal static class HostDigest
{
    public static IReadOnlyList<string> Of(SimHost host)
    {
        var lines = new List<string>();
        foreach (Vm vm in QuiescentAudit.Vms(host))
        {
            lines.AddRange(vm.Attributes.Runs().Select(run => string.Create(CultureInfo.InvariantCulture, $"attributes of gfns 0x{run.Start:x} to 0x{run.End:x} are {run.Value}")));
            if (!vm.Backend.Measurement.IsEmpty)
            {
                lines.Add($"the measurement is {Convert.ToHexStringLower(vm.Backend.Measurement.Span[..8])}");
            }
            foreach (Memslot slot in vm.Memslots.All)
            {
                lines.Add(string.Create(CultureInfo.InvariantCulture, $"slot {slot.Id} has gfns {slot.Range}, flags 0x{slot.Flags:x}{(slot.GmemFile is null ? "" : ", a guest_memfd")}"));
                lines.AddRange(UserPages(host, vm, slot));
            }
        }
        foreach (Userspace.Process process in host.Processes)
        {
            foreach ((int fd, Userspace.KernelFile file) in process.Files.Open)
            {
                if (file is GuestMemfd gmem)
                {
                    lines.AddRange(Pages(host, fd, gmem));
                }
            }
        }
        return lines;
    }

    private static IEnumerable<string> Pages(SimHost host, int fd, GuestMemfd file)
    {
        foreach ((ulong start, ulong end, Folio first) in file.Inode.FolioRuns(0, PageTree<ulong>.Limit))
        {
            for (ulong i = 0; i < end - start; i++)
            {
                yield return string.Create(CultureInfo.InvariantCulture, $"page {start + i} of guest_memfd {fd} {(first.Uptodate ? "" : "is not up to date, ")}has {Content(host, first.Pfn + i)}");
            }
        }
    }

    private static IEnumerable<string> UserPages(SimHost host, Vm vm, Memslot slot)
    {
        for (ulong i = 0; i < Math.Min(slot.Npages, 64); i++)
        {
            if (vm.Owner.Memory.TryPeek(slot.UserspaceAddr + (i << PageSize.Shift), out Pfn pfn) && pfn.Value != 0)
            {
                yield return string.Create(CultureInfo.InvariantCulture, $"user page {i} of slot {slot.Id} has {Content(host, pfn)}");
            }
        }
    }

    // By the frame's own key, so as the one who wrote it sees it.
    private static string Content(SimHost host, Pfn pfn)
    {
        Span<byte> page = stackalloc byte[PageSize.Bytes];
        host.Machine.ReadAsOwner(pfn, page);
        return page.ContainsAnyExcept((byte)0) ? $"content {Convert.ToHexStringLower(SHA256.HashData(page).AsSpan(0, 4))}" : "zeros";
    }
}
