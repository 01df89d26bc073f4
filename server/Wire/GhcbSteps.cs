using SimMachine.Amd.Attestation;
using GuestGhcbCall = SimKvm.Vendors.Amd.Guests.GuestGhcbCall;
using GuestMessageOutcome = SimKvm.Vendors.Amd.Guests.GuestMessageOutcome;
using GuestPageStateChange = SimKvm.Vendors.Amd.Guests.GuestPageStateChange;
using GuestSnpRequest = SimKvm.Vendors.Amd.Guests.GuestSnpRequest;
using PageStateEntry = SimKvm.Vendors.Amd.Guests.PageStateEntry;

namespace VmmService.Server.Wire;

/// <summary>Steps of SEV-ES and SNP guests that go through a GHCB, and what they brought.</summary>
internal static class GhcbSteps
{
    private const ulong PageMask = 0xfff;
    private const int MaxEntries = 65536;
    private const int MaxGfnBits = 40;
    private const uint MaxVmpck = 3;

    public static GuestGhcbCall ToCall(string field, V1.GuestGhcbCall call)
    {
        if (call.SharedBuffer.Length > GuestGhcbCall.MaxBuffer)
        {
            throw Refusals.BadField($"{field}.shared_buffer", $"{call.SharedBuffer.Length} bytes; a GHCB has room for {GuestGhcbCall.MaxBuffer}");
        }
        if (call.Cpl > byte.MaxValue)
        {
            throw Refusals.BadField($"{field}.cpl", $"{call.Cpl} is no byte");
        }
        return new GuestGhcbCall(Page($"{field}.ghcb_gpa", call.GhcbGpa), call.ExitCode, call.ExitInfo1, call.ExitInfo2)
        {
            Rax = call.HasRax ? call.Rax : null,
            Rbx = call.HasRbx ? call.Rbx : null,
            Rcx = call.HasRcx ? call.Rcx : null,
            Rdx = call.HasRdx ? call.Rdx : null,
            Rsi = call.HasRsi ? call.Rsi : null,
            Cpl = call.HasCpl ? (byte)call.Cpl : null,
            Xcr0 = call.HasXcr0 ? call.Xcr0 : null,
            Scratch = call.HasScratch ? call.Scratch : null,
            SharedBuffer = call.SharedBuffer.Memory,
            Usage = call.Usage,
        };
    }

    public static GuestPageStateChange ToPageStateChange(string field, V1.GuestPageStateChange change)
    {
        if (change.Entries.Count is 0 or > MaxEntries)
        {
            throw Refusals.BadField($"{field}.entries", $"{change.Entries.Count} were given; use 1 to {MaxEntries}");
        }
        var entries = new PageStateEntry[change.Entries.Count];
        for (int i = 0; i < entries.Length; i++)
        {
            V1.PageStateEntry entry = change.Entries[i];
            if (entry.Gfn >> MaxGfnBits != 0 || entry.Operation > 0xf || entry.CurPage > 0xfff)
            {
                throw Refusals.BadField($"{field}.entries[{i}]", "an entry has 40 bits for gfn, 4 for operation and 12 for cur_page");
            }
            entries[i] = new PageStateEntry(entry.Gfn, (int)entry.Operation, entry.Large, (int)entry.CurPage);
        }
        return new GuestPageStateChange(Page($"{field}.ghcb_gpa", change.GhcbGpa), entries, change.Validate);
    }

    public static GuestSnpRequest ToRequest(string field, V1.GuestSnpRequest request)
    {
        if (request.Vmpck > MaxVmpck)
        {
            throw Refusals.BadField($"{field}.vmpck", $"{request.Vmpck} is no VMPCK; use 0 to {MaxVmpck}");
        }
        if (request.MessageType > byte.MaxValue)
        {
            throw Refusals.BadField($"{field}.message_type", $"{request.MessageType} is no byte");
        }
        if (request.Payload.Length > GuestMessage.MaxPayload)
        {
            throw Refusals.BadField($"{field}.payload", $"{request.Payload.Length} bytes; a message has at most {GuestMessage.MaxPayload}");
        }
        return new GuestSnpRequest(
            Page($"{field}.ghcb_gpa", request.GhcbGpa), Page($"{field}.secrets_gpa", request.SecretsGpa), Page($"{field}.request_gpa", request.RequestGpa),
            Page($"{field}.response_gpa", request.ResponseGpa), (byte)request.Vmpck, (GuestMessageType)request.MessageType, request.Payload.Memory)
        {
            Extended = request.Extended,
            CertificatesGpa = request.CertificatesGpa,
            CertificatesPages = request.CertificatesPages,
        };
    }

    /// <summary>What a GHCB and a message brought, where the step had them.</summary>
    public static void AddTo(V1.GuestStepResult message, SimKvm.Kvm.GuestStepResult result)
    {
        message.Causes.AddRange(result.Causes.Select(Outcomes.Of));
        if (result.Ghcb is { } ghcb)
        {
            message.Ghcb = new V1.GhcbReply { ExitInfo1 = ghcb.ExitInfo1, ExitInfo2 = ghcb.ExitInfo2, Rax = ghcb.Rax, Rbx = ghcb.Rbx, Rcx = ghcb.Rcx, Rdx = ghcb.Rdx };
        }
        if (result.Message is { } went)
        {
            message.Message = new V1.GuestMessageResult { Outcome = Of(went.Outcome), Sequence = went.Sequence, CertificatePages = went.CertificatePages };
        }
    }

    private static V1.GuestMessageOutcome Of(GuestMessageOutcome outcome) => outcome switch
    {
        GuestMessageOutcome.Answered => V1.GuestMessageOutcome.Answered,
        GuestMessageOutcome.NoKey => V1.GuestMessageOutcome.NoKey,
        GuestMessageOutcome.SequenceExhausted => V1.GuestMessageOutcome.SequenceExhausted,
        GuestMessageOutcome.Busy => V1.GuestMessageOutcome.Busy,
        GuestMessageOutcome.Refused => V1.GuestMessageOutcome.Refused,
        _ => V1.GuestMessageOutcome.Undecryptable,
    };

    private static ulong Page(string field, ulong gpa) =>
        (gpa & PageMask) == 0 && gpa <= ulong.MaxValue - PageMask ? gpa : throw Refusals.BadField(field, $"0x{gpa:x} is not page aligned");
}
