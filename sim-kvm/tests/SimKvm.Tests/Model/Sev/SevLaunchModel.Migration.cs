using SimMachine.Amd;
using SimMachine.Amd.Legacy;

namespace SimKvm.Tests.Model.Sev;

// SEND_* and RECEIVE_*. The certificates and packets of this test are nonsense, so no guest ever leaves or comes.
internal sealed partial class SevLaunchModel
{
    private const uint NoSend = 8;

    public SevAnswer SendStart(bool readable, uint sessionLength, bool hasSession, Blob pdh, Blob chain, Blob authority)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (sessionLength != 0)
        {
            if (!pdh.Given || pdh.Length == 0 || !hasSession || sessionLength > 0x4000)
                return Errno.EINVAL;
            if ((pdh.Copy() ?? chain.Copy() ?? authority.Copy()) is { } bad)
                return bad;
        }
        if (_handle == 0)
            return Errno.EBADF;
        if (_state != SevGuestState.RUNNING)
            return SevStatus.INVALID_GUEST_STATE;
        if (sessionLength < 128)
            return SevStatus.INVALID_LEN;
        return (_policy & NoSend) != 0 ? SevStatus.POLICY_FAILURE : SevStatus.INVALID_CERTIFICATE;
    }

    public SevAnswer SendUpdateData(bool readable, Blob header, Blob packet, bool hasGuest, bool guestMapped, uint offset, uint guestLength)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (header.Length != 0 && packet.Length != 0)
        {
            if (!packet.Given || !hasGuest || guestLength == 0 || !header.Given || offset + guestLength > 4096)
                return Errno.EINVAL;
            if (!guestMapped)
                return Errno.ENOMEM;
        }
        return NotMigrating();
    }

    public SevAnswer ReceiveStart(bool readable, bool fd, uint handle, uint policy, Blob pdh, Blob session)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (!pdh.Given || pdh.Length == 0 || !session.Given || session.Length == 0)
            return Errno.EINVAL;
        // A session that is there is all that keeps RECEIVE_START from being LAUNCH_START.
        return LaunchStart(readable, fd, handle, policy, pdh, session);
    }

    public SevAnswer ReceiveUpdateData(bool readable, Blob header, Blob packet, bool hasGuest, bool guestMapped, uint offset, uint guestLength)
    {
        if (!_active)
            return Errno.EINVAL;
        if (!readable)
            return Errno.EFAULT;
        if (!header.Given || header.Length == 0 || !packet.Given || packet.Length == 0 || !hasGuest || guestLength == 0 || offset + guestLength > 4096)
            return Errno.EINVAL;
        if ((header.Copy() ?? packet.Copy()) is { } bad)
            return bad;
        return guestMapped ? NotMigrating() : Errno.ENOMEM;
    }

    /// <summary>SEND_FINISH, SEND_CANCEL and RECEIVE_FINISH.</summary>
    public SevAnswer EndMigration() => _active ? NotMigrating() : Errno.ENOTTY;

    private SevAnswer NotMigrating() => _handle == 0 ? Errno.EBADF : SevStatus.INVALID_GUEST_STATE;
}
