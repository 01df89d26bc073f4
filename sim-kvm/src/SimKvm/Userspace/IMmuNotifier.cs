namespace SimKvm.Userspace;

/// <summary>
/// Somebody who keeps translations of user addresses of his own, such as a VM's stage 2 (struct mmu_notifier_ops). Between start and end no translation of the
/// range may be used or made; what was there before start is gone, or is something else, at end.
/// </summary>
/// <remarks>Called under mmap_lock, or from a file that takes pages away; an implementation may take spinning locks only.</remarks>
internal interface IMmuNotifier
{
    /// <summary>mmu_notifier_invalidate_range_start: pages of [start, end) are about to stop being what they are.</summary>
    void InvalidateRangeStart(KTask current, ulong start, ulong end);

    /// <summary>mmu_notifier_invalidate_range_end, with the range of the start that it belongs to.</summary>
    void InvalidateRangeEnd(KTask current, ulong start, ulong end);
}
