using SimKvm.Kvm;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// AP creation: an SNP guest gives one of its vCPUs a VMSA of its own making, a page of its private memory, or takes it away.
internal sealed partial class SevBackend
{
    private const uint ApCreateOnInit = 0;
    private const uint ApCreate = 1;
    private const uint ApDestroy = 2;

    private const int MaxVmpl = 3;
    private const int VmsaVmpl = 0xCA;
    private const int VmsaFeatures = 0x3B0;

    public static readonly Rule ApTarget = new(
        "sev.ap-creation.target", "no vCPU has that APIC id", "sev_snp_ap_creation", "use the id of a vCPU of this VM", "apic_id#");

    public static readonly Rule ApFeatures = new(
        "sev.ap-creation.features", "RAX must be the SEV features of this VM", "sev_snp_ap_creation", "give the new VMSA the features of the VM, and name them in RAX", "rax", "vmsa_features");

    public static readonly Rule ApVmsaAddress = new(
        "sev.ap-creation.vmsa", "the VMSA's gpa must be page aligned, inside the guest's address space, and not 2 MiB aligned (an erratum makes such a page unsafe)",
        "sev_snp_ap_creation", "use the second page of a 2 MiB page", "vmsa_gpa");

    public static readonly Rule ApRequest = new(
        "sev.ap-creation.request", "the request is 0 (create on INIT), 1 (create) or 2 (destroy)", "sev_snp_ap_creation", "use one of them", "request#");

    // sev_snp_ap_creation
    private ExitResult ApCreation(KTask current, Ghcb ghcb, GhcbRequest request)
    {
        const int physicalBits = 48;
        uint what = (uint)request.ExitInfo1, apicId = (uint)(request.ExitInfo1 >> 32);
        ulong vmsa = request.ExitInfo2;
        if (Vm.Vcpus.FirstOrDefault(vcpu => vcpu.Id == apicId) is not { } target)
        {
            return Refuse(ApTarget, apicId);
        }
        VcpuSevEsState state = target.SevEs!;
        using var mutex = state.SnpVmsaMutex.Enter(current);
        switch (what)
        {
            case ApCreateOnInit or ApCreate when request.Rax != _vmsaFeatures:
                return Refuse(ApFeatures, request.Rax, _vmsaFeatures);
            case ApCreateOnInit or ApCreate when (vmsa & PageSize.OffsetMask) != 0 || vmsa >> physicalBits != 0 || vmsa % PageLevel.Page2M.Bytes() == 0:
                return Refuse(ApVmsaAddress, vmsa);
            case ApCreateOnInit or ApCreate:
                state.VmsaGpa = vmsa;
                break;
            case ApDestroy:
                state.VmsaGpa = null;
                break;
            default:
                return Refuse(ApRequest, what);
        }
        current.Machine.Writing(target);
        state.ApWaitingForReset = true;
        state.UpdateRequested |= what != ApCreateOnInit;
        return ExitResult.Resume;

        ExitResult Refuse(Rule rule, params ReadOnlySpan<ulong> operands) => Malformed(current, ghcb, GhcbError.INVALID_INPUT, rule, operands);
    }

    // sev_snp_init_protected_guest_state, on the target's next way into the guest. Where the page cannot be had the vCPU has no VMSA.
    private void InitProtectedGuestState(KTask current, Vcpu vcpu)
    {
        VcpuSevEsState state = vcpu.SevEs!;
        current.Machine.Reading(vcpu);
        if (!state.UpdateRequested)
        {
            return;
        }
        state.UpdateRequested = false;
        using var mutex = state.SnpVmsaMutex.Enter(current);
        if (!state.ApWaitingForReset)
        {
            return;
        }
        state.ApWaitingForReset = false;
        state.HasGuestVmsa = true;
        state.GuestVmsa = null;
        if (state.VmsaGpa is not { } gpa)
        {
            return;
        }
        state.VmsaGpa = null;
        var gfn = new Gfn(gpa >> PageSize.Shift);
        int causes = current.Causes.Count;
        if (Vm.Memslots.Find(gfn) is { HasGmem: true } slot && GuestMemfd.GetPfn(current, Vm, slot, gfn, out Pfn pfn, out _) == Errno.OK)
        {
            state.GuestVmsa = pfn;
            // The processor takes its privilege level from there.
            Span<byte> vmpl = stackalloc byte[1];
            _host.Machine.GuestRead(_asid, pfn, VmsaVmpl, vmpl);
            vcpu.Guest.Vmpl = vmpl[0];
        }
        current.ForgetCausesAfter(causes);
    }

    // VMRUN with a VMSA of the guest's making: the page must be the guest's and marked as VMSA, and the features SNP's.
    private bool IsVmsaUsable(Vcpu vcpu)
    {
        Span<byte> features = stackalloc byte[sizeof(ulong)];
        if (vcpu.SevEs!.GuestVmsa is not { } pfn || !_host.Machine.Rmp.IsVmsa(_asid, pfn) || vcpu.Guest.Vmpl > MaxVmpl)
        {
            return false;
        }
        _host.Machine.GuestRead(_asid, pfn, VmsaFeatures, features);
        return System.Buffers.Binary.BinaryPrimitives.ReadUInt64LittleEndian(features) == _vmsaFeatures;
    }
}
