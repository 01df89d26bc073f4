using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// KVM_SEV_SEND_* and KVM_SEV_RECEIVE_*: a SEV guest leaves for another host. KVM passes packets on; who may have them is firmware's business. SEV-ES guests cannot go, for KVM has no
// command for their VMSAs. Under kvm->lock, which the dispatch holds.
internal sealed partial class SevBackend
{
    public static readonly Rule SendParameters = new(
        "sev.send.parameters", "an address is 0, the session's buffer is more than 16 KiB, or the guest's memory crosses a page", "sev_send_start, sev_send_update_data",
        "give all addresses, and one page or less at a time", "uaddr", "length#");

    public static readonly Rule ReceiveParameters = new(
        "sev.receive.parameters", "an address or a length is 0, or the guest's memory crosses a page", "sev_receive_start, sev_receive_update_data",
        "give all addresses and lengths, and one page or less at a time", "uaddr", "length#");

    public static readonly Rule PacketBuffer = new(
        "sev.send.buffer", "the kernel cannot allocate a buffer of that length", "sev_send_update_data", "ask for the lengths first, with lengths 0", "length#");

    // The most that kmalloc gives.
    private const uint MaxAllocation = 4 << 20;

    // sev_send_start. Session length 0 asks for it, and nothing else is looked at.
    private Errno SendStart(KTask current, ref kvm_sev_cmd cmd)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_send_start send);
        byte[] pdh = [], chain = [];
        if (errno == Errno.OK && send.session_len != 0)
        {
            errno = ReadSendStart(current, send, out pdh, out chain);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        uint length = send.session_len, policy = 0;
        byte[] session = [];
        errno = IssueCommand(
            current, PspCommand.SEND_START, () => Psp.SendStart(current, _handle, pdh, chain, ref length, out policy, out session), ref cmd.error);
        if (errno == Errno.OK)
        {
            errno = CopyOutPadded(current, send.session_uaddr, session, send.session_len);
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        Errno copied = UserArg.FromValue(cmd.data).CopyOut(current, send with { session_len = length, policy = send.session_len == 0 ? send.policy : policy });
        return copied != Errno.OK ? copied : errno;
    }

    private static Errno ReadSendStart(KTask current, in kvm_sev_send_start send, out byte[] pdh, out byte[] chain)
    {
        pdh = chain = [];
        if (send.pdh_cert_uaddr == 0 || send.pdh_cert_len == 0 || send.session_uaddr == 0 || send.session_len > MaxBlob)
        {
            return current.Fail(Errno.EINVAL, SendParameters, send.session_uaddr, send.session_len);
        }
        Errno errno = CopyBlob(current, send.pdh_cert_uaddr, send.pdh_cert_len, out pdh);
        if (errno == Errno.OK)
        {
            errno = CopyBlob(current, send.plat_certs_uaddr, send.plat_certs_len, out chain);
        }
        return errno == Errno.OK ? CopyBlob(current, send.amd_certs_uaddr, send.amd_certs_len, out _) : errno;
    }

    // sev_send_update_data. A length of 0 asks for both.
    private Errno SendUpdateData(KTask current, ref kvm_sev_cmd cmd)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_send_update_data send);
        if (errno != Errno.OK)
        {
            return errno;
        }
        bool asks = send.trans_len == 0 || send.hdr_len == 0;
        int offset = (int)(send.guest_uaddr & PageSize.OffsetMask);
        Pfn page = default;
        if (!asks)
        {
            if (send.trans_uaddr == 0 || send.guest_uaddr == 0 || send.guest_len == 0 || send.hdr_uaddr == 0 || (ulong)offset + send.guest_len > PageSize.Bytes)
            {
                return current.Fail(Errno.EINVAL, SendParameters, send.guest_uaddr, send.guest_len);
            }
            errno = PinUserRange(current, send.guest_uaddr, 1, out Pfn[] pages, write: false);
            if (errno == Errno.OK && Math.Max(send.hdr_len, send.trans_len) is > MaxAllocation and var longest)
            {
                errno = current.Fail(Errno.ENOMEM, PacketBuffer, longest);
            }
            if (errno != Errno.OK)
            {
                return errno;
            }
            page = pages[0];
        }
        uint headerLength = asks ? 0 : send.hdr_len, packetLength = asks ? 0 : send.trans_len;
        int length = asks ? 0 : (int)send.guest_len;
        byte[] header = [], packet = [];
        errno = IssueCommand(
            current, PspCommand.SEND_UPDATE_DATA,
            () => Psp.SendUpdateData(current, _handle, page, offset, length, ref headerLength, ref packetLength, out header, out packet), ref cmd.error);
        if (asks)
        {
            Errno copied = UserArg.FromValue(cmd.data).CopyOut(current, send with { hdr_len = headerLength, trans_len = packetLength });
            return copied != Errno.OK ? copied : errno;
        }
        if (errno == Errno.OK)
        {
            errno = CopyOutPadded(current, send.trans_uaddr, packet, send.trans_len);
        }
        return errno != Errno.OK ? errno : CopyOutPadded(current, send.hdr_uaddr, header, send.hdr_len);
    }

    // sev_receive_start
    private Errno ReceiveStart(KTask current, ref kvm_sev_cmd cmd)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_receive_start receive);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (receive.pdh_uaddr == 0 || receive.pdh_len == 0 || receive.session_uaddr == 0 || receive.session_len == 0)
        {
            return current.Fail(Errno.EINVAL, ReceiveParameters, receive.session_uaddr, receive.session_len);
        }
        errno = CopyBlob(current, receive.pdh_uaddr, receive.pdh_len, out byte[] pdh);
        byte[] session = [];
        if (errno == Errno.OK)
        {
            errno = CopyBlob(current, receive.session_uaddr, receive.session_len, out session);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        uint handle = receive.handle;
        errno = Amd.IssueCommand(
            current, cmd.sev_fd, PspCommand.RECEIVE_START, () => Psp.ReceiveStart(current, ref handle, receive.policy, pdh, session), ref cmd.error);
        return errno != Errno.OK ? errno : BindGuest(current, ref cmd, handle, receive.policy, receive with { handle = handle });
    }

    // sev_receive_update_data, which answers EINVAL where the others answer ENOTTY.
    private Errno ReceiveUpdateData(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!IsSevGuest)
        {
            return current.Fail(Errno.EINVAL, NotASevGuest, cmd.id);
        }
        Errno errno = CopyParameters(current, cmd, out kvm_sev_receive_update_data receive);
        if (errno != Errno.OK)
        {
            return errno;
        }
        int offset = (int)(receive.guest_uaddr & PageSize.OffsetMask);
        if (receive.hdr_uaddr == 0 || receive.hdr_len == 0 || receive.guest_uaddr == 0 || receive.guest_len == 0 || receive.trans_uaddr == 0 || receive.trans_len == 0
            || (ulong)offset + receive.guest_len > PageSize.Bytes)
        {
            return current.Fail(Errno.EINVAL, ReceiveParameters, receive.guest_uaddr, receive.guest_len);
        }
        errno = CopyBlob(current, receive.hdr_uaddr, receive.hdr_len, out byte[] header);
        byte[] packet = [];
        if (errno == Errno.OK)
        {
            errno = CopyBlob(current, receive.trans_uaddr, receive.trans_len, out packet);
        }
        Pfn[] pages = [];
        if (errno == Errno.OK)
        {
            errno = PinUserRange(current, receive.guest_uaddr, 1, out pages);
        }
        return errno != Errno.OK
            ? errno
            : IssueCommand(
                current, PspCommand.RECEIVE_UPDATE_DATA,
                () => Psp.ReceiveUpdateData(current, _handle, header, packet, pages[0], offset, receive.guest_len), ref cmd.error);
    }
}
