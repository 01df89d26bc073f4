using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Addressing;

namespace SimKvm.Tests.Conformance;

// How to find out, on a freshly booted host, what its kernel does. The probes of populate are next door.
internal static partial class BehaviourProbes
{
    private const VmType T = VmType.KVM_X86_SW_PROTECTED_VM;
    private const VmType Default = VmType.KVM_X86_DEFAULT_VM;
    private const ulong Gpa = 0x20_0000;
    private const ulong TwoMib = 2UL << 20;
    private const ulong Mapped = kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP;
    private const ulong Shared = kvm_create_guest_memfd.GUEST_MEMFD_FLAG_INIT_SHARED;

    public static IReadOnlyDictionary<string, Func<TestHost, string>> All { get; } = new Dictionary<string, Func<TestHost, string>>
    {
        ["VM types on an AMD machine"] = host => Types(type => host.Vmm.TryCreateVm(type).Succeeded),
        ["VM types of the kernel"] = host => Types(type => (host.Profile.VmTypes & (1u << (int)type)) != 0),
        ["gmem create flags, VM without private memory"] = host => CreateFlags(host, Default),
        ["gmem create flags, VM with private memory"] = host => CreateFlags(host, T),
        ["CAP_GUEST_MEMFD on a VM without private memory"] = host => host.Vmm.CreateVm(Default).CheckExtension(KvmCap.GUEST_MEMFD).ToText(),
        ["KVM_MEM_GUEST_MEMFD on DEFAULT VM"] = GmemSlotOnDefaultVm,
        ["mmap of gmem"] = Mmap,
        ["bind overlap"] = BindOverlap,
        ["bind offset signed wrap accepted"] = BindSignedWrap,
        ["toggling GUEST_MEMFD on a slot"] = Toggle,
        ["zeroing moment"] = ZeroingMoment,
        ["prepare hook"] = PrepareHook,
        ["free hook"] = FreeHook,
        ["populate"] = PopulateGeneration,
        ["PRE_FAULT"] = PreFault,
        ["memory-fault exit"] = MemoryFaultExit,
        ["read-only slots for protected-state VMs"] = host => Say(host.Vmm.CreateVm(VmType.KVM_X86_SEV_ES_VM).TrySetRegion2(0, KvmMem.READONLY, Gpa, 1)),
        ["hypercall.ret preset 0"] = HypercallRet,
        ["dying-file unbind fix"] = DyingFile,
        ["per-page conversion"] = host => YesNo(TryConvert(host.Vmm, host.Vmm.CreateVm(T).CreateGmem(4), 0, 1, 0).Errno != Errno.ENOTTY),
        ["memory failure unmaps"] = MemoryFailure,
        ["PRIVATE through the VM ioctl"] = host => Say(host.Vmm.CreateVm(T).TrySetAttributes(Gpa, 4096, TestVm.Private)),
        ["setting what is set already"] = SettingTwice,
        ["straddling huge pages are invalidated"] = Straddlers,
        ["CAP_MEMORY_ATTRIBUTES on a VM with private memory"] = host => host.Vmm.CreateVm(T).CheckExtension(KvmCap.MEMORY_ATTRIBUTES).ToText(),
        ["CAP 236 (PRE_FAULT or MAP_MEMORY)"] = host => host.Vmm.CheckExtension(236).ToText(),
        ["CAP_GUEST_MEMFD_FLAGS without and with private memory"] = host => OnBoth(host, KvmCap.GUEST_MEMFD_FLAGS),
        ["CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES without and with private memory"] = host => OnBoth(host, KvmCap.GUEST_MEMFD_MEMORY_ATTRIBUTES),
        ["npages 0"] = host => PopulateOnce(host, npages: 0) is { Errno: Errno.OK, Value: 0 } ? "0" : Say(PopulateOnce(host, npages: 0)),
        ["page already allocated, untouched"] = PopulateAfterFallocate,
        ["page already populated"] = PopulateAgain,
        ["page already faulted"] = PopulateAfterFault,
        ["attribute check in generic code"] = PopulateShared,
        ["signal"] = PopulateUnderSignal,
        ["source that is not page aligned"] = host => Say(PopulateOnce(host, source: host.Vmm.MapFilled(2) + 8)),
        ["source access"] = PopulateSourceAccess,
        ["zeroed before callback"] = host => YesNo(new PopulateProbe(host).UptodateInCallback()),
        ["after callback error"] = PopulateFailure,
        ["lock span"] = PopulateLockSpan,
    };

    private static string Types(Func<ulong, bool> known)
    {
        ulong[] types = [.. Enumerable.Range(0, 32).Select(type => (ulong)type).Where(known)];
        return types.SequenceEqual(Enumerable.Range(0, types.Length).Select(type => (ulong)type)) ? $"0-{types.Length - 1}" : string.Join(',', types);
    }

    private static string CreateFlags(TestHost host, VmType type)
    {
        TestVm vm = host.Vmm.CreateVm(type);
        ulong known = 0;
        for (int bit = 0; bit < 64; bit++)
        {
            known |= vm.TryCreateGmem(TwoMib, 1UL << bit).Succeeded ? 1UL << bit : 0;
        }
        return known.ToString(System.Globalization.CultureInfo.InvariantCulture);
    }

    private static string GmemSlotOnDefaultVm(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(Default);
        return Say(vm.TrySetRegion2(0, KvmMem.GUEST_MEMFD, Gpa, 4, 0, vm.CreateGmem(4)));
    }

    private static string Mmap(TestHost host)
    {
        CallReport Try(TestVm vm, ulong flags) => host.Vmm.Process.Mmap(0, TwoMib, 3, Vmm.MapShared, Vmm.Must(vm.TryCreateGmem(TwoMib, flags)), 0);
        TestVm plain = host.Vmm.CreateVm(Default);
        CallReport without = Try(plain, 0);
        if (without.Errno != Errno.ENODEV || !plain.TryCreateGmem(TwoMib, Mapped | Shared).Succeeded)
        {
            return Say(without);
        }
        CallReport with = Try(plain, Mapped | Shared);
        TestVm t = host.Vmm.CreateVm(T);
        CallReport onPrivate = t.TryCreateGmem(TwoMib, Mapped | Shared);
        if (!with.Succeeded || !onPrivate.Succeeded)
        {
            return with.Succeeded ? "with flag" : Say(with);
        }
        ulong at = (ulong)host.Vmm.Process.Mmap(0, TwoMib, 3, Vmm.MapShared, (int)onPrivate.Value, 0).Value;
        TryConvert(host.Vmm, (int)onPrivate.Value, 1, 1, TestVm.Private);
        bool perPage = host.Vmm.Process.Read(at, new byte[4096]).Succeeded && !host.Vmm.Process.Read(at + 4096, new byte[1]).Succeeded;
        return perPage ? "with flag, per page" : "with flag";
    }

    private static string BindOverlap(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(8);
        vm.AddGmemSlot(1, 0, 4, gmem);
        return Say(vm.TrySetRegion2(2, KvmMem.GUEST_MEMFD, Gpa, 4, 0, gmem, 3 * Vmm.Page));
    }

    private static string BindSignedWrap(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(T);
        return YesNo(vm.TrySetRegion2(1, KvmMem.GUEST_MEMFD, 0, 1, 0, vm.CreateGmem(1), 0x7fff_ffff_ffff_f000).Succeeded);
    }

    private static string Toggle(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(T);
        vm.AddGmemSlot(1, Gpa, 4, vm.CreateGmem(4));
        CallReport report = vm.TrySetRegion2(1, 0, Gpa, 4);
        return report.Succeeded ? "not refused" : Say(report);
    }

    private static string ZeroingMoment(TestHost host)
    {
        var guest = PrivateGuest(host, 4, out int gmem);
        GmemInode inode = host.Vmm.Gmem(gmem).Inode;
        Vmm.Must(host.Vmm.Process.Fallocate(gmem, 1, 0, 4096));
        if (inode.TryGet(0, out Folio folio) && folio.Uptodate)
        {
            return "alloc";
        }
        if (new PopulateProbe(host).UptodateInCallback())
        {
            return "lookup";
        }
        guest.Read(Gpa);
        inode.TryGet(0, out folio);
        if (!folio.Uptodate)
        {
            return "never";
        }
        CallReport mappable = host.Vmm.CreateVm(Default).TryCreateGmem(4096, Mapped | Shared);
        if (!mappable.Succeeded)
        {
            return "first get_pfn";
        }
        ulong at = (ulong)host.Vmm.Process.Mmap(0, 4096, 3, Vmm.MapShared, (int)mappable.Value, 0).Value;
        host.Vmm.Load(at, 1);
        return host.Vmm.Gmem((int)mappable.Value).Inode.TryGet(0, out folio) && folio.Uptodate ? "first get_pfn / host fault" : "first get_pfn";
    }

    // Counts runs of the hook: by an allocation, by a first and by a further look-up for the guest, by one of a page that is shared.
    private static string PrepareHook(TestHost host)
    {
        var guest = PrivateGuest(host, 4, out int gmem);
        int allocated = Hooks(host, () => Vmm.Must(host.Vmm.Process.Fallocate(gmem, 1, 0, 4096)));
        int first = Hooks(host, () => guest.Read(Gpa));
        // Another slot over the same pages: the mapping is gone, the page is not.
        guest.Vm.DeleteSlot(0);
        guest.Vm.AddGmemSlot(0, Gpa, 4, gmem);
        int further = Hooks(host, () => guest.Read(Gpa));
        int? ofSharedFile = null, ofConvertedPage = null;
        TestVm plain = host.Vmm.CreateVm(Default);
        if (plain.TryCreateGmem(4096, Mapped | Shared) is { Succeeded: true } file)
        {
            plain.AddGmemSlot(0, Gpa, 1, (int)file.Value);
            var reader = new TestGuest(plain);
            ofSharedFile = Hooks(host, () => reader.Read(Gpa));
        }
        TestVm t = host.Vmm.CreateVm(T);
        if (t.TryCreateGmem(4096, Mapped | Shared) is { Succeeded: true } convertible)
        {
            t.AddGmemSlot(0, Gpa, 1, (int)convertible.Value);
            Vmm.Must(TryConvert(host.Vmm, (int)convertible.Value, 0, 1, TestVm.Private));
            var reader = new TestGuest(t);
            ofConvertedPage = Hooks(host, () => reader.Read(Gpa));
        }
        return (allocated, first, further, ofSharedFile, ofConvertedPage) switch
        {
            (0, 0, 0, _, _) => "none",
            (1, 1, 1, _, _) => "every lookup",
            (0, 1, 0, null or 1, null) => "if not uptodate",
            (0, 1, 1, 1, null) => "every get_pfn",
            (0, 1, 1, 0, null) => "every get_pfn of a private file",
            (0, 1, 1, 0, 1) => "only private indexes",
            _ => $"{allocated} {first} {further} {ofSharedFile} {ofConvertedPage}",
        };
    }

    private static int Hooks(TestHost host, Action body) => TestGuest.StepsOf(host, body).Count(step => step == "gmem prepare hook");

    private static string FreeHook(TestHost host)
    {
        int gmem = host.Vmm.CreateVm(T).CreateGmem(4);
        Vmm.Must(host.Vmm.Process.Fallocate(gmem, 1, 0, 4 * 4096));
        string[] steps = TestGuest.StepsOf(host, () => Vmm.Must(host.Vmm.Process.Fallocate(gmem, 3, 0, 2 * 4096)));
        int truncate = Array.IndexOf(steps, "gmem truncate");
        return (steps.Take(truncate).Count(step => step.StartsWith("gmem free hook", StringComparison.Ordinal)), steps.Skip(truncate).Count(step => step == "gmem free hook")) switch
        {
            (0, 0) => "none",
            (2, 0) => "in punch",
            (0, 2) => "free_folio",
            var (before, after) => $"{before} {after}",
        };
    }

    private static string PreFault(TestHost host)
    {
        host.Expect("vm-bugged");
        TestVm vm = host.Vmm.CreateVm(Default);
        vm.AddSlot(0, Gpa, 4, host.Vmm.Map(4));
        var guest = new TestGuest(vm);
        if (guest.TryPreFault(Gpa, 1).Causes.Any(cause => cause.Rule == IoctlTable.Unknown))
        {
            return "no";
        }
        string says = "yes";
        guest.At("fault install", other => vm.Kernel.Bug(other, "the test killed the VM"));
        var range = new kvm_pre_fault_memory { gpa = Gpa + 0x1000, size = 2 * 4096 };
        Vmm.Must(guest.TryPreFault(ref range));
        says += range.size == 4096 ? " + VM-dead EIO" : "";

        TestVm second = host.Vmm.CreateVm(Default);
        second.AddSlot(0, Gpa, 4, host.Vmm.Map(4));
        guest = new TestGuest(second);
        Errno whileDeleted = Errno.OK;
        guest.At("memslot stage-2 zap", other =>
        {
            range = new kvm_pre_fault_memory { gpa = Gpa, size = 4096 };
            whileDeleted = other.TryIoctl(guest.Fd, KvmIoctl.KVM_PRE_FAULT_MEMORY, ref range);
        });
        second.DeleteSlot(0);
        return says + (whileDeleted == Errno.EAGAIN ? " + EAGAIN" : "");
    }

    private static string MemoryFaultExit(TestHost host)
    {
        // A private access to a slot without a page for it.
        var guest = PrivateGuest(host, 4, out int gmem);
        guest.Vm.DeleteSlot(0);
        if (host.Profile.InPlaceConversion == Profiles.InPlaceConversion.None)
        {
            guest.Vm.AddSlot(0, Gpa, 4, host.Vmm.Map(4));
            CallReport run = guest.Run(TestGuest.Fetch(Gpa));
            return $"{guest.ExitReason}, {(run.Succeeded ? "0" : run.Errno)}";
        }
        // Where the file says what is private, one that is closed says nothing; a page that failed is private still.
        guest.Vm.AddGmemSlot(0, Gpa, 4, gmem);
        guest.At("fault attribute test", other =>
        {
            var args = new kvm_memory_attributes2 { offset = 0, size = 4096, attributes = 0 };
            other.Ioctl(gmem, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, args);
        });
        CallReport mismatch = guest.Run(TestGuest.Fetch(Gpa));
        return $"{guest.ExitReason}, {(mismatch.Succeeded ? "0" : mismatch.Errno)}";
    }

    private static string HypercallRet(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(Default);
        Vmm.Must(vm.TryEnableCap(KvmCap.EXIT_HYPERCALL, 0, 0x1000));
        var guest = new TestGuest(vm);
        guest.StoreRunU64(88, 0xdead);
        Vmm.Must(guest.Run(new GuestHypercall(12, Gpa, 1, 0, 0, true, 0)));
        return YesNo(guest.RunU64(88) == 0);
    }

    private static string DyingFile(TestHost host)
    {
        host.Expect("stale-binding");
        TestVm vm = host.Vmm.CreateVm(T);
        int gmem = vm.CreateGmem(4);
        vm.AddGmemSlot(0, Gpa, 4, gmem);
        KTask other = TestHost.NewThread(host.Vmm);
        host.Machine.Baton = new InterposingBaton("lock kvm->slots_lock", 1, _ => other.DeleteSlot(vm, 0));
        return YesNo(host.Vmm.Close(gmem).Findings.Count == 0);
    }

    private static string MemoryFailure(TestHost host)
    {
        var guest = PrivateGuest(host, 4, out int gmem);
        guest.Write(Gpa, 1);
        host.Vmm.Gmem(gmem).ErrorFolio(TestHost.NewThread(host.Vmm), 0);
        return YesNo(guest.Leaf(Gpa) is null);
    }

    private static string SettingTwice(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(T);
        vm.AddSlot(0, Gpa, 4);
        vm.SetPrivate(Gpa, 4);
        ulong seq = vm.Seq;
        vm.SetPrivate(Gpa, 4);
        return vm.Seq == seq ? "no-op" : "runs";
    }

    private static string Straddlers(TestHost host)
    {
        TestVm vm = host.Vmm.CreateVm(T);
        vm.AddSlot(0, Gpa, 512, Gpa);
        ulong step = host.Machine.Journal.Steps + 1;
        vm.SetPrivate(Gpa, 1);
        return YesNo(host.Machine.Journal.Read(step).Any(record => record.Label.Name == "mmu invalidate range add" && record.B - record.A == 512));
    }

    // Private memory as the generation makes it: by the VM's attributes, or because a file begins private.
    private static TestGuest PrivateGuest(TestHost host, ulong pages, out int gmem)
    {
        TestVm vm = host.Vmm.CreateVm(T);
        gmem = vm.CreateGmem(pages);
        vm.AddGmemSlot(0, Gpa, pages, gmem);
        vm.TrySetAttributes(Gpa, pages * Vmm.Page, TestVm.Private);
        return vm.Kernel.Attributes.IsPrivate(new Gfn(Gpa >> 12)) ? new TestGuest(vm) : throw new InvalidOperationException("nothing made the page private");
    }

    private static CallReport TryConvert(Vmm vmm, int gmem, ulong page, ulong pages, ulong attributes)
    {
        var args = new kvm_memory_attributes2 { offset = page * Vmm.Page, size = pages * Vmm.Page, attributes = attributes };
        return vmm.Ioctl(gmem, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES2, ref args);
    }

    private static string OnBoth(TestHost host, ulong cap) => $"{host.Vmm.CreateVm(Default).CheckExtension(cap)} {host.Vmm.CreateVm(T).CheckExtension(cap)}";

    private static string Say(CallReport report) => report.Succeeded ? "ok" : report.Errno.ToString();

    private static string Say(SyscallResult result) => result.Succeeded ? "ok" : result.Errno.ToString();

    private static string YesNo(bool yes) => yes ? "yes" : "no";

    private static string ToText(this long value) => value.ToString(System.Globalization.CultureInfo.InvariantCulture);
}
