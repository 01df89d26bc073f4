using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Amd;

namespace SimKvm.Vendors.Amd;

// KVM_SEV_GET_ATTESTATION_REPORT, of SEV and SEV-ES guests.
internal sealed partial class SevBackend
{
    // sev_get_attestation_report. Length 0 asks for the length, which goes back with the error; otherwise it goes back with a report only.
    private unsafe Errno GetAttestationReport(KTask current, ref kvm_sev_cmd cmd)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_attestation_report parameters);
        if (errno == Errno.OK && parameters.uaddr != 0 && parameters.len > MaxBlob)
        {
            errno = current.Fail(Errno.EINVAL, BadBlob, parameters.uaddr, parameters.len);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        uint length = parameters.uaddr != 0 ? parameters.len : 0;
        byte[] nonce = Bytes(parameters.mnonce, 16).ToArray(), report = [];
        errno = IssueCommand(current, PspCommand.ATTESTATION_REPORT, () => Psp.LegacyReport(current, _handle, nonce, ref length, out report), ref cmd.error);
        return FinishBlob(current, errno, parameters.uaddr, parameters.len, report, cmd.data, parameters with { len = length });
    }

    // How commands end that give a blob: it goes to user space with zeros behind it, as many bytes as were asked for; the structure with the length goes back with it, or where the
    // length was asked for.
    private static Errno FinishBlob<T>(KTask current, Errno errno, ulong uaddr, uint asked, byte[] blob, ulong data, T parameters)
        where T : unmanaged
    {
        if (errno != Errno.OK && asked != 0)
        {
            return errno;
        }
        if (errno == Errno.OK)
        {
            errno = CopyOutPadded(current, uaddr, blob, asked);
        }
        Errno copied = UserArg.FromValue(data).CopyOut(current, parameters);
        return copied != Errno.OK ? copied : errno;
    }

    // A kernel buffer of that length, with the blob at its beginning.
    private static Errno CopyOutPadded(KTask current, ulong uaddr, byte[] blob, uint length)
    {
        byte[] padded = new byte[length];
        blob.CopyTo(padded, 0);
        return UserArg.FromValue(uaddr).CopyOut(current, padded.AsSpan());
    }
}
