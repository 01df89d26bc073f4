using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Tests.Conformance;

// kvm_gmem_populate as a vendor calls it, with a callback that reads its source as the generation leaves it to.
internal static partial class BehaviourProbes
{
    private static string PopulateGeneration(TestHost host)
    {
        bool zeroPages = PopulateOnce(host, npages: 0).Succeeded;
        bool again = PopulateAgain(host) == "vendor decides";
        bool writesBack = new PopulateProbe(host).Populate(1, host.Vmm.Map(1, Vmm.ProtRead), mayWriteBack: true).Errno == Errno.EFAULT;
        string afterError = PopulateFailure(host);
        return (zeroPages, again, writesBack, afterError) switch
        {
            (true, false, false, "hole punched") => "10.1",
            (true, false, false, "kept") => "10.2",
            (false, false, false, "kept") => "10.3",
            (false, true, false, "kept") => "10.4",
            (false, true, true, "kept") => "10.4 + write-back",
            (false, true, true, "kept, uptodate") => "10.5",
            _ => $"{zeroPages} {again} {writesBack} {afterError}",
        };
    }

    private static SyscallResult PopulateOnce(TestHost host, long npages = 1, ulong source = 0) => new PopulateProbe(host).Populate(npages, source);

    private static string PopulateAfterFallocate(TestHost host)
    {
        var probe = new PopulateProbe(host);
        Vmm.Must(host.Vmm.Process.Fallocate(probe.Gmem, 1, 0, 4096));
        return Say(probe.Populate(1));
    }

    private static string PopulateAgain(TestHost host)
    {
        var probe = new PopulateProbe(host);
        probe.Populate(1);
        return VendorOr(probe.Populate(1));
    }

    private static string PopulateAfterFault(TestHost host)
    {
        var probe = new PopulateProbe(host);
        probe.Guest.Read(Gpa);
        return VendorOr(probe.Populate(1));
    }

    private static string PopulateShared(TestHost host)
    {
        var probe = new PopulateProbe(host);
        if (host.Profile.InPlaceConversion == Profiles.InPlaceConversion.None)
        {
            probe.Vm.SetShared(Gpa, 1);
        }
        else
        {
            Vmm.Must(TryConvert(host.Vmm, probe.Gmem, 0, 1, 0));
        }
        SyscallResult result = probe.Populate(1);
        return result.Succeeded ? "no" : Say(result);
    }

    private static string PopulateUnderSignal(TestHost host)
    {
        var probe = new PopulateProbe(host);
        probe.Task.SignalPending = true;
        SyscallResult result = probe.Populate(1);
        return result.Succeeded ? "ignored" : Say(result);
    }

    private static string PopulateSourceAccess(TestHost host)
    {
        var probe = new PopulateProbe(host);
        ulong source = host.Vmm.MapFilled(1);
        string[] locks = [.. TestGuest.StepsOf(host, () => probe.Populate(1, source)).Where(step => step is "lock mmap_lock" or "unlock mmap_lock" or "lock invalidate_lock")];
        return locks switch
        {
            ["lock mmap_lock", "unlock mmap_lock", "lock invalidate_lock"] => "before invalidate_lock",
            ["lock invalidate_lock", "lock mmap_lock", "unlock mmap_lock"] => "inside invalidate_lock",
            _ => string.Join(", ", locks),
        };
    }

    private static string PopulateFailure(TestHost host)
    {
        var probe = new PopulateProbe(host) { Fails = true };
        probe.Populate(1);
        return probe.Page switch
        {
            null => "hole punched",
            { Uptodate: true } => "kept, uptodate",
            _ => "kept",
        };
    }

    private static string PopulateLockSpan(TestHost host)
    {
        var probe = new PopulateProbe(host);
        return TestGuest.StepsOf(host, () => probe.Populate(3)).Count(step => step == "lock invalidate_lock") switch
        {
            1 => "whole loop",
            3 => "per page",
            var other => $"{other} times",
        };
    }

    private static string VendorOr(SyscallResult result) => result.Succeeded ? "vendor decides" : Say(result);

    /// <summary>Four private pages, and a launch ioctl's thread that populates them.</summary>
    private sealed class PopulateProbe
    {
        private static readonly Rule CallbackRefused = new("test.populate-callback", "the probe's callback refuses", "test", "nothing");

        private bool _uptodate;

        public PopulateProbe(TestHost host)
        {
            Guest = PrivateGuest(host, 4, out int gmem);
            (Gmem, Task) = (gmem, TestHost.NewThread(host.Vmm));
        }

        public TestGuest Guest { get; }

        public TestVm Vm => Guest.Vm;

        public int Gmem { get; }

        public KTask Task { get; }

        public bool Fails { get; init; }

        public Folio? Page => Vm.Vmm.Gmem(Gmem).Inode.TryGet(0, out Folio folio) ? folio : null;

        /// <summary>Whether the page says that it holds zeros when the vendor gets it.</summary>
        public bool UptodateInCallback()
        {
            Populate(1);
            return _uptodate;
        }

        public SyscallResult Populate(long npages, ulong source = 0, bool mayWriteBack = false)
        {
            using var slots = Vm.Kernel.SlotsLock.Enter(Task);
            return GuestMemfd.Populate(Task, Vm.Kernel, new Gfn(Gpa >> 12), source, npages, mayWriteBack, Callback);
        }

        private Errno Callback(KTask current, Gfn gfn, Pfn pfn, in PopulateSource source)
        {
            _uptodate = Page!.Value.Uptodate;
            if (source is { Exists: true, Page: null })
            {
                current.Process.Memory.TryRead(current, source.Uaddr, new byte[Vmm.Page]);
            }
            return Fails ? current.Fail(Errno.EIO, CallbackRefused) : Errno.OK;
        }
    }
}
