using SimKvm.Abi;
using SimMachine.Measurement;

namespace SimKvm.Tests.Support;

// The commands of an SNP launch.
internal sealed partial class TestVm
{
    public const ulong DefaultPolicy = 0x30000;

    /// <summary>The launch digest so far, in hex; empty before SNP_LAUNCH_START.</summary>
    public string Digest => Describe().Sev.Guest is { } guest ? Convert.ToHexStringLower(guest.LaunchDigest) : "";

    /// <summary>Steps measured so far.</summary>
    public long Measured => Describe().Sev.Guest?.Transcript.Count ?? 0;

    public uint Asid => Describe().Sev.Asid;

    public SevReply<kvm_sev_init> TryInit2(ulong features = 0, uint flags = 0, ushort ghcbVersion = 0) =>
        TrySev(SevCmdId.KVM_SEV_INIT2, new kvm_sev_init { vmsa_features = features, flags = flags, ghcb_version = ghcbVersion });

    public void Init2() => Vmm.Must(TryInit2().Report);

    public SevReply<kvm_sev_snp_launch_start> TryStart(ulong policy = DefaultPolicy, ushort flags = 0, int? sevFd = null, uint error = 0) =>
        TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_START, new kvm_sev_snp_launch_start { policy = policy, flags = flags }, sevFd, error);

    public void Start(ulong policy = DefaultPolicy) => Vmm.Must(TryStart(policy).Report);

    public SevReply<kvm_sev_snp_launch_update> TryUpdate(
        SnpPageType type, ulong gpa, ulong uaddr, ulong pages, int? sevFd = null, uint error = 0) =>
        TrySev(
            SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE,
            new kvm_sev_snp_launch_update { gfn_start = gpa / Vmm.Page, uaddr = uaddr, len = pages * Vmm.Page, type = (byte)type },
            sevFd, error);

    /// <summary>Launches all of the pages.</summary>
    public void Update(SnpPageType type, ulong gpa, ulong uaddr, ulong pages)
    {
        SevReply<kvm_sev_snp_launch_update> reply = TryUpdate(type, gpa, uaddr, pages);
        Vmm.Must(reply.Report);
        if (reply.Data.len != 0)
        {
            throw new InvalidOperationException($"0x{reply.Data.len:x} bytes were left");
        }
    }

    public SevReply<kvm_sev_snp_launch_finish> TryFinish(int? sevFd = null, uint error = 0, kvm_sev_snp_launch_finish parameters = default) =>
        TrySev(SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH, parameters, sevFd, error);

    public void Finish() => Vmm.Must(TryFinish().Report);

    /// <summary>A guest_memfd of its own in a slot, its range private. Gives the descriptor.</summary>
    public int AddPrivateMemory(ulong gpa, ulong pages, uint slot = 0)
    {
        int gmem = CreateGmem(pages);
        AddGmemSlot(slot, gpa, pages, gmem);
        SetPrivate(gpa, pages);
        return gmem;
    }
}
