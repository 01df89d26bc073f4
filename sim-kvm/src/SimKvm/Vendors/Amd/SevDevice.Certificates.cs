using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// The commands of SEV_ISSUE_CMD that pass certificates and ids (sev_ioctl_do_pek_csr and its neighbours in the ccp driver). Buffers are as long as user space says, up to 16 KiB. What
// firmware refuses leaves them as they were; the lengths that it wants go back whatever it says.
internal sealed partial class SevDevice
{
    // SEV_FW_BLOB_MAX_SIZE
    private const uint MaxBlob = 0x4000;

    private const uint ChipIdSize = 64;

    // The most that kmalloc gives.
    private const uint MaxAllocation = 4 << 20;

    public static readonly Rule PlatformBlob = new(
        "sev.platform.blob", "the address is 0, the length is 0, or it is more than 16 KiB", "psp_copy_user_blob", "give a certificate of 1 to 16384 bytes", "uaddr", "length#");

    public static readonly Rule PlatformBufferTooLong = new(
        "sev.platform.buffer", "the buffer is longer than the driver passes on", "sev_ioctl_do_pdh_export, sev_ioctl_do_pek_csr, sev_ioctl_do_get_id2",
        "give as many bytes as the command asks for when it is given none", "length#", "limit#");

    // sev_ioctl_do_pek_csr
    private Errno PekCsr(KTask current, UserArg data, ref uint error)
    {
        if (IsReadOnly)
        {
            return current.Fail(Errno.EPERM, PlatformReadOnly, (ulong)SevPlatformCommand.SEV_PEK_CSR);
        }
        Errno errno = data.CopyIn(current, out sev_user_data_pek_csr input);
        bool asks = input.address == 0 || input.length == 0;
        if (errno == Errno.OK && !asks && input.length > MaxBlob)
        {
            errno = current.Fail(Errno.EFAULT, PlatformBufferTooLong, input.length, MaxBlob);
        }
        if (errno == Errno.OK)
        {
            errno = Initialise(current, ref error);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        uint length = asks ? 0 : input.length;
        byte[] request = [];
        errno = current.Host.KvmAmd.IssueCommand(current, PspCommand.PEK_CSR, () => current.Machine.Psp.PekCsr(current, ref length, out request), ref error);
        Errno copied = data.CopyOut(current, input with { length = length });
        if (copied == Errno.OK)
        {
            copied = UserArg.FromValue(input.address).CopyOut(current, request.AsSpan());
        }
        return copied != Errno.OK ? copied : errno;
    }

    // sev_ioctl_do_pek_import
    private Errno PekCertImport(KTask current, UserArg data, ref uint error)
    {
        if (IsReadOnly)
        {
            return current.Fail(Errno.EPERM, PlatformReadOnly, (ulong)SevPlatformCommand.SEV_PEK_CERT_IMPORT);
        }
        Errno errno = data.CopyIn(current, out sev_user_data_pek_cert_import input);
        byte[] pek = [], oca = [];
        if (errno == Errno.OK)
        {
            errno = CopyBlob(current, input.pek_cert_address, input.pek_cert_len, out pek);
        }
        if (errno == Errno.OK)
        {
            errno = CopyBlob(current, input.oca_cert_address, input.oca_cert_len, out oca);
        }
        if (errno == Errno.OK)
        {
            errno = Initialise(current, ref error);
        }
        return errno != Errno.OK
            ? errno
            : current.Host.KvmAmd.IssueCommand(current, PspCommand.PEK_CERT_IMPORT, () => current.Machine.Psp.PekCertImport(current, pek, oca), ref error);
    }

    // sev_ioctl_do_pdh_export. A question is one that lacks the first address or length, or the second address.
    private Errno PdhCertExport(KTask current, UserArg data, ref uint error)
    {
        if (IsReadOnly && current.Machine.Psp.Status.State == SevPlatformState.UNINIT)
        {
            return current.Fail(Errno.EPERM, PlatformReadOnly, (ulong)SevPlatformCommand.SEV_PDH_CERT_EXPORT);
        }
        Errno errno = Initialise(current, ref error);
        sev_user_data_pdh_cert_export input = default;
        if (errno == Errno.OK)
        {
            errno = data.CopyIn(current, out input);
        }
        bool asks = input.pdh_cert_address == 0 || input.pdh_cert_len == 0 || input.cert_chain_address == 0;
        if (errno == Errno.OK && !asks && Math.Max(input.pdh_cert_len, input.cert_chain_len) is > MaxBlob and var longest)
        {
            errno = current.Fail(Errno.EFAULT, PlatformBufferTooLong, longest, MaxBlob);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        (uint pdhLength, uint chainLength) = asks ? (0, 0) : (input.pdh_cert_len, input.cert_chain_len);
        byte[] pdh = [], chain = [];
        errno = current.Host.KvmAmd.IssueCommand(
            current, PspCommand.PDH_CERT_EXPORT, () => current.Machine.Psp.PdhCertExport(current, ref pdhLength, ref chainLength, out pdh, out chain), ref error);
        Errno copied = data.CopyOut(current, input with { pdh_cert_len = pdhLength, cert_chain_len = chainLength });
        if (copied == Errno.OK)
        {
            copied = UserArg.FromValue(input.pdh_cert_address).CopyOut(current, pdh.AsSpan());
        }
        if (copied == Errno.OK)
        {
            copied = UserArg.FromValue(input.cert_chain_address).CopyOut(current, chain.AsSpan());
        }
        return copied != Errno.OK ? copied : errno;
    }

    // sev_ioctl_do_get_id, which is deprecated: the id goes where the structure would be.
    private static Errno GetId(KTask current, UserArg data, ref uint error)
    {
        Errno errno = current.Host.KvmAmd.IssueCommand(current, PspCommand.GET_ID, () => SimMachine.Amd.SevStatus.SUCCESS, ref error);
        return errno != Errno.OK ? errno : data.CopyOut(current, current.Machine.Identity.ChipId.Span);
    }

    // sev_ioctl_do_get_id2: the length goes back whatever firmware says.
    private static Errno GetId2(KTask current, UserArg data, ref uint error)
    {
        Errno errno = data.CopyIn(current, out sev_user_data_get_id2 input);
        if (errno != Errno.OK)
        {
            return errno;
        }
        bool asks = input.address == 0 || input.length == 0;
        if (!asks && input.length > MaxAllocation)
        {
            return current.Fail(Errno.ENOMEM, PlatformBufferTooLong, input.length, MaxAllocation);
        }
        bool fits = !asks && input.length >= ChipIdSize;
        errno = current.Host.KvmAmd.IssueCommand(
            current, PspCommand.GET_ID, () => fits ? SimMachine.Amd.SevStatus.SUCCESS : SimMachine.Amd.SevStatus.INVALID_LEN, ref error);
        Errno copied = data.CopyOut(current, input with { length = ChipIdSize });
        if (copied == Errno.OK && errno == Errno.OK)
        {
            copied = UserArg.FromValue(input.address).CopyOut(current, current.Machine.Identity.ChipId.Span);
        }
        return copied != Errno.OK ? copied : errno;
    }

    private static Errno CopyBlob(KTask current, ulong uaddr, uint length, out byte[] blob)
    {
        blob = length > MaxBlob ? [] : new byte[length];
        return blob.Length == 0 ? current.Fail(Errno.EINVAL, PlatformBlob, uaddr, length) : CopyBlob(current, uaddr, blob);
    }

    // psp_copy_user_blob
    private static Errno CopyBlob(KTask current, ulong uaddr, Span<byte> blob) =>
        uaddr == 0 ? current.Fail(Errno.EINVAL, PlatformBlob, uaddr, (ulong)blob.Length) : UserArg.FromValue(uaddr).CopyIn(current, blob);
}
