using System.Buffers.Binary;
using SimMachine.Addressing;
using SimMachine.Amd.Legacy;
using SimMachine.Stepping;

namespace SimMachine.Amd;

// SEND_* and RECEIVE_* (55766, chapter 6): a guest of SEV leaves for another machine. The two firmwares agree on transport keys by their Diffie-Hellman keys, as an owner and a
// firmware do at launch; packets have the form of secrets. Which status comes first where two would do is an assumption, and so is what becomes of a guest that was sent.
public sealed partial class Psp
{
    public static readonly Rule SendForbidden = new("psp.sev.nosend", "the policy forbids sending the guest", "55766, SEND_START: NOSEND", "launch without policy bit 3", "policy");

    public static readonly Rule SessionLength = new(
        "psp.sev.session-length", "the buffer is too small for the session; its size comes back", "55766, SEND_START", "give 128 bytes", "length#", "needed#");

    public static readonly Rule TargetCertificates = new(
        "psp.sev.target-certificates", "the certificates of the other platform do not end at each other: PDH, PEK, OCA and CEK", "55766, SEND_START",
        "give what PDH_CERT_EXPORT says there: its PDH, and the chain of 6252 bytes", "pdh_length#", "chain_length#");

    public static readonly Rule TargetNotAmd = new(
        "psp.sev.target-authority", "the policy allows platforms of AMD only, and the other's CEK is not signed by its authority", "55766, SEND_START: SEV",
        "put the CEK that AMD signed into the chain (AttestationService.GetSevCek), or launch without policy bit 5", "policy");

    public static readonly Rule TargetNotInDomain = new(
        "psp.sev.target-domain", "the policy allows platforms of the same owner only", "55766, SEND_START: DOMAIN", "import PEKs that one OCA signed on both, or launch without policy bit 4", "policy");

    public static readonly Rule PacketLength = new(
        "psp.sev.packet-length", "a buffer is too small for the packet, or a length is no multiple of 16; the sizes come back", "55766, SEND_UPDATE_DATA, RECEIVE_UPDATE_DATA",
        "give 52 bytes for the header and as many for the packet as for the guest's memory", "header_length#", "packet_length#", "guest_length#");

    public static readonly Rule BadPacket = new(
        "psp.sev.packet", "the packet's MAC is wrong, or it is compressed", "55766, RECEIVE_UPDATE_DATA", "pass what SEND_UPDATE_DATA gave, in the session of RECEIVE_START", "flags", "guest_length#");

    /// <summary>SEND_START (0x40): a session for the firmware that the guest goes to.</summary>
    /// <param name="pdh">The other platform's Diffie-Hellman certificate.</param>
    /// <param name="chain">Its PEK, OCA and CEK.</param>
    /// <param name="length">In: bytes of the buffer. Out: bytes of the session.</param>
    public SevStatus SendStart(
        SimThread thread, uint handle, ReadOnlySpan<byte> pdh, ReadOnlySpan<byte> chain, ref uint length, out uint policy, out byte[] session)
    {
        (policy, session) = (0, []);
        SevStatus status = EnterSev(thread, PspCommand.SEND_START, handle, SevGuestState.RUNNING, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        uint given = length;
        length = SevSession.BlobSize;
        if (given < SevSession.BlobSize)
        {
            return thread.Fail(SevStatus.INVALID_LEN, SessionLength, given, SevSession.BlobSize);
        }
        if ((guest.Policy & SevPolicy.NOSEND) != 0)
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, SendForbidden, guest.Policy);
        }
        status = CheckTarget(thread, guest.Policy, pdh, chain);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        // The certificate was read by the check before.
        TryAgree(pdh, out byte[] z);
        byte[] nonce = new byte[SevSession.KeySize], iv = new byte[SevSession.KeySize], tek = new byte[SevSession.KeySize], tik = new byte[SevSession.KeySize];
        _machine.Entropy.Draw("sev send nonce", nonce);
        _machine.Entropy.Draw("sev send iv", iv);
        _machine.Entropy.Draw("sev send tek", tek);
        _machine.Entropy.Draw("sev send tik", tik);
        (guest.Tek, guest.Tik) = (tek, tik);
        guest.State = SevGuestState.SEND_UPDATE;
        policy = guest.Policy;
        session = SevSession.Wrap(z, nonce, iv, tek, tik, guest.Policy);
        return SevStatus.SUCCESS;
    }

    /// <summary>SEND_UPDATE_DATA (0x41): a piece of the guest's memory, encrypted for the other firmware. The memory stays.</summary>
    /// <param name="headerLength">In: bytes of the buffer. Out: bytes of the header.</param>
    /// <param name="packetLength">The same, of the packet.</param>
    public SevStatus SendUpdateData(
        SimThread thread, uint handle, Pfn page, int offset, int length, ref uint headerLength, ref uint packetLength, out byte[] header, out byte[] packet)
    {
        header = packet = [];
        SevStatus status = EnterSev(thread, PspCommand.SEND_UPDATE_DATA, handle, SevGuestState.SEND_UPDATE, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        (uint headerGiven, uint packetGiven) = (headerLength, packetLength);
        (headerLength, packetLength) = (SevSession.HeaderSize, (uint)length);
        if (headerGiven < SevSession.HeaderSize || packetGiven < length || length == 0 || length % SevBlock != 0)
        {
            return thread.Fail(SevStatus.INVALID_LEN, PacketLength, headerGiven, packetGiven, (ulong)length);
        }
        if (offset % SevBlock != 0)
        {
            return thread.Fail(SevStatus.INVALID_ADDRESS, UnalignedUpdate, page.ToAddress() + (ulong)offset, (ulong)length);
        }
        Span<byte> bytes = stackalloc byte[PageSize.Bytes];
        bytes = bytes[..length];
        _machine.Memory.Read(page, offset, bytes, guest.Key);
        Span<byte> iv = stackalloc byte[SevSession.KeySize];
        _machine.Entropy.Draw("sev packet iv", iv);
        (header, packet) = SevSession.SealData(guest.Tek, guest.Tik, iv, bytes);
        return SevStatus.SUCCESS;
    }

    /// <summary>SEND_FINISH (0x43): the guest is gone; only its end is left.</summary>
    public SevStatus SendFinish(SimThread thread, uint handle) => Leave(thread, PspCommand.SEND_FINISH, handle, SevGuestState.SEND_UPDATE, SevGuestState.SENT);

    /// <summary>SEND_CANCEL (0x44): the guest stays.</summary>
    public SevStatus SendCancel(SimThread thread, uint handle) => Leave(thread, PspCommand.SEND_CANCEL, handle, SevGuestState.SEND_UPDATE, SevGuestState.RUNNING);

    /// <summary>RECEIVE_START (0x50): a new guest with the session of another firmware's SEND_START.</summary>
    /// <param name="handle">In: 0 for a key of its own, or the guest whose key to share. Out: the new guest.</param>
    /// <param name="pdh">The sending platform's Diffie-Hellman certificate.</param>
    /// <param name="session">128 bytes.</param>
    public SevStatus ReceiveStart(SimThread thread, ref uint handle, uint policy, ReadOnlySpan<byte> pdh, ReadOnlySpan<byte> session) =>
        CreateGuest(thread, PspCommand.RECEIVE_START, SevGuestState.RECEIVE_UPDATE, ref handle, policy, pdh, session);

    /// <summary>RECEIVE_UPDATE_DATA (0x51): decrypts a packet into the guest's memory.</summary>
    public SevStatus ReceiveUpdateData(SimThread thread, uint handle, ReadOnlySpan<byte> header, ReadOnlySpan<byte> packet, Pfn page, int offset, uint guestLength)
    {
        SevStatus status = EnterSev(thread, PspCommand.RECEIVE_UPDATE_DATA, handle, SevGuestState.RECEIVE_UPDATE, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (header.Length != SevSession.HeaderSize || guestLength % SevBlock != 0 || packet.Length != guestLength)
        {
            return thread.Fail(SevStatus.INVALID_LEN, PacketLength, (ulong)header.Length, (ulong)packet.Length, guestLength);
        }
        if (offset % SevBlock != 0)
        {
            return thread.Fail(SevStatus.INVALID_ADDRESS, UnalignedUpdate, page.ToAddress() + (ulong)offset, guestLength);
        }
        uint flags = BinaryPrimitives.ReadUInt32LittleEndian(header);
        if (flags != 0)
        {
            return thread.Fail(SevStatus.UNSUPPORTED, BadPacket, flags, guestLength);
        }
        if (!SevSession.TryOpenData(guest.Tek, guest.Tik, header, packet, guestLength, out byte[] data))
        {
            return thread.Fail(SevStatus.BAD_MEASUREMENT, BadPacket, flags, guestLength);
        }
        WriteGuestMemory(guest, page, offset, data);
        return SevStatus.SUCCESS;
    }

    /// <summary>RECEIVE_FINISH (0x53): the guest can run.</summary>
    public SevStatus ReceiveFinish(SimThread thread, uint handle) => Leave(thread, PspCommand.RECEIVE_FINISH, handle, SevGuestState.RECEIVE_UPDATE, SevGuestState.RUNNING);

    private SevStatus Leave(SimThread thread, PspCommand command, uint handle, SevGuestState from, SevGuestState to)
    {
        SevStatus status = EnterSev(thread, command, handle, from, out SevGuest guest);
        if (status == SevStatus.SUCCESS)
        {
            guest.State = to;
        }
        return status;
    }

    // Firmware trusts its own authority, so it needs no certificates to know the CEK's signature.
    private SevStatus CheckTarget(SimThread thread, uint policy, ReadOnlySpan<byte> pdhBytes, ReadOnlySpan<byte> chain)
    {
        const int size = SevCertificate.Size;
        if (chain.Length != CertificateChainSize || !SevCertificate.TryRead(pdhBytes, out SevCertificate pdh)
            || !SevCertificate.TryRead(chain[..size], out SevCertificate pek) || !SevCertificate.TryRead(chain[size..(2 * size)], out SevCertificate oca)
            || !SevCertificate.TryRead(chain[(2 * size)..], out SevCertificate cek)
            || !pdh.IsSignedBy(SevKeyUsage.PEK, pek) || !pek.IsSignedBy(SevKeyUsage.OCA, oca) || !oca.IsSignedBy(SevKeyUsage.OCA, oca) || !pek.IsSignedBy(SevKeyUsage.CEK, cek))
        {
            return thread.Fail(SevStatus.INVALID_CERTIFICATE, TargetCertificates, (ulong)pdhBytes.Length, (ulong)chain.Length);
        }
        if ((policy & SevPolicy.SEV) != 0 && !_machine.Identity.Authority.HasSigned(cek))
        {
            return thread.Fail(SevStatus.BAD_SIGNATURE, TargetNotAmd, policy);
        }
        if ((policy & SevPolicy.DOMAIN) != 0 && !oca.SaysTheSameAs(OcaCertificate))
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, TargetNotInDomain, policy);
        }
        return SevStatus.SUCCESS;
    }

    private SevStatus EnterSev(SimThread thread, PspCommand command, uint handle, SevGuestState state, out SevGuest guest)
    {
        SevStatus status = EnterSev(thread, command, handle, out guest);
        return status == SevStatus.SUCCESS && guest.State != state
            ? thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongSevState, (ulong)command, (ulong)guest.State)
            : status;
    }
}
