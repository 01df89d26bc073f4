using SimKvm.Kvm.Historical;
using SimKvm.Profiles;
using SimMachine.Addressing;

namespace SimKvm.Kvm;

// KVM_HC_MAP_GPA_RANGE where KVM itself acts on it: the selftest RFC of 2022-04-08, whose plain guests say with it which of their accesses are private, and pKVM as seed 004
// describes it, whose guests share pages with it.
internal sealed partial class Vcpu
{
    private const ulong MarkGpaRangeEncAccess = 1 << 8;
    private const ulong MapGpaRangeEncrypted = 1 << 4;

    // priv_gfn, priv_pages: one range, the last that was marked.
    private GfnRange _markedPrivate;

    /// <summary>kvm_vcpu_is_private_gfn of the selftest RFC; in other kernels the backend says what an access is.</summary>
    public bool IsPrivateAccess(Gfn gfn, GuestAccess access) => Vm.Host.Profile.MapGpaRangeMarks
        ? _markedPrivate.Contains(gfn)
        : Vm.Backend.IsPrivateAccess(gfn, access);

    // RAX if KVM did the call itself, or null if it goes on to user space. The RFC wants the exit enabled even for its marks, and lets a mark have no pages, which
    // takes the last one back.
    private ulong? MapGpaRangeInKvm(KTask current, ulong gpa, ulong pages, ulong attributes)
    {
        ulong gfn = gpa >> PageSize.Shift;
        bool wrong = (gpa & PageSize.OffsetMask) != 0 || gfn + pages < gfn || gfn + pages > GfnRange.Limit;
        if (Vm.Host.Profile.MapGpaRangeMarks && (attributes & MarkGpaRangeEncAccess) != 0)
        {
            if ((Vm.HypercallExits & (1u << (int)HypercallMapGpaRange)) == 0)
            {
                return KvmEnosys;
            }
            if (wrong)
            {
                return KvmEinval;
            }
            _markedPrivate = GfnRange.FromPages(new Gfn(gfn), pages);
            return 0;
        }
        if (Vm.Host.Profile.PrivateState == PrivateStateDesign.GuestShares)
        {
            if (wrong || pages == 0)
            {
                return KvmEinval;
            }
            bool shares = (attributes & MapGpaRangeEncrypted) == 0;
            PrivatePages.Store(current, Vm, GfnRange.FromPages(new Gfn(gfn), pages), shares ? PrivatePages.SharedByGuest : 0);
            return 0;
        }
        return null;
    }
}
