using System.Runtime.CompilerServices;
using SimKvm.Abi;

namespace SimKvm.Tests.Model.Sev;

// The dice of SEND_* and RECEIVE_*.
public sealed partial class SevLaunchFuzzTests
{
    private sealed partial class Run
    {
        public static readonly SevCmdId[] Migration =
        [
            SevCmdId.KVM_SEV_SEND_START, SevCmdId.KVM_SEV_SEND_UPDATE_DATA, SevCmdId.KVM_SEV_SEND_FINISH, SevCmdId.KVM_SEV_SEND_CANCEL, SevCmdId.KVM_SEV_RECEIVE_START,
            SevCmdId.KVM_SEV_RECEIVE_UPDATE_DATA, SevCmdId.KVM_SEV_RECEIVE_FINISH,
        ];

        private void Migrate(SevCmdId id, SevAnswer? refused, bool fd, bool readable)
        {
            Blob first = AnyBlob(52, always: true), second = AnyBlob(128, always: true), third = AnyBlob(64, always: true);
            bool hasGuest = Mostly, guestMapped = Mostly;
            uint offset = Rarely ? 0xff0u : 0, guestLength = Rarely ? 0 : Rarely ? 0x1001u : 64;
            switch (id)
            {
                case SevCmdId.KVM_SEV_SEND_START:
                    var send = new kvm_sev_send_start
                    {
                        pdh_cert_uaddr = Address(first),
                        pdh_cert_len = first.Length,
                        plat_certs_uaddr = Address(second),
                        plat_certs_len = second.Length,
                        amd_certs_uaddr = Address(third),
                        amd_certs_len = third.Length,
                        session_uaddr = hasGuest ? _buffer : 0,
                        session_len = Rarely ? 0 : Rarely ? 127u : Rarely ? 0x4001u : 128,
                    };
                    Check(id, refused ?? _model.SendStart(readable, send.session_len, hasGuest, first, second, third), Send(id, send, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_SEND_UPDATE_DATA or SevCmdId.KVM_SEV_RECEIVE_UPDATE_DATA:
                    var packet = new kvm_sev_send_update_data
                    {
                        hdr_uaddr = Address(first),
                        hdr_len = first.Length,
                        trans_uaddr = Address(second),
                        trans_len = second.Length,
                        guest_uaddr = !hasGuest ? 0 : (guestMapped ? _buffer : Unmapped) + offset,
                        guest_len = guestLength,
                    };
                    if (id == SevCmdId.KVM_SEV_SEND_UPDATE_DATA)
                    {
                        Check(id, refused ?? _model.SendUpdateData(readable, first, second, hasGuest, guestMapped, offset, guestLength), Send(id, packet, fd, readable));
                        break;
                    }
                    // The same fields in the same places.
                    var received = Unsafe.BitCast<kvm_sev_send_update_data, kvm_sev_receive_update_data>(packet);
                    Check(id, refused ?? _model.ReceiveUpdateData(readable, first, second, hasGuest, guestMapped, offset, guestLength), Send(id, received, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_RECEIVE_START:
                    var receive = new kvm_sev_receive_start
                    {
                        handle = Rarely ? 77u : 0,
                        policy = Rarely ? 0x40u : 0,
                        pdh_uaddr = Address(first),
                        pdh_len = first.Length,
                        session_uaddr = Address(second),
                        session_len = second.Length,
                    };
                    Check(id, refused ?? _model.ReceiveStart(readable, fd, receive.handle, receive.policy, first, second), Send(id, receive, fd, readable));
                    break;
                default:
                    Check(id, refused ?? _model.EndMigration(), Send(id, 0UL, fd, readable));
                    break;
            }
        }
    }
}
