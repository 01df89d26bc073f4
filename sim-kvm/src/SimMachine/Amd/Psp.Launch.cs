using SimMachine.Addressing;
using SimMachine.Measurement;
using SimMachine.Stepping;

namespace SimMachine.Amd;

// SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH (56860 8.16-8.18). The order in which firmware checks parameters is not published in full: the status
// is the contract, not its priority over another failure.
public sealed partial class Psp
{
    /// <summary>Policy bits of SNP_LAUNCH_START (56860 4.3; Linux psp-sev.h).</summary>
    public static class PolicyBits
    {
        public const ulong AbiMinorMask = 0xff;
        public const ulong AbiMajorMask = 0xff00;
        public const ulong SmtAllowed = 1UL << 16;
        public const ulong MustBeOne = 1UL << 17;
        public const ulong MigrateMa = 1UL << 18;
        public const ulong Debug = 1UL << 19;
        public const ulong SingleSocket = 1UL << 20;
        public const ulong CxlAllow = 1UL << 21;
        public const ulong MemAes256Xts = 1UL << 22;
        public const ulong RaplDis = 1UL << 23;
        public const ulong CiphertextHidingDram = 1UL << 24;
        public const ulong PageSwapDisable = 1UL << 25;
    }

    /// <summary>Policy bits of features that not every firmware has: CXL, AES-256-XTS, RAPL, ciphertext hiding, page swap.</summary>
    public const ulong OptionalPolicyBits = PolicyBits.CxlAllow | PolicyBits.MemAes256Xts | PolicyBits.RaplDis | PolicyBits.CiphertextHidingDram | PolicyBits.PageSwapDisable;

    private const ulong BasePolicyBits = PolicyBits.AbiMinorMask | PolicyBits.AbiMajorMask | PolicyBits.SmtAllowed | PolicyBits.MustBeOne
        | PolicyBits.MigrateMa | PolicyBits.Debug | PolicyBits.SingleSocket;

    /// <summary>Policy bits that this firmware reports (SNP_FEATURE_INFO).</summary>
    public ulong SupportedPolicyBits => BasePolicyBits | (_machine.Config.FirmwarePolicyBits & OptionalPolicyBits);

    public static readonly Rule PolicyReserved = new(
        "psp.launch-start.policy-reserved", "the policy has reserved bits set, or bit 17 clear", "56860 4.3",
        "set bit 17 and no bit above those the firmware reports", "policy", "unknown_bits");

    public static readonly Rule PolicyAbi = new(
        "psp.launch-start.policy-abi", "the policy asks for a newer firmware ABI than this firmware has", "56860 4.3",
        "lower ABI_MAJOR.ABI_MINOR (policy bits 15:0)", "policy", "firmware_abi");

    public static readonly Rule PolicySmt = new(
        "psp.launch-start.policy-smt", "SMT is on and the policy does not allow it (bit 16)", "56860 4.3",
        "set policy bit 16, or configure the host without SMT", "policy");

    public static readonly Rule PolicyFeature = new(
        "psp.launch-start.policy-feature", "the policy demands what this platform is not: memory encrypted by AES-256-XTS (bit 22), RAPL disabled (23), ciphertext hidden (24)", "56860 4.3",
        "leave the bits out, or configure the host so", "policy", "missing_bits");

    public static readonly Rule BadPageType = new(
        "psp.launch-update.page-type", "the page type is not one of the ABI's", "56860 8.17", "use types 1 to 6", "type#");

    public static readonly Rule GuestInactive = new(
        "psp.launch-update.inactive", "the guest has no ASID", "56860 8.17", "issue SNP_ACTIVATE first", "gctx_pfn");

    public static readonly Rule PageNotPreGuest = new(
        "psp.launch-update.page-state", "the page is not in the Pre-Guest state", "56860 8.17",
        "assign the page to the guest, immutable, by RMPUPDATE first", "pfn", "state#");

    public static readonly Rule PageSizeDiffers = new(
        "psp.launch-update.page-size", "the page size differs from the RMP entry's, or the page type exists only as 4 KiB", "56860 8.17",
        "use the entry's size, and 4 KiB for VMSA, SECRETS and CPUID pages", "pfn", "level#", "entry_level#");

    public static readonly Rule PageOwnerDiffers = new(
        "psp.launch-update.page-owner", "the page is assigned to another ASID", "56860 8.17",
        "assign it to the ASID that the guest was activated with", "pfn", "entry_asid#", "guest_asid#");

    /// <summary>SNP_LAUNCH_START (0xA0): policy, keys and ids of a new guest; the launch digest starts at zero.</summary>
    /// <param name="gosvw">16 bytes.</param>
    public SevStatus SnpLaunchStart(SimThread thread, Pfn gctx, ulong policy, ReadOnlySpan<byte> gosvw)
    {
        SevStatus status = Enter(thread, PspCommand.SNP_LAUNCH_START, gctx, out GuestContext guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State != GuestContextState.Init)
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongGuestState, (ulong)PspCommand.SNP_LAUNCH_START, (ulong)guest.State);
        }
        status = CheckPolicy(thread, policy);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        guest.State = GuestContextState.Launch;
        guest.Policy = policy;
        gosvw.CopyTo(guest.Gosvw);
        _machine.Entropy.Draw("vmpck", guest.Vmpck);
        _machine.Entropy.Draw("vmrk", guest.Vmrk);
        _machine.Entropy.Draw("report-id", guest.ReportId);
        return SevStatus.SUCCESS;
    }

    /// <summary>
    /// SNP_LAUNCH_UPDATE (0xA1): measures a page, encrypts it in place for the guest, and makes it Guest-Valid. On a refused CPUID page the page stays plain and
    /// carries the corrected values.
    /// </summary>
    public SevStatus SnpLaunchUpdate(SimThread thread, Pfn gctx, Pfn page, PageLevel level, SnpPageType type)
    {
        SevStatus status = Enter(thread, PspCommand.SNP_LAUNCH_UPDATE, gctx, out GuestContext guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State != GuestContextState.Launch)
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongGuestState, (ulong)PspCommand.SNP_LAUNCH_UPDATE, (ulong)guest.State);
        }
        if (type is < SnpPageType.NORMAL or > SnpPageType.CPUID)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, BadPageType, (ulong)type);
        }
        if (guest.Asid == 0)
        {
            return thread.Fail(SevStatus.INACTIVE, GuestInactive, gctx.Value);
        }
        RmpEntry entry = _machine.Rmp.Entry(page);
        if (entry.State != RmpPageState.PreGuest)
        {
            return thread.Fail(SevStatus.INVALID_PAGE_STATE, PageNotPreGuest, page.Value, (ulong)entry.State);
        }
        bool only4K = type is SnpPageType.VMSA or SnpPageType.SECRETS or SnpPageType.CPUID;
        if (entry.Level != level || (only4K && level != PageLevel.Page4K))
        {
            return thread.Fail(SevStatus.INVALID_PAGE_SIZE, PageSizeDiffers, page.Value, (ulong)level, (ulong)entry.Level);
        }
        if (!level.IsAligned(page))
        {
            return thread.Fail(SevStatus.INVALID_ADDRESS, LargePageUnaligned, page.Value, (ulong)level);
        }
        if (entry.Asid != guest.Asid)
        {
            return thread.Fail(SevStatus.INVALID_PAGE_OWNER, PageOwnerDiffers, page.Value, entry.Asid, guest.Asid);
        }

        for (ulong i = 0; i < level.PagesPerLevel(); i++)
        {
            Pfn each = new(page.Value + i);
            status = BuildContent(thread, guest, each, type);
            if (status != SevStatus.SUCCESS)
            {
                return status;
            }
            Measure(guest, each, type, _machine.Rmp.Entry(each).Gpa);
            _machine.Memory.Encrypt(each, guest.Asid);
            _machine.Rmp.Set(each, _machine.Rmp.Entry(each) with
            {
                Immutable = false,
                Validated = true,
                Vmsa = type == SnpPageType.VMSA,
                WrittenByCall = (uint)thread.Call,
            });
        }
        return SevStatus.SUCCESS;
    }

    /// <summary>SNP_LAUNCH_FINISH (0xA2): checks the ID block, if there is one, and ends the launch.</summary>
    /// <param name="idBlock">96 bytes, or empty for id_block_en = 0.</param>
    /// <param name="idAuth">4096 bytes, with an ID block.</param>
    /// <param name="hostData">32 bytes.</param>
    public SevStatus SnpLaunchFinish(
        SimThread thread, Pfn gctx, ReadOnlySpan<byte> idBlock, ReadOnlySpan<byte> idAuth, bool authKeyEn, bool vcekDisabled, ReadOnlySpan<byte> hostData)
    {
        SevStatus status = Enter(thread, PspCommand.SNP_LAUNCH_FINISH, gctx, out GuestContext guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State != GuestContextState.Launch)
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongGuestState, (ulong)PspCommand.SNP_LAUNCH_FINISH, (ulong)guest.State);
        }
        if (!idBlock.IsEmpty)
        {
            status = IdBlock.Check(thread, idBlock, idAuth, authKeyEn, guest.Digest.Current, guest.Policy, out IdBlockResult result);
            if (status != SevStatus.SUCCESS)
            {
                return status;
            }
            guest.IdBlock = result;
            guest.AuthorKeyEnabled = authKeyEn;
        }
        hostData.CopyTo(guest.HostData);
        guest.VcekDisabled = vcekDisabled;
        guest.State = GuestContextState.Running;
        return SevStatus.SUCCESS;
    }

    private SevStatus CheckPolicy(SimThread thread, ulong policy)
    {
        if ((policy & ~SupportedPolicyBits) != 0 || (policy & PolicyBits.MustBeOne) == 0)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, PolicyReserved, policy, policy & ~SupportedPolicyBits);
        }
        ulong abi = ((ulong)_machine.Config.ApiMajor << 8) | _machine.Config.ApiMinor;
        if ((policy & (PolicyBits.AbiMajorMask | PolicyBits.AbiMinorMask)) > abi)
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, PolicyAbi, policy, abi);
        }
        if (_machine.Config.Smt && (policy & PolicyBits.SmtAllowed) == 0)
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, PolicySmt, policy);
        }
        // No simulated processor has the longer key.
        ulong missing = PolicyBits.MemAes256Xts | (_machine.Config.RaplDisabled ? 0 : PolicyBits.RaplDis) | (_machine.Config.CiphertextHidingDram ? 0 : PolicyBits.CiphertextHidingDram);
        if ((policy & missing) != 0)
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, PolicyFeature, policy, policy & missing);
        }
        return SevStatus.SUCCESS;
    }

    // What the guest will find in the page, where that is not simply what the host put there.
    private SevStatus BuildContent(SimThread thread, GuestContext guest, Pfn page, SnpPageType type)
    {
        Span<byte> content = stackalloc byte[(int)PageSize.Bytes];
        switch (type)
        {
            case SnpPageType.ZERO:
                _machine.Memory.Zero(page, Machine.HostKey);
                return SevStatus.SUCCESS;
            case SnpPageType.SECRETS:
                SecretsPage.Build(content, guest.Vmpck, _machine.Cpuid.Fms, guest.Gosvw);
                _machine.Memory.Write(page, 0, content, Machine.HostKey);
                return SevStatus.SUCCESS;
            case SnpPageType.CPUID:
                _machine.Memory.Read(page, 0, content, Machine.HostKey);
                SevStatus status = CpuidPage.Validate(thread, content, _machine.Cpuid);
                if (status != SevStatus.SUCCESS)
                {
                    _machine.Memory.Write(page, 0, content, Machine.HostKey);
                }
                return status;
            default:
                return SevStatus.SUCCESS;
        }
    }

    private void Measure(GuestContext guest, Pfn page, SnpPageType type, ulong gpa)
    {
        Span<byte> hash = stackalloc byte[SnpLaunchDigest.Size];
        if (_machine.Memory.TryGetPlainSpan(page, Machine.HostKey, out ReadOnlySpan<byte> view))
        {
            SnpLaunchDigest.ContentHash(type, view, hash);
        }
        else
        {
            // Left encrypted by an earlier owner: firmware measures what the host would read.
            Span<byte> content = stackalloc byte[(int)PageSize.Bytes];
            _machine.Memory.Read(page, 0, content, Machine.HostKey);
            _machine.Memory.Write(page, 0, content, Machine.HostKey);
            SnpLaunchDigest.ContentHash(type, content, hash);
        }
        guest.Digest.Extend(type, gpa, hash);
        guest.Transcript.Append(type, gpa, hash, guest.Digest.Current);
    }
}
