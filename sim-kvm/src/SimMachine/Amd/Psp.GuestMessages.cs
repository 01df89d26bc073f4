using System.Buffers.Binary;
using System.Runtime.InteropServices;
using SimMachine.Addressing;
using SimMachine.Amd.Attestation;
using SimMachine.Stepping;

namespace SimMachine.Amd;

// SNP_GUEST_REQUEST (56860, guest messages): what a running guest asks firmware for, behind the hypervisor's back. The envelope is GuestMessage; here are its
// checks, and the answers: reports, derived keys, TSC.
public sealed partial class Psp
{
    /// <summary>Status inside a response; the command itself succeeds.</summary>
    public enum MessageStatus : uint
    {
        SUCCESS = 0,
        INVALID_PARAM = 0x16,
        INVALID_KEY = 0x27,
    }

    private const int ReportRequestSize = 96;
    private const int ReportResponseOffset = 0x20;
    private const int KeyRequestSize = 32;
    private const int KeyRequestSizeWithVector = 40;
    private const int KeyResponseSize = 64;
    private const int KeyResponseOffset = 0x20;
    private const int TscInfoSize = 128;

    private const string Source = "56860, guest messages";

    public static readonly Rule MessageHeader = new(
        "psp.guest-request.header", "the header of the message has a form that firmware does not know", Source,
        "use algo 1 (AES-256-GCM), hdr_version 1, hdr_sz 0x60, msg_version 1, zeros in reserved fields, and a size that fits the page",
        "algo#", "hdr_version#", "hdr_sz", "msg_version#", "msg_sz");

    public static readonly Rule MessageVmpck = new(
        "psp.guest-request.vmpck", "there are VMPCK0 to VMPCK3", Source, "name the key of the VMPL that sends the message", "msg_vmpck#");

    public static readonly Rule MessageType = new(
        "psp.guest-request.type", "the type of the message is no request, or not modelled", Source,
        "use MSG_KEY_REQ (3), MSG_REPORT_REQ (5) or MSG_TSC_INFO_REQ (17)", "msg_type#");

    public static readonly Rule MessageCountExhausted = new(
        "psp.guest-request.exhausted", "the sequence numbers of this VMPCK are used up", Source,
        "use another VMPCK; with the next number a nonce would be used twice", "msg_vmpck#", "count");

    public static readonly Rule MessageSequence = new(
        "psp.guest-request.sequence", "the sequence number must be one more than that of the last response", Source,
        "count every request and every response that firmware accepted; a refused request does not count", "msg_seqno#", "expected#");

    public static readonly Rule MessageAuthentication = new(
        "psp.guest-request.authtag", "the message was not sealed with this VMPCK, or was changed since", Source,
        "take the key from the guest's secrets page; authenticate header bytes 0x30 to 0x5f, with the sequence number and four zero bytes as nonce",
        "msg_vmpck#", "msg_seqno#");

    public static readonly Rule MessagePayloadSize = new(
        "psp.guest-request.payload-size", "the payload has another size than its type", Source,
        "MSG_KEY_REQ has 32 bytes, or 40 since firmware 1.58, MSG_REPORT_REQ 96, MSG_TSC_INFO_REQ 128", "msg_type#", "msg_sz#");

    public static readonly Rule MessagePayloadReserved = new(
        "psp.guest-request.payload-reserved", "reserved bits of the payload must be zero", Source, "zero the payload before filling it", "msg_type#", "offset");

    public static readonly Rule VmplDenied = new(
        "psp.guest-message.vmpl", "the VMPL asked for must be that of the VMPCK or less privileged, and at most 3", Source,
        "ask with the VMPCK of a VMPL that is at least as privileged", "vmpl#", "msg_vmpck#");

    public static readonly Rule KeySelectionUnknown = new(
        "psp.guest-message.key-select", "KEY_SEL must be 0, 1 or 2", Source, "use 0 for the VLEK if there is one, 1 for the VCEK, 2 for the VLEK", "key_sel#");

    public static readonly Rule KeyNotAvailable = new(
        "psp.guest-message.key-unavailable", "the selected key cannot be used: no VLEK is loaded, or the launch disabled the VCEK", Source,
        "select another key; load a VLEK with the host's vlek_csp_id, or launch without vcek_disabled", "key_sel#", "vlek_loaded#", "vcek_disabled#");

    public static readonly Rule DerivedKeySelection = new(
        "psp.guest-message.key-fields", "ROOT_KEY_SELECT or GUEST_FIELD_SELECT has bits without a meaning", Source,
        "use root 0 or 1, and field bits 0 to 5; bit 6, the launch mitigation vector, exists since firmware 1.58", "root_key_select", "guest_field_select");

    public static readonly Rule DerivedKeySvn = new(
        "psp.guest-message.key-svn", "the GUEST_SVN of a derived key must not be above the guest's", Source,
        "use the SVN of the ID block, 0 without one, or a lower one", "guest_svn#", "guest#");

    public static readonly Rule DerivedKeyTcb = new(
        "psp.guest-message.key-tcb", "no part of the TCB_VERSION of a derived key may be newer than the committed one's", Source,
        "use COMMITTED_TCB of a report, or an older version", "tcb_version", "committed_tcb");

    /// <summary>
    /// SNP_GUEST_REQUEST (0x94): opens a guest's message and seals the answer. A refused request leaves the counter as it was and the response page untouched;
    /// a request that is understood and denied is answered, with a status inside.
    /// </summary>
    /// <param name="thread">Who issues the command.</param>
    /// <param name="gctx">The guest's context.</param>
    /// <param name="request">4096 bytes.</param>
    /// <param name="response">4096 bytes; another page than the request.</param>
    /// <returns>
    /// INVALID_GUEST_STATE before LAUNCH_FINISH; INVALID_PARAM for headers, sequence numbers and payloads that cannot be; BAD_MEASUREMENT for a tag that does
    /// not match; AEAD_OFLOW where the counter is exhausted. Which status it is among several is an assumption (snp.md 11.1).
    /// </returns>
    public SevStatus SnpGuestRequest(SimThread thread, Pfn gctx, ReadOnlySpan<byte> request, Span<byte> response)
    {
        SevStatus status = Enter(thread, PspCommand.SNP_GUEST_REQUEST, gctx, out GuestContext guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State != GuestContextState.Running)
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongGuestState, (ulong)PspCommand.SNP_GUEST_REQUEST, (ulong)guest.State);
        }
        if (request.Length != GuestMessage.PageSize || response.Length != GuestMessage.PageSize)
        {
            throw new ArgumentException($"request and response are pages of {GuestMessage.PageSize} bytes");
        }
        status = OpenRequest(thread, guest, request, out snp_guest_msg_hdr header, out byte[] payload);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        var type = (GuestMessageType)header.msg_type;
        byte[] answer = type switch
        {
            GuestMessageType.REPORT_REQ => AnswerReport(thread, guest, header.msg_vmpck, payload),
            GuestMessageType.KEY_REQ => AnswerKey(thread, guest, header.msg_vmpck, payload),
            _ => AnswerTscInfo(),
        };
        GuestMessage.Seal(response, KeyOf(guest, header.msg_vmpck), header.msg_vmpck, header.msg_seqno + 1, type + 1, answer);
        guest.MessageCounts[header.msg_vmpck] = header.msg_seqno + 1;
        return SevStatus.SUCCESS;
    }

    /// <summary>
    /// What software in the guest would do to ask firmware: takes the key and the count, seals the request, issues SNP_GUEST_REQUEST, opens the response. For
    /// tools; a guest program does it itself, through the GHCB. The guest's count is left as it was, so that its own messages stay in step.
    /// </summary>
    /// <param name="thread">Who issues the command.</param>
    /// <param name="gctx">The guest's context.</param>
    /// <param name="vmpck">0 to 3.</param>
    /// <param name="type">A request.</param>
    /// <param name="payload">Its payload.</param>
    /// <param name="answer">The payload of the response; empty unless the answer is SUCCESS.</param>
    public SevStatus AskAsGuest(SimThread thread, Pfn gctx, byte vmpck, GuestMessageType type, ReadOnlySpan<byte> payload, out byte[] answer)
    {
        answer = [];
        // A guest that is not there has no key; firmware says so whatever the message.
        bool exists = _guests.TryGetValue(gctx.Value, out GuestContext? guest) && vmpck < guest.MessageCounts.Length;
        byte[] key = exists ? KeyOf(guest!, vmpck).ToArray() : new byte[SecretsPage.VmpckSize];
        ulong count = exists ? guest!.MessageCounts[vmpck] : 0;
        byte[] request = new byte[GuestMessage.PageSize], response = new byte[GuestMessage.PageSize];
        GuestMessage.Seal(request, key, vmpck, count + 1, type, payload);
        SevStatus status = SnpGuestRequest(thread, gctx, request, response);
        if (status == SevStatus.SUCCESS)
        {
            answer = GuestMessage.Open(response, key)!;
            guest!.MessageCounts[vmpck] = count;
        }
        return status;
    }

    /// <summary>The sequence numbers last seen, by VMPCK; for tests, which cannot send 2^63 messages.</summary>
    internal ulong[] MessageCounts(Pfn gctx) => _guests[gctx.Value].MessageCounts;

    // They came with firmware 1.58, and a field of MSG_KEY_REQ with them. A host that reports them by its configuration has them too.
    private bool HasMitigationVectors => _machine.Config is { ReportVersion: >= 5 } or { ApiMajor: > 1 } or { ApiMajor: 1, ApiMinor: >= 58 };

    private SevStatus OpenRequest(SimThread thread, GuestContext guest, ReadOnlySpan<byte> request, out snp_guest_msg_hdr header, out byte[] payload)
    {
        payload = [];
        header = MemoryMarshal.Read<snp_guest_msg_hdr>(request);
        bool reserved = header.rsvd1 != 0 || header.rsvd2 != 0 || ((ReadOnlySpan<byte>)header.rsvd3).IndexOfAnyExcept((byte)0) >= 0;
        if (header.algo != GuestMessage.Aes256Gcm || header.hdr_version != GuestMessage.HeaderVersion || header.hdr_sz != snp_guest_msg_hdr.Size
            || header.msg_version != GuestMessage.MessageVersion || header.msg_sz > GuestMessage.MaxPayload || reserved)
        {
            return thread.Fail(
                SevStatus.INVALID_PARAM, MessageHeader, header.algo, header.hdr_version, header.hdr_sz, header.msg_version, header.msg_sz);
        }
        byte vmpck = header.msg_vmpck;
        if (vmpck >= guest.MessageCounts.Length)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, MessageVmpck, vmpck);
        }
        var type = (GuestMessageType)header.msg_type;
        if (type is not (GuestMessageType.REPORT_REQ or GuestMessageType.KEY_REQ or GuestMessageType.TSC_INFO_REQ))
        {
            return thread.Fail(SevStatus.INVALID_PARAM, MessageType, header.msg_type);
        }
        ulong count = guest.MessageCounts[vmpck];
        if (count > ulong.MaxValue - 2)
        {
            return thread.Fail(SevStatus.AEAD_OFLOW, MessageCountExhausted, vmpck, count);
        }
        if (header.msg_seqno != count + 1)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, MessageSequence, header.msg_seqno, count + 1);
        }
        if (GuestMessage.Open(request, KeyOf(guest, vmpck)) is not { } opened)
        {
            return thread.Fail(SevStatus.BAD_MEASUREMENT, MessageAuthentication, vmpck, header.msg_seqno);
        }
        bool sizeFits = type switch
        {
            GuestMessageType.REPORT_REQ => opened.Length == ReportRequestSize,
            GuestMessageType.KEY_REQ => opened.Length == KeyRequestSize || (opened.Length == KeyRequestSizeWithVector && HasMitigationVectors),
            _ => opened.Length == TscInfoSize,
        };
        if (!sizeFits)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, MessagePayloadSize, header.msg_type, header.msg_sz);
        }
        if (FirstReservedByte(type, opened) is { } offset)
        {
            return thread.Fail(SevStatus.INVALID_PARAM, MessagePayloadReserved, header.msg_type, (ulong)offset);
        }
        payload = opened;
        return SevStatus.SUCCESS;
    }

    // Where the payload has something that must be zero.
    private static int? FirstReservedByte(GuestMessageType type, ReadOnlySpan<byte> payload)
    {
        const int keySelOffset = 0x44;
        const byte keySelMask = 3;
        (int start, int end) = type switch
        {
            GuestMessageType.REPORT_REQ => (keySelOffset + 1, ReportRequestSize),
            GuestMessageType.KEY_REQ => (4, 8),
            _ => (0, TscInfoSize),
        };
        if (type == GuestMessageType.REPORT_REQ && (payload[keySelOffset] & ~keySelMask) != 0)
        {
            return keySelOffset;
        }
        int index = payload[start..end].IndexOfAnyExcept((byte)0);
        return index < 0 ? null : start + index;
    }

    private byte[] AnswerReport(SimThread thread, GuestContext guest, byte vmpck, ReadOnlySpan<byte> request)
    {
        byte[] answer = new byte[ReportResponseOffset + AttestationReport.Size];
        uint vmpl = BinaryPrimitives.ReadUInt32LittleEndian(request[0x40..]);
        uint selection = BinaryPrimitives.ReadUInt32LittleEndian(request[0x44..]);
        if (!IsVmplAllowed(vmpl, vmpck))
        {
            return Deny(thread, answer, MessageStatus.INVALID_PARAM, VmplDenied, vmpl, vmpck);
        }
        if (selection > (uint)KeySelection.VLEK)
        {
            return Deny(thread, answer, MessageStatus.INVALID_PARAM, KeySelectionUnknown, selection);
        }
        if (!_machine.Identity.TrySelect((KeySelection)selection, guest.VcekDisabled, out EndorsementKey? key))
        {
            return Deny(thread, answer, MessageStatus.INVALID_KEY, KeyNotAvailable, selection, IsVlekLoaded, guest.VcekDisabled ? 1u : 0);
        }
        BinaryPrimitives.WriteInt32LittleEndian(answer.AsSpan(4), AttestationReport.Size);
        MemoryMarshal.Write(answer.AsSpan(ReportResponseOffset), Report(guest, vmpl, request[..64], key));
        return answer;
    }

    private uint IsVlekLoaded => _machine.Identity.Vlek is null ? 0u : 1;

    private static bool IsVmplAllowed(uint vmpl, byte vmpck) => vmpl >= vmpck && vmpl <= 3;

    // The command succeeds and the answer says no; the reason is kept for whoever looks at the call.
    private static byte[] Deny(SimThread thread, byte[] answer, MessageStatus status, Rule rule, params ReadOnlySpan<ulong> operands)
    {
        thread.Refuse(rule, $"{status} 0x{(uint)status:x}", operands);
        BinaryPrimitives.WriteUInt32LittleEndian(answer, (uint)status);
        return answer;
    }

    private byte[] AnswerKey(SimThread thread, GuestContext guest, byte vmpck, ReadOnlySpan<byte> payload)
    {
        byte[] answer = new byte[KeyResponseSize];
        DerivedKeyRequest request = DerivedKeyRequest.Read(payload);
        EpycProduct product = _machine.Config.Product;
        TcbVersion committed = _machine.Identity.CommittedTcb;
        if (!request.IsKnown(HasMitigationVectors))
        {
            return Deny(thread, answer, MessageStatus.INVALID_PARAM, DerivedKeySelection, request.RootKeySelect, request.FieldSelect);
        }
        if (!IsVmplAllowed(request.Vmpl, vmpck))
        {
            return Deny(thread, answer, MessageStatus.INVALID_PARAM, VmplDenied, request.Vmpl, vmpck);
        }
        if (request.GuestSvn > guest.IdBlock.GuestSvn)
        {
            return Deny(thread, answer, MessageStatus.INVALID_PARAM, DerivedKeySvn, request.GuestSvn, guest.IdBlock.GuestSvn);
        }
        bool reserved = (request.TcbVersion & TcbVersion.ReservedBits(product)) != 0;
        if (reserved || !TcbVersion.Decode(product, request.TcbVersion).IsWithin(committed))
        {
            return Deny(thread, answer, MessageStatus.INVALID_PARAM, DerivedKeyTcb, request.TcbVersion, committed.Encode(product));
        }
        Span<byte> root = stackalloc byte[32];
        if (request.FromVmrk)
        {
            guest.Vmrk.CopyTo(root);
        }
        else if (_machine.Identity.TrySelect(KeySelection.VLEK_IF_LOADED, guest.VcekDisabled, out EndorsementKey? key))
        {
            // The root belongs to the chip or the provider and not to a TCB version, which is mixed in where it is selected.
            _machine.Entropy.Derive(key.Kind == EndorsementKeyKind.Vlek ? $"derived-key-root/vlek/{_machine.Identity.VlekCspId}" : "derived-key-root/vcek", root);
        }
        else
        {
            return Deny(thread, answer, MessageStatus.INVALID_KEY, KeyNotAvailable, (ulong)KeySelection.VLEK_IF_LOADED, IsVlekLoaded, 1);
        }
        request.Derive(root, guest).CopyTo(answer, KeyResponseOffset);
        return answer;
    }

    // The guest's TSC runs as the host's: a factor of one (8.32 fixed point), no offset.
    private static byte[] AnswerTscInfo()
    {
        byte[] answer = new byte[TscInfoSize];
        BinaryPrimitives.WriteUInt64LittleEndian(answer.AsSpan(8), 1UL << 32);
        return answer;
    }

    private static ReadOnlySpan<byte> KeyOf(GuestContext guest, byte vmpck) => guest.Vmpck.AsSpan(vmpck * SecretsPage.VmpckSize, SecretsPage.VmpckSize);
}
