using SimKvm.Kvm;
using SimKvm.Locking;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// Guest requests: messages between an SNP guest and firmware, which KVM carries and cannot read; with an extended one user space can hand certificates to the guest.
internal sealed partial class SevBackend
{
    private const int EmptyCertificateTable = 24;
    private const int MessageTypeAt = 0x34;

    // The upper half of sw_exit_info_2: why the hypervisor did not do it.
    private const ulong VmmInvalidLength = 1;
    private const ulong VmmBusy = 2;
    private const ulong VmmGeneric = 1UL << 31;

    public static readonly Rule GuestRequestMemory = new(
        "sev.guest-request.memory", "KVM could not read the request or write what belongs to the answer in the guest's memory", "snp_handle_guest_req",
        "put both pages into shared memory", "gpa");

    public static readonly Rule GuestRequestRefused = new(
        "sev.guest-request.firmware", "firmware refused the message; the guest is told", "snp_handle_guest_req", "see the cause before this one", "status");

    public static readonly Rule CertificatesNotGiven = new(
        "sev.guest-request.certificates", "user space gave no certificates: 28 (ENOSPC) says that they need more pages, 11 (EAGAIN) to come again, 5 (EIO) that it failed",
        "snp_complete_req_certs", "see why the VMM set snp_req_certs.ret", "ret#", "npages#");

    public static readonly Rule CertificatesAnswer = new(
        "sev.guest-request.certificates-answer", "snp_req_certs.ret must be 0, ENOSPC, EAGAIN or EIO", "snp_complete_req_certs", "set one of them before KVM_RUN", "ret#");

    private readonly SimLock _guestReqMutex = new(LockOrder.GuestReq);

    // guest_req_buf, guest_resp_buf: firmware works on pages of KVM's own, so that the guest cannot change a request under it.
    private readonly byte[] _guestReqBuf = new byte[PageSize.Bytes];
    private readonly byte[] _guestRespBuf = new byte[PageSize.Bytes];

    // snp_handle_guest_req: firmware's refusals go to the guest, everything else that fails to user space.
    private ExitResult HandleGuestRequest(KTask current, Ghcb ghcb, GhcbRequest request)
    {
        using var mutex = _guestReqMutex.Enter(current);
        if (Vm.ReadGuest(current, request.ExitInfo1, _guestReqBuf) != Errno.OK)
        {
            return ExitResult.Fail(current.Fail(Errno.EIO, GuestRequestMemory, request.ExitInfo1));
        }
        uint error = 0;
        Errno errno = Amd.IssueCommand(
            current, _sevFd, PspCommand.SNP_GUEST_REQUEST, () => Psp.SnpGuestRequest(current, _snpContext, _guestReqBuf, _guestRespBuf), ref error);
        if (errno != Errno.OK && error == 0)
        {
            return ExitResult.Fail(errno);
        }
        if (Vm.WriteGuest(current, request.ExitInfo2, _guestRespBuf) != Errno.OK)
        {
            return ExitResult.Fail(current.Fail(Errno.EIO, GuestRequestMemory, request.ExitInfo2));
        }
        if (error != 0)
        {
            current.Refuse(GuestRequestRefused, $"GHCB exit_info_2 0x{error:x}", error);
        }
        return Answer(ghcb, error);
    }

    // snp_handle_ext_guest_req
    private ExitResult HandleExtendedGuestRequest(KTask current, Vcpu vcpu, Ghcb ghcb, GhcbRequest request)
    {
        Span<byte> type = stackalloc byte[1];
        if (Vm.ReadGuest(current, request.ExitInfo1 + MessageTypeAt, type) != Errno.OK)
        {
            return ExitResult.Fail(current.Fail(Errno.EIO, GuestRequestMemory, request.ExitInfo1));
        }
        if (type[0] != (byte)GuestMessageType.REPORT_REQ)
        {
            return HandleGuestRequest(current, ghcb, request);
        }
        // RAX and RBX: where the guest wants certificates, and for how many pages it has room.
        (ulong gpa, ulong pages) = (request.Rax, request.Rbx);
        if (!request.HasRaxAndRbx || (gpa & PageSize.OffsetMask) != 0)
        {
            return BadInput(current, ghcb, request);
        }
        if (_snpCertsEnabled)
        {
            vcpu.Run.SnpReqCerts(gpa, pages);
            return AskUserSpace(vcpu, next => CompleteReqCerts(next, vcpu, ghcb, request));
        }
        if (pages > 0 && Vm.WriteGuest(current, gpa, new byte[EmptyCertificateTable]) != Errno.OK)
        {
            return ExitResult.Fail(current.Fail(Errno.EIO, GuestRequestMemory, gpa));
        }
        return HandleGuestRequest(current, ghcb, request);
    }

    // snp_complete_req_certs
    private ExitResult CompleteReqCerts(KTask current, Vcpu vcpu, Ghcb ghcb, GhcbRequest request)
    {
        ulong ret = vcpu.Run.SnpReqCertsRet, pages = vcpu.Run.SnpReqCertsNpages;
        ulong vmmError;
        switch (ret)
        {
            case 0:
                return HandleGuestRequest(current, ghcb, request);
            case (ulong)Errno.ENOSPC:
                ghcb.Set(Ghcb.Rbx, pages);
                vmmError = VmmInvalidLength;
                break;
            case (ulong)Errno.EAGAIN:
                vmmError = VmmBusy;
                break;
            case (ulong)Errno.EIO:
                vmmError = VmmGeneric;
                break;
            default:
                return ExitResult.Fail(current.Fail(Errno.EINVAL, CertificatesAnswer, ret));
        }
        current.Refuse(CertificatesNotGiven, $"GHCB exit_info_2 0x{vmmError:x}00000000", ret, pages);
        return Answer(ghcb, vmmError << 32);
    }
}
