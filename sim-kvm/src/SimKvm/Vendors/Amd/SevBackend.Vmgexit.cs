using SimKvm.Kvm;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// VMGEXIT: a guest with encrypted registers asks the hypervisor (sev_handle_vmgexit). By the MSR protocol here; by a GHCB its checks and its dispatch, each event next door.
internal sealed partial class SevBackend
{
    private const ulong GhcbVersionMin = 1;
    private const ulong HypervisorFeatures = 3;
    private const int ScratchLimit = 16 * PageSize.Bytes;
    private const uint UnexpectedExitReason = 4;

    private static readonly StepLabel VmgexitStep = new("vmgexit");

    public static readonly Rule GhcbNotRegistered = new(
        "sev.vmgexit.not-registered", "an SNP guest used a GHCB that it did not register", "sev_handle_vmgexit",
        "register the GHCB's gpa by the GHCB MSR (request 0x012) first", "ghcb_gpa");

    public static readonly Rule GhcbNotThere = new(
        "sev.vmgexit.no-ghcb", "the GHCB MSR names no page that KVM could map; the guest goes on without an answer", "sev_handle_vmgexit",
        "put the GHCB into shared memory and its gpa into the GHCB MSR", "ghcb_msr");

    public static readonly Rule GhcbUsage = new(
        "sev.vmgexit.usage", "the only usage of a GHCB that KVM knows is 0", "sev_es_validate_vmgexit", "set ghcb_usage to 0", "usage");

    public static readonly Rule GhcbMissingInput = new(
        "sev.vmgexit.missing-input", "the GHCB lacks a field that the event needs, or the event is of SNP guests and this is none, or its addresses are no two pages",
        "sev_es_validate_vmgexit", "fill the fields and mark them in valid_bitmap", "exit_code", "exit_info_1", "exit_info_2");

    public static readonly Rule GhcbUnknownEvent = new(
        "sev.vmgexit.event", "KVM does not know the event", "sev_es_validate_vmgexit", "ask for the hypervisor's features first", "exit_code");

    public static readonly Rule GhcbUnsupportedEvent = new(
        "sev.vmgexit.unsupported", "the guest reported an exit that it does not support", "sev_handle_vmgexit", "see what the guest did: exit_info_1 is the exit", "exit_info_1", "exit_info_2");

    public static readonly Rule GhcbScratch = new(
        "sev.vmgexit.scratch", "the scratch area is missing, wraps, sticks out of the GHCB's shared buffer, or is longer than 64 KiB", "setup_vmgexit_scratch",
        "use the shared buffer (0x800 to 0xfef of the GHCB), or up to 64 KiB of shared memory", "scratch_gpa", "length");

    public static readonly Rule GhcbBadInput = new(
        "sev.vmgexit.input", "the event does not take these values", "sev_handle_vmgexit", "see the GHCB specification for the event", "exit_code", "exit_info_1", "exit_info_2");

    // ap_jump_table
    private ulong _apJumpTable;

    /// <summary>sev_handle_vmgexit. VMGEXIT is a trap: whatever it comes to, the guest goes on behind it.</summary>
    public override ExitResult Vmgexit(KTask current, Vcpu vcpu, ulong ghcbMsr)
    {
        if (!IsEsGuest)
        {
            return base.Vmgexit(current, vcpu, ghcbMsr);
        }
        VcpuSevEsState state = vcpu.SevEs!;
        state.GhcbMsr = ghcbMsr;
        current.Step(VmgexitStep, (ulong)vcpu.Index, ghcbMsr);
        int causes = current.Causes.Count;
        return Finish(current, vcpu, causes, (ghcbMsr & GhcbMsr.InfoMask) != 0 ? MsrProtocol(current, vcpu, state) : GhcbProtocol(current, vcpu, state));
    }

    // On the way back to the guest, now or behind user space's answer: the GHCB gets what KVM has for the guest (sev_es_unmap_ghcb).
    // KVM_RUN goes on, so why something was refused belongs to the guest's step and not to the call, unless the call fails for it.
    private ExitResult Finish(KTask current, Vcpu vcpu, int causesBefore, ExitResult result)
    {
        if (!vcpu.AwaitsUserSpace)
        {
            Cause[] causes = [.. current.Causes.Skip(causesBefore)];
            UnmapGhcb(current, vcpu.SevEs!);
            vcpu.Guest.Retire(rax: vcpu.SevEs!.GhcbMsr, causes: causes);
            current.ForgetCausesAfter(result.Errno == Errno.OK ? causesBefore : current.Causes.Count);
        }
        return result;
    }

    // User space's answer first, then the rest.
    private ExitResult AskUserSpace(Vcpu vcpu, RunCompletion completion)
    {
        vcpu.CompleteWith(current => Finish(current, vcpu, current.Causes.Count, completion(current)));
        return ExitResult.UserSpace;
    }

    // sev_handle_vmgexit_msr_protocol
    private ExitResult MsrProtocol(KTask current, Vcpu vcpu, VcpuSevEsState state)
    {
        ulong msr = state.GhcbMsr;
        switch (msr & GhcbMsr.InfoMask)
        {
            case GhcbMsr.SevInfoRequest:
                state.GhcbMsr = SevInfo;
                return ExitResult.Resume;
            case GhcbMsr.CpuidRequest:
                Abi.kvm_cpuid_entry2 leaf = vcpu.Arch.CpuidInstruction((uint)(msr >> 32), 0);
                uint[] registers = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
                state.GhcbMsr = ((ulong)registers[(msr >> 30) & 3] << 32) | (msr & 0xffff_f000) | GhcbMsr.CpuidResponse;
                return ExitResult.Resume;
            case GhcbMsr.ApResetHoldRequest:
                state.GhcbMsr = GhcbMsr.ApResetHoldResponse;
                vcpu.Run.Exit(KvmExit.KVM_EXIT_AP_RESET_HOLD);
                return ExitResult.UserSpace;
            case GhcbMsr.HypervisorFeaturesRequest:
                state.GhcbMsr = (HypervisorFeatures << PageSize.Shift) | GhcbMsr.HypervisorFeaturesResponse;
                return ExitResult.Resume;
            case GhcbMsr.PreferredGpaRequest when IsSnpGuest:
                state.GhcbMsr = GhcbMsr.NoPreferredGpa | GhcbMsr.PreferredGpaResponse;
                return ExitResult.Resume;
            case GhcbMsr.RegisterGpaRequest when IsSnpGuest:
                state.RegisteredGpa = msr & ~GhcbMsr.InfoMask;
                state.GhcbMsr = state.RegisteredGpa.Value | GhcbMsr.RegisterGpaResponse;
                return ExitResult.Resume;
            case GhcbMsr.PageStateChangeRequest when IsSnpGuest:
                return BeginPscMsr(current, vcpu, state);
            case GhcbMsr.TerminateRequest or GhcbMsr.PreferredGpaRequest or GhcbMsr.RegisterGpaRequest or GhcbMsr.PageStateChangeRequest:
                vcpu.Run.SystemEvent(KvmSystemEvent.KVM_SYSTEM_EVENT_SEV_TERM, msr);
                return ExitResult.UserSpace;
            default:
                return ExitResult.Resume;
        }
    }

    // What the GHCB MSR holds after a reset, and the answer to SEV info: newest and oldest version of the protocol, position of the C-bit.
    private ulong SevInfo => ((ulong)_ghcbVersion << 48) | (GhcbVersionMin << 32) | ((ulong)PlatformCpuid.CBit << 24) | GhcbMsr.SevInfo;

    private ExitResult GhcbProtocol(KTask current, Vcpu vcpu, VcpuSevEsState state)
    {
        ulong gpa = state.GhcbMsr;
        byte[] page = new byte[Ghcb.Size];
        int causes = current.Causes.Count;
        if (gpa == 0 || Vm.ReadGuest(current, gpa, page) != Errno.OK)
        {
            current.ForgetCausesAfter(causes);
            current.Refuse(GhcbNotThere, "no answer", gpa);
            return ExitResult.Resume;
        }
        // Read once; what the guest finds valid afterwards is KVM's.
        var asked = new Ghcb(gpa, [.. page]);
        var request = new GhcbRequest(asked);
        var ghcb = new Ghcb(gpa, page);
        state.Ghcb = ghcb;
        ghcb.ClearValid();
        ghcb.Set(Ghcb.Rax, request.Rax);
        ghcb.Set(Ghcb.Rbx, request.Rbx);
        ghcb.Set(Ghcb.Rcx, request.Rcx);
        ghcb.Set(Ghcb.Rdx, request.Rdx);
        if (IsSnpGuest && state.RegisteredGpa != gpa)
        {
            return _host.Profile.UnregisteredGhcbIsAnswered
                ? Malformed(current, ghcb, GhcbError.NOT_REGISTERED, GhcbNotRegistered, gpa)
                : ExitResult.Fail(current.Fail(Errno.EINVAL, GhcbNotRegistered, gpa));
        }
        if (Validate(current, asked, ghcb, request) is { } malformed)
        {
            return malformed;
        }
        Answer(ghcb, 0);
        return Dispatch(current, vcpu, state, request);
    }

    private ExitResult Dispatch(KTask current, Vcpu vcpu, VcpuSevEsState state, GhcbRequest request)
    {
        Ghcb ghcb = state.Ghcb!;
        switch (request.ExitCode)
        {
            case GhcbExitCode.MMIO_READ or GhcbExitCode.MMIO_WRITE:
                return GhcbMmio(current, vcpu, state, request);
            case GhcbExitCode.IOIO:
                return GhcbIo(current, vcpu, state, request);
            case GhcbExitCode.CPUID:
                return GhcbCpuid(vcpu, ghcb, request);
            case GhcbExitCode.MSR:
                return GhcbMsrAccess(current, vcpu, ghcb, request);
            case GhcbExitCode.VMMCALL:
                return GhcbVmmcall(current, vcpu, ghcb, request);
            case GhcbExitCode.AP_HLT_LOOP:
                vcpu.Run.Exit(KvmExit.KVM_EXIT_AP_RESET_HOLD);
                return ExitResult.UserSpace;
            case GhcbExitCode.AP_JUMP_TABLE when request.ExitInfo1 == 0:
                current.Machine.Writing(this);
                _apJumpTable = request.ExitInfo2;
                return ExitResult.Resume;
            case GhcbExitCode.AP_JUMP_TABLE when request.ExitInfo1 == 1:
                return Answer(ghcb, _apJumpTable);
            case GhcbExitCode.AP_JUMP_TABLE:
                return BadInput(current, ghcb, request);
            case GhcbExitCode.HV_FEATURES:
                return Answer(ghcb, HypervisorFeatures);
            case GhcbExitCode.TERM_REQUEST:
                vcpu.Run.SystemEvent(KvmSystemEvent.KVM_SYSTEM_EVENT_SEV_TERM, state.GhcbMsr);
                return ExitResult.UserSpace;
            case GhcbExitCode.PSC:
                return SetupScratch(current, state, request, request.ExitInfo2, sync: true) ?? BeginPsc(current, vcpu, state);
            case GhcbExitCode.GUEST_REQUEST:
                return HandleGuestRequest(current, ghcb, request);
            case GhcbExitCode.EXT_GUEST_REQUEST:
                return HandleExtendedGuestRequest(current, vcpu, ghcb, request);
            case GhcbExitCode.AP_CREATION:
                return ApCreation(current, ghcb, request);
            case GhcbExitCode.UNSUPPORTED_EVENT:
                return ExitResult.Fail(current.Fail(Errno.EINVAL, GhcbUnsupportedEvent, request.ExitInfo1, request.ExitInfo2));
            case GhcbExitCode.RDTSC or GhcbExitCode.RDTSCP or GhcbExitCode.RDPMC or GhcbExitCode.READ_DR7 or GhcbExitCode.WRITE_DR7:
                // svm_handle_invalid_exit
                vcpu.Run.InternalError(UnexpectedExitReason, (ulong)request.ExitCode);
                return ExitResult.UserSpace;
            default:
                // NMI completion, cache flushes, MONITOR and MWAIT: there is nothing that they could change here.
                return ExitResult.Resume;
        }
    }

    // sev_es_validate_vmgexit: what each event must bring. Null where all is there.
    private ExitResult? Validate(KTask current, Ghcb asked, Ghcb ghcb, GhcbRequest request)
    {
        if (asked.UsageCode != 0)
        {
            return Malformed(current, ghcb, GhcbError.INVALID_USAGE, GhcbUsage, asked.UsageCode);
        }
        bool Has(params ReadOnlySpan<int> fields)
        {
            foreach (int field in fields)
            {
                if (!asked.IsValid(field))
                {
                    return false;
                }
            }
            return true;
        }
        if (!Has(Ghcb.ExitCode, Ghcb.ExitInfo1, Ghcb.ExitInfo2))
        {
            return Missing();
        }
        bool twoPages = ((request.ExitInfo1 | request.ExitInfo2) & PageSize.OffsetMask) == 0 && request.ExitInfo1 != request.ExitInfo2;
        bool? complete = request.ExitCode switch
        {
            GhcbExitCode.WRITE_DR7 => Has(Ghcb.Rax),
            GhcbExitCode.RDPMC => Has(Ghcb.Rcx),
            GhcbExitCode.CPUID => Has(Ghcb.Rax, Ghcb.Rcx) && (request.Rax != 0xd || Has(Ghcb.Xcr0)),
            GhcbExitCode.IOIO when request.IsString => Has(Ghcb.Scratch),
            GhcbExitCode.IOIO when !request.IsIn => Has(Ghcb.Rax),
            GhcbExitCode.MSR => Has(Ghcb.Rcx) && (request.ExitInfo1 == 0 || Has(Ghcb.Rax, Ghcb.Rdx)),
            GhcbExitCode.VMMCALL => Has(Ghcb.Rax, Ghcb.Cpl),
            GhcbExitCode.MONITOR => Has(Ghcb.Rax, Ghcb.Rcx, Ghcb.Rdx),
            GhcbExitCode.MWAIT => Has(Ghcb.Rax, Ghcb.Rcx),
            GhcbExitCode.MMIO_READ or GhcbExitCode.MMIO_WRITE => Has(Ghcb.Scratch),
            GhcbExitCode.PSC => IsSnpGuest && Has(Ghcb.Scratch),
            GhcbExitCode.AP_CREATION => IsSnpGuest && ((uint)request.ExitInfo1 == ApDestroy || Has(Ghcb.Rax)),
            GhcbExitCode.GUEST_REQUEST or GhcbExitCode.EXT_GUEST_REQUEST => IsSnpGuest && twoPages,
            _ => Enum.IsDefined(request.ExitCode) ? true : null,
        };
        return complete switch
        {
            true => null,
            false => Missing(),
            null => Malformed(current, ghcb, GhcbError.INVALID_EVENT, GhcbUnknownEvent, (ulong)request.ExitCode),
        };

        ExitResult Missing() => Malformed(
            current, ghcb, GhcbError.MISSING_INPUT, GhcbMissingInput, (ulong)request.ExitCode, request.ExitInfo1, request.ExitInfo2);
    }

    // setup_vmgexit_scratch; null where the area is there.
    private ExitResult? SetupScratch(KTask current, VcpuSevEsState state, GhcbRequest request, ulong length, bool sync)
    {
        Ghcb ghcb = state.Ghcb!;
        ulong start = request.Scratch;
        bool insideGhcb = (start & ~PageSize.OffsetMask) == ghcb.Gpa;
        ulong offset = start & PageSize.OffsetMask;
        bool fits = insideGhcb
            ? offset >= Ghcb.SharedBuffer && offset + length <= Ghcb.SharedBuffer + Ghcb.SharedBufferSize
            : length <= ScratchLimit;
        if (start == 0 || start + length < start || !fits)
        {
            return Malformed(current, ghcb, GhcbError.INVALID_SCRATCH_AREA, GhcbScratch, start, length);
        }
        // Inside the GHCB KVM works on the page itself, so it sees whatever of the buffer it looks at.
        byte[] bytes = insideGhcb ? ghcb.Page[(int)offset..(Ghcb.SharedBuffer + Ghcb.SharedBufferSize)].ToArray() : new byte[length];
        if (!insideGhcb && Vm.ReadGuest(current, start, bytes) is var errno && errno != Errno.OK)
        {
            return ExitResult.Fail(errno);
        }
        state.Scratch = new ScratchArea(start, bytes, insideGhcb, sync);
        return null;
    }

    // KVM changes the scratch area: at once where it is the guest's own memory, else when the guest goes on.
    private void StoreScratch(KTask current, ScratchArea scratch, int offset, ReadOnlySpan<byte> bytes)
    {
        bytes.CopyTo(scratch.Bytes.AsSpan(offset));
        if (scratch.InsideGhcb)
        {
            Vm.WriteGuest(current, scratch.Gpa + (ulong)offset, bytes);
        }
    }

    // sev_es_unmap_ghcb, sev_es_sync_to_ghcb
    private void UnmapGhcb(KTask current, VcpuSevEsState state)
    {
        if (state.Scratch is { InsideGhcb: false, Sync: true } scratch)
        {
            Vm.WriteGuest(current, scratch.Gpa, scratch.Bytes);
        }
        if (state.Ghcb is { } ghcb)
        {
            ReadOnlySpan<byte> page = ghcb.Page.Span;
            Vm.WriteGuest(current, ghcb.Gpa + Ghcb.Rax, page.Slice(Ghcb.Rax, sizeof(ulong)));
            Vm.WriteGuest(current, ghcb.Gpa + Ghcb.Rcx, page[Ghcb.Rcx..(Ghcb.Rbx + sizeof(ulong))]);
            Vm.WriteGuest(current, ghcb.Gpa + Ghcb.ExitInfo1, page[Ghcb.ExitInfo1..Ghcb.Scratch]);
            Vm.WriteGuest(current, ghcb.Gpa + Ghcb.ValidBitmap, page.Slice(Ghcb.ValidBitmap, Ghcb.ValidBitmapSize));
        }
        state.Ghcb = null;
        state.Scratch = null;
    }

    // svm_vmgexit_success, svm_vmgexit_no_action
    private static ExitResult Answer(Ghcb ghcb, ulong info2) => Answer(ghcb, Ghcb.NoAction, info2);

    private static ExitResult Answer(Ghcb ghcb, ulong info1, ulong info2)
    {
        ghcb.Set(Ghcb.ExitInfo1, info1);
        ghcb.Set(Ghcb.ExitInfo2, info2);
        return ExitResult.Resume;
    }

    // svm_vmgexit_bad_input: the guest is told; the reason is kept for whoever looks at the call.
    private static ExitResult Malformed(KTask current, Ghcb ghcb, GhcbError error, Rule rule, params ReadOnlySpan<ulong> operands)
    {
        current.Refuse(rule, $"GHCB {error} {(ulong)error}", operands);
        return Answer(ghcb, Ghcb.MalformedInput, (ulong)error);
    }

    private static ExitResult BadInput(KTask current, Ghcb ghcb, GhcbRequest request) =>
        Malformed(current, ghcb, GhcbError.INVALID_INPUT, GhcbBadInput, (ulong)request.ExitCode, request.ExitInfo1, request.ExitInfo2);
}

/// <summary>What a guest put into its GHCB (sev_es_sync_from_ghcb): fields that are not marked valid read as 0.</summary>
internal readonly record struct GhcbRequest
{
    public GhcbRequest(Ghcb ghcb)
    {
        ExitCode = (GhcbExitCode)ghcb[Ghcb.ExitCode];
        ExitInfo1 = ghcb[Ghcb.ExitInfo1];
        ExitInfo2 = ghcb[Ghcb.ExitInfo2];
        Scratch = ghcb.IfValid(Ghcb.Scratch);
        Rax = ghcb.IfValid(Ghcb.Rax);
        Rbx = ghcb.IfValid(Ghcb.Rbx);
        Rcx = ghcb.IfValid(Ghcb.Rcx);
        Rdx = ghcb.IfValid(Ghcb.Rdx);
        Rsi = ghcb.IfValid(Ghcb.Rsi);
        Cpl = ghcb.IsValid(Ghcb.Cpl) ? ghcb.CplByte : 0;
        HasRaxAndRbx = ghcb.IsValid(Ghcb.Rax) && ghcb.IsValid(Ghcb.Rbx);
    }

    public GhcbExitCode ExitCode { get; }

    public ulong ExitInfo1 { get; }

    public ulong ExitInfo2 { get; }

    public ulong Scratch { get; }

    public ulong Rax { get; }

    public ulong Rbx { get; }

    public ulong Rcx { get; }

    public ulong Rdx { get; }

    public ulong Rsi { get; }

    public int Cpl { get; }

    public bool HasRaxAndRbx { get; }

    // Of an IOIO exit: exit_info_1 as the processor would have it (APM vol. 2, 15.10.2).
    public bool IsIn => (ExitInfo1 & 1) != 0;

    public bool IsString => (ExitInfo1 & 4) != 0;

    public int IoSize => (int)(ExitInfo1 >> 4) & 7;

    public ushort IoPort => (ushort)(ExitInfo1 >> 16);
}
