using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// KVM_RUN: from user space into the guest and back (kvm_arch_vcpu_ioctl_run, vcpu_run).
internal sealed partial class Vcpu
{
    private const ulong HypercallMapGpaRange = 12;
    private const ulong KvmEnosys = unchecked((ulong)-1000L);
    private const ulong KvmEinval = unchecked((ulong)-22L);
    private const ulong KvmEperm = unchecked((ulong)-1L);

    // After so many fruitless entries for one access nothing that this call can see will ever change: with one call at a time, a fault that must be retried stays so, and
    // so does one whose mapping does not allow the access.
    public const int MaxFruitlessEntries = 64;

    private static readonly StepLabel EnterStep = new("vcpu enter");
    private static readonly StepLabel ExitStep = new("vcpu exit");

    public static readonly Rule RunArg = new("kvm.run.arg", "the argument of KVM_RUN must be 0", "kvm_vcpu_ioctl", "pass 0", "arg");

    public static readonly Rule RunRegs = new(
        "kvm.run.sync-regs", "kvm_valid_regs or kvm_dirty_regs has bits that this kernel does not synchronise, or the VM has protected state", "kvm_arch_vcpu_ioctl_run",
        "clear them in the run page", "kvm_valid_regs", "kvm_dirty_regs");

    public static readonly Rule ImmediateExit = new(
        "kvm.run.immediate-exit", "immediate_exit is set in the run page", "kvm_arch_vcpu_ioctl_run", "clear it, then run the vCPU again");

    public static readonly Rule RunInterrupted = new(
        "kvm.run.signal", "a signal is pending for the thread that runs the vCPU", "vcpu_run", "handle the signal and run the vCPU again");

    public static readonly Rule Livelock = new(
        "kvm.run.livelock", "the guest's access faults for ever: no fault leads to a mapping that allows it", "kvm_mmu_page_fault",
        "either an invalidation was begun and never ended (see the findings; create the VM anew), or the guest stores to a read-only guest_memfd slot of RFC v11", "gpa",
        "in_progress#");

    // KVM_SYNC_X86_VALID_FIELDS
    private const ulong SyncFields = 7;

    // What the next KVM_RUN does first: user space's answer is taken in.
    private RunCompletion? _completion;

    /// <summary>An exit waits for user space's answer.</summary>
    public bool AwaitsUserSpace => _completion is not null;

    /// <summary>The next KVM_RUN starts with this (complete_userspace_io).</summary>
    public void CompleteWith(RunCompletion completion) => _completion = completion;

    /// <summary>Replaces what the vCPU executes. An answer that the old program waited for is dropped.</summary>
    public void LoadProgram(IEnumerable<GuestStep> program)
    {
        _completion = null;
        Guest.Load(program);
    }

    /// <summary>KVM_RUN.</summary>
    public SyscallResult RunGuest(KTask current, UserArg arg)
    {
        if (arg.Value != 0)
        {
            return current.Fail(Errno.EINVAL, RunArg, arg.Value);
        }
        ulong allowed = Vm.HasProtectedState ? 0 : SyncFields;
        if (((Run.ValidRegs | Run.DirtyRegs) & ~allowed) != 0)
        {
            return current.Fail(Errno.EINVAL, RunRegs, Run.ValidRegs, Run.DirtyRegs);
        }
        if (_completion is { } completion)
        {
            _completion = null;
            ExitResult completed = completion(current);
            if (!completed.Resumes)
            {
                return completed.Errno;
            }
        }
        if (Run.ImmediateExit)
        {
            return current.Fail(Errno.EINTR, ImmediateExit);
        }
        Errno errno = Vm.Backend.VcpuPreRun(current, this);
        if (errno != Errno.OK)
        {
            return errno;
        }
        Run.Exit(KvmExit.KVM_EXIT_UNKNOWN);
        errno = RunLoop(current);
        current.Step(ExitStep, Run.ExitReason, (ulong)errno);
        bool reportsAsSuccess = errno == Errno.EFAULT && !Vm.Host.Profile.MemoryFaultFails && Run.ExitReason == Vm.Host.Profile.MemoryFaultExit;
        return reportsAsSuccess ? Errno.OK : errno;
    }

    // vcpu_run: in and out of the guest until an exit is for user space.
    private Errno RunLoop(KTask current)
    {
        int fruitless = 0;
        while (true)
        {
            current.Machine.Reading(Vm);
            if (Vm.Dead)
            {
                return current.Fail(Errno.EIO, Vm.IsDead);
            }
            if (current.SignalPending)
            {
                Run.Exit(KvmExit.KVM_EXIT_INTR);
                return current.Fail(Errno.EINTR, RunInterrupted);
            }
            current.Step(EnterStep, (ulong)Guest.Pc);
            current.Machine.Reading(Vm.Backend);
            current.Machine.Reading(this);
            if (Vm.Backend.EntryFailure(this) is { } reason)
            {
                Run.FailEntry(reason);
                return Errno.OK;
            }
            if (!Vm.Backend.EnterGuest(current, this))
            {
                return Errno.OK;
            }
            Errno errno = Execute(current, Guest.Current(current), ref fruitless, out bool toUserSpace);
            Vm.Backend.ExitGuest(this);
            if (errno != Errno.OK || toUserSpace)
            {
                return errno;
            }
        }
    }

    private Errno Execute(KTask current, GuestStep step, ref int fruitless, out bool toUserSpace)
    {
        toUserSpace = true;
        switch (step)
        {
            case GuestMemoryStep memory:
                return ExecuteMemory(current, memory, ref fruitless, out toUserSpace);
            case GuestPvalidate pvalidate:
                toUserSpace = false;
                return ExecuteRmpInstruction(current, pvalidate, pvalidate.Gpa, ref fruitless);
            case GuestRmpadjust rmpadjust:
                toUserSpace = false;
                return ExecuteRmpInstruction(current, rmpadjust, rmpadjust.Gpa, ref fruitless);
            case GuestHypercall hypercall:
                Errno errno = Vm.Backend.GuestCall(current, this, hypercall, out ulong? answer);
                if (errno != Errno.OK || answer is not null)
                {
                    toUserSpace = false;
                    if (answer is { } returned)
                    {
                        Guest.Retire(rax: returned);
                    }
                    return errno;
                }
                ExitResult called = EmulateHypercall(current, hypercall, rax => Guest.Retire(rax: rax));
                toUserSpace = called.ToUserSpace;
                return called.Errno;
            case GuestVmgexit vmgexit:
                ExitResult result = Vm.Backend.Vmgexit(current, this, vmgexit.GhcbMsr);
                toUserSpace = result.ToUserSpace;
                return result.Errno;
            case GuestTdcall when !Vm.Backend.AccessesAreMarked || Vm.Type != VmType.KVM_X86_TDX_VM:
                toUserSpace = false;
                Guest.Retire(exception: new GuestException("#UD", 0, 0));
                return Errno.OK;
            case GuestTdcall tdcall:
                return ExecuteTdcall(current, tdcall, ref fruitless, out toUserSpace);
            case GuestOut output:
                Run.Io(isOut: true, output.Data.Length, output.Port, output.Data.Span);
                CompleteWith(_ =>
                {
                    Guest.Retire();
                    return ExitResult.Resume;
                });
                return Errno.OK;
            case GuestIn input:
                Run.Io(isOut: false, input.Size, input.Port, []);
                CompleteWith(_ =>
                {
                    byte[] data = new byte[input.Size];
                    Run.ReadPio(data);
                    Guest.Retire(data);
                    return ExitResult.Resume;
                });
                return Errno.OK;
            case GuestHalt:
                Guest.Retire();
                Run.Exit(KvmExit.KVM_EXIT_HLT);
                return Errno.OK;
            case GuestShutdown:
                Guest.Retire();
                Run.Exit(KvmExit.KVM_EXIT_SHUTDOWN);
                return Errno.OK;
            default:
                throw new InvalidOperationException($"a vCPU cannot execute {step}");
        }
    }

    private Errno ExecuteMemory(KTask current, GuestMemoryStep step, ref int fruitless, out bool toUserSpace)
    {
        toUserSpace = false;
        if (Guest.IsDone(step))
        {
            Guest.Retire();
            return Errno.OK;
        }
        (ulong address, int length) = Guest.NextPart(step);
        (ulong gpa, GuestAccess access) = Vm.Backend.ResolveAddress(address, step.Access);
        var gfn = new Gfn(gpa >> PageSize.Shift);
        bool write = step is GuestWrite or GuestFill;
        if (Vm.Mmu.TryTranslate(gfn, Guest.IsPrivate(access, gfn), write, out Stage2Entry entry))
        {
            switch (Vm.Backend.CheckGuestAccess(this, gpa, entry, access, write))
            {
                case GuestAccessOutcome.Allowed:
                    fruitless = 0;
                    Access(step, access, entry, (int)(gpa & PageSize.OffsetMask), length, write);
                    return Errno.OK;
                case GuestAccessOutcome.PageNotValidated:
                    Guest.Retire(exception: PageNotValidated(gpa));
                    return Errno.OK;
                case GuestAccessOutcome.VirtualizationException:
                    Guest.Retire(exception: VirtualizationException(gpa));
                    return Errno.OK;
            }
        }
        Errno errno = NestedPageFault(current, gpa, access, write, ref fruitless, out bool emulate);
        if (errno == Errno.OK && emulate && !Vm.Backend.EmulatesInstructions)
        {
            Vm.Backend.RaiseVirtualizationException(this, gpa);
            Guest.Retire(exception: VirtualizationException(address));
            return Errno.OK;
        }
        if (errno == Errno.OK && emulate)
        {
            Mmio(step, gpa, Math.Min(length, 8), write);
            toUserSpace = true;
        }
        return errno;
    }

    // PVALIDATE and RMPADJUST: as an access, they need the nested translation first.
    private Errno ExecuteRmpInstruction(KTask current, GuestStep step, ulong gpa, ref int fruitless)
    {
        var gfn = new Gfn(gpa >> PageSize.Shift);
        if (Vm.Mmu.TryTranslate(gfn, Guest.IsPrivate(GuestAccess.Private, gfn), write: false, out Stage2Entry entry))
        {
            switch (Vm.Backend.RmpInstruction(current, this, step, entry, out ulong rax, out bool carry))
            {
                case GuestAccessOutcome.Allowed:
                    fruitless = 0;
                    Guest.Retire(rax: rax, carry: carry);
                    return Errno.OK;
                case GuestAccessOutcome.PageNotValidated:
                    Guest.Retire(exception: PageNotValidated(gpa));
                    return Errno.OK;
            }
        }
        Errno errno = NestedPageFault(current, gpa, GuestAccess.Private, write: false, ref fruitless, out bool emulate);
        if (errno == Errno.OK && emulate)
        {
            // Private accesses are not emulated in any generation that has SNP; the shared alias has no RMP entry to work on.
            Guest.Retire(exception: new GuestException("#GP", 0, gpa));
        }
        return errno;
    }

    private static GuestException PageNotValidated(ulong gpa) => new("#VC", 0x404, gpa);

    // The exit to KVM for an access that nested paging or the RMP does not allow.
    private Errno NestedPageFault(KTask current, ulong gpa, GuestAccess access, bool write, ref int fruitless, out bool emulate, bool isAccept = false)
    {
        Vm.Backend.ExitGuest(this);
        var gfn = new Gfn(gpa >> PageSize.Shift);
        bool isPrivate = Guest.IsPrivate(access, gfn);
        var fault = new PageFault { Gfn = gfn, Write = write, IsPrivate = isPrivate, IsAccept = isAccept };
        Errno errno = Vm.Backend.EptViolation(current, this, ref fault);
        if (errno != Errno.OK)
        {
            emulate = false;
            return errno;
        }
        errno = Vm.Mmu.PageFault(current, this, ref fault, out RetPf result);
        emulate = result == RetPf.Emulate;
        if (errno != Errno.OK || emulate)
        {
            return errno;
        }
        if (result == RetPf.Spurious && Vm.Mmu.TryTranslate(gfn, isPrivate, write, out Stage2Entry entry))
        {
            Vm.Backend.HandleRmpFault(current, gfn, entry);
        }
        if (++fruitless >= MaxFruitlessEntries)
        {
            if (Vm.Mmu.TryTranslate(gfn, isPrivate, write, out Stage2Entry stuck))
            {
                Vm.Backend.StuckAccess(current, gfn, stuck);
            }
            current.Machine.Findings.Report(
                current, "guest-livelock", $"the guest's access to gpa 0x{gpa:x} faults for ever", [], [$"mmu_invalidate_in_progress is {Vm.Mmu.InProgress}"]);
            Run.Exit(KvmExit.KVM_EXIT_INTR);
            return current.Fail(Errno.EINTR, Livelock, gpa, (ulong)Vm.Mmu.InProgress);
        }
        return Errno.OK;
    }

    private void Access(GuestMemoryStep step, GuestAccess access, in Stage2Entry entry, int offset, int length, bool write)
    {
        uint key = Vm.Backend.GuestKey(access);
        Span<byte> part = stackalloc byte[PageSize.Bytes];
        part = part[..length];
        if (write)
        {
            Guest.Outgoing(step, part);
            Vm.Host.Machine.GuestWrite(key, entry.Pfn, offset, part);
        }
        else
        {
            Vm.Host.Machine.GuestRead(key, entry.Pfn, offset, part);
        }
        Guest.Advance(step, part);
    }

    // An access to a gpa without memory: user space gets up to eight bytes at a time.
    private void Mmio(GuestMemoryStep step, ulong gpa, int length, bool write)
    {
        Span<byte> data = stackalloc byte[8];
        data = data[..length];
        if (write)
        {
            Guest.Outgoing(step, data);
        }
        Run.Mmio(gpa, write ? data : [], length, write);
        CompleteWith(_ =>
        {
            Span<byte> answer = stackalloc byte[length];
            if (!write)
            {
                Run.ReadMmio(answer);
            }
            Guest.Advance(step, answer);
            return ExitResult.Resume;
        });
    }

    /// <summary>____kvm_emulate_hypercall. KVM changes nothing itself: user space is asked to.</summary>
    /// <param name="answered">Told the guest's RAX, now or after user space's answer.</param>
    public ExitResult EmulateHypercall(KTask current, GuestHypercall call, Action<ulong> answered)
    {
        ulong mask = call.LongMode ? ulong.MaxValue : uint.MaxValue;
        ulong nr = call.Nr & mask, gpa = call.A0 & mask, pages = call.A1 & mask, attributes = call.A2 & mask;
        ulong? answer = null;
        if (call.Cpl != 0)
        {
            answer = KvmEperm;
        }
        else if (nr == HypercallMapGpaRange && MapGpaRangeInKvm(current, gpa, pages, attributes) is { } done)
        {
            answer = done;
        }
        else if (nr != HypercallMapGpaRange || (Vm.HypercallExits & (1u << (int)HypercallMapGpaRange)) == 0)
        {
            answer = KvmEnosys;
        }
        else if ((gpa & PageSize.OffsetMask) != 0 || pages == 0 || (gpa >> PageSize.Shift) + pages <= gpa >> PageSize.Shift)
        {
            answer = KvmEinval;
        }
        if (answer is { } rax)
        {
            answered(rax & mask);
            return ExitResult.Resume;
        }
        Run.Hypercall(nr, [gpa, pages, attributes], call.LongMode, Vm.Host.Profile.HypercallRetPreset);
        CompleteWith(_ =>
        {
            answered(Run.HypercallRet & mask);
            return ExitResult.Resume;
        });
        return ExitResult.UserSpace;
    }
}
