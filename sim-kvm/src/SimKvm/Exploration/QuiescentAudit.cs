using SimKvm.Auditing;
using SimKvm.Kvm;

namespace SimKvm.Exploration;

/// <summary>
/// What must be true of any kernel when no call is under way: invalidations that began have ended, what stage 2 maps is what slot, attribute and page say now, and no page was
/// measured twice. What is not true is a finding.
/// </summary>
internal static class QuiescentAudit
{
    public static IEnumerable<(string Kind, string Text)> Of(SimHost host)
    {
        foreach (Vm vm in Vms(host))
        {
            if (vm.Mmu.InProgress != 0)
            {
                (ulong start, ulong end) = vm.Mmu.InvalidateRange;
                yield return ("unbalanced-invalidation", $"mmu_invalidate_in_progress is {vm.Mmu.InProgress} when all calls are over (gfns 0x{start:x} to 0x{end:x}): faults of the range are retried for ever");
            }
            foreach (string stale in HostAudit.StaleMappings(host, vm))
            {
                yield return ("stale-mapping", stale);
            }
            foreach (ulong gpa in vm.Backend.MeasuredTwice)
            {
                yield return ("double-population", $"the page at gpa 0x{gpa:x} was launched twice, so the measurement has it twice");
            }
        }
    }

    /// <summary>The VMs that somebody has a descriptor of, or of whose vCPUs or guest_memfds.</summary>
    public static IReadOnlyList<Vm> Vms(SimHost host) =>
        [.. host.Processes.SelectMany(process => process.Files.Open).Select(open => HostAudit.VmOf(open.File)).OfType<Vm>().Distinct()];
}
