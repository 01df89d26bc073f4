using System.Buffers.Binary;
using Google.Protobuf;
using Grpc.Core;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Amd.Attestation;
using VmmService.Server.Sessions;
using VmmService.Server.Verification.Amd;
using VmmService.Server.Wire;
using VmmService.V1;
using EvidenceKind = SimMachine.Amd.Attestation.EvidenceKind;
using KeySelection = SimMachine.Amd.Attestation.KeySelection;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.AttestationService.</summary>
internal sealed class AttestationServiceImpl(HostRegistry hosts) : AttestationService.AttestationServiceBase
{
    // Places in the payloads of messages and answers.
    private const int ReportOffset = 0x20;
    private const int KeyOffset = 0x20;

    // Of a report, a certificate, a revocation list.
    private const int MaxEvidence = 1 << 20;

    public override Task<GetReportResponse> GetReport(GetReportRequest request, ServerCallContext context)
    {
        byte[] payload = Payload(request);
        byte vmpck = Vmpck("vmpck", request.Vmpck);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            CallReport report = Ask(process, "fd", request.Fd, vmpck, GuestMessageType.REPORT_REQ, payload, out FirmwareAnswer answer);
            return new GetReportResponse
            {
                Outcome = Outcomes.Of(report),
                Sev = Outcomes.OfSev((uint)answer.Status),
                MessageStatus = StatusOf(answer),
                Report = report.Succeeded ? Bytes(answer.Payload[ReportOffset..]) : ByteString.Empty,
            };
        }));
    }

    public override Task<DeriveKeyResponse> DeriveKey(DeriveKeyRequest request, ServerCallContext context)
    {
        byte[] payload = Payload(request);
        byte vmpck = Vmpck("vmpck", request.Vmpck);
        return Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            CallReport report = Ask(process, "fd", request.Fd, vmpck, GuestMessageType.KEY_REQ, payload, out FirmwareAnswer answer);
            return new DeriveKeyResponse
            {
                Outcome = Outcomes.Of(report),
                Sev = Outcomes.OfSev((uint)answer.Status),
                MessageStatus = StatusOf(answer),
                Key = report.Succeeded ? Bytes(answer.Payload[KeyOffset..]) : ByteString.Empty,
            };
        }));
    }

    public override Task<GetCertificateChainResponse> GetCertificateChain(GetCertificateChainRequest request, ServerCallContext context)
    {
        (PlatformIdentity identity, EndorsementKey key) = Select(request.Host, request.KeySelection);
        return Task.FromResult(new GetCertificateChainResponse
        {
            Ark = Bytes(identity.Authority.Ark),
            Intermediate = Bytes(identity.Authority.Intermediate(key.Kind)),
            Endorsement = Bytes(key.Certificate),
            Product = Platforms.FromProduct(identity.Product),
            ChipId = Bytes(identity.ChipId),
            ReportedTcb = Platforms.FromTcb(identity.ReportedTcb),
            Vlek = key.Kind == EndorsementKeyKind.Vlek,
        });
    }

    public override Task<GetCertificateTableResponse> GetCertificateTable(GetCertificateTableRequest request, ServerCallContext context)
    {
        (PlatformIdentity identity, EndorsementKey key) = Select(request.Host, request.KeySelection);
        return Task.FromResult(new GetCertificateTableResponse { Table = Bytes(identity.CertificateTableOf(key, request.WithCrl)) });
    }

    public override Task<GetCrlResponse> GetCrl(GetCrlRequest request, ServerCallContext context) =>
        Task.FromResult(new GetCrlResponse { Crl = Bytes(Identity(request.Host).Authority.Crl) });

    public override Task<GetSevCekResponse> GetSevCek(GetSevCekRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.Get(request.Host).Run(sim => new GetSevCekResponse
        {
            Cek = Bytes(sim.Machine.Psp.SignedCekCertificate()),
            Ask = Bytes(sim.Machine.Identity.Authority.Intermediate(EndorsementKeyKind.Vcek)),
            Ark = Bytes(sim.Machine.Identity.Authority.Ark),
        }));

    public override Task<MakeEvidenceResponse> MakeEvidence(MakeEvidenceRequest request, ServerCallContext context)
    {
        if (request.Kind == V1.EvidenceKind.Unspecified || !Enum.IsDefined(request.Kind))
        {
            throw Refusals.BadEnum("kind", request.Kind);
        }
        GetReportRequest ask = request.Report ?? throw Structs.Missing("report");
        byte[] payload = Payload(ask);
        byte vmpck = Vmpck("report.vmpck", ask.Vmpck);
        return Task.FromResult(hosts.RunOn(ask.Host, ask.Pid, process =>
        {
            CallReport report = Ask(process, "report.fd", ask.Fd, vmpck, GuestMessageType.REPORT_REQ, payload, out FirmwareAnswer answer);
            var response = new MakeEvidenceResponse { Outcome = Outcomes.Of(report), Kind = request.Kind };
            if (report.Succeeded)
            {
                Fill(response, process.Host.Machine.Identity, AttestationReport.Read(answer.Payload.Span[ReportOffset..]));
            }
            return response;
        }));
    }

    public override Task<VerifyReportResponse> VerifyReport(VerifyReportRequest request, ServerCallContext context)
    {
        foreach ((string field, ByteString bytes) in new[]
        {
            ("report", request.Report), ("endorsement", request.Endorsement), ("intermediate", request.Intermediate), ("ark", request.Ark), ("crl", request.Crl),
        })
        {
            Structs.AtMost(field, bytes, MaxEvidence);
        }
        return Task.FromResult(new VerifyReportResponse { Findings = SnpReportVerifier.Verify(request) });
    }

    private static void Fill(MakeEvidenceResponse response, PlatformIdentity identity, AttestationReport report)
    {
        // The message's values are those of the catalogue, after UNSPECIFIED.
        string? problem = Evidence.TryMake(identity, report, (EvidenceKind)((int)response.Kind - 1), out Evidence? evidence);
        if (evidence is null)
        {
            throw Refusals.BadField("kind", problem!);
        }
        response.Defect = evidence.Defect;
        response.Report = Bytes(evidence.Report);
        response.Endorsement = Bytes(evidence.EndorsementCertificate);
        response.Intermediate = Bytes(evidence.Intermediate);
        response.Ark = Bytes(evidence.Ark);
        response.Crl = Bytes(evidence.Crl);
        response.Expected = new EvidenceExpectation
        {
            ReportData = Bytes(evidence.Expected.ReportData),
            Measurement = Outcomes.Hex(evidence.Expected.Measurement.Span),
            Vmpl = evidence.Expected.Vmpl,
            MinTcb = Platforms.FromTcb(evidence.Expected.MinTcb),
            AllowDebug = evidence.Expected.AllowDebug,
            Ark = Bytes(evidence.Expected.Ark),
        };
    }

    private (PlatformIdentity Identity, EndorsementKey Key) Select(string host, V1.KeySelection selection)
    {
        PlatformIdentity identity = Identity(host);
        return identity.TrySelect(KeySel("key_selection", selection), vcekDisabled: false, out EndorsementKey? key)
            ? (identity, key)
            : throw Refusals.BadField("key_selection", "the host has no VLEK; select the VCEK, or create the host with machine.attestation.vlek_csp_id");
    }

    private PlatformIdentity Identity(string host) => hosts.Get(host).Run(sim => sim.Machine.Identity);

    private static CallReport Ask(Process process, string field, int fd, byte vmpck, GuestMessageType type, byte[] payload, out FirmwareAnswer answer) =>
        process.AskFirmwareAsGuest(fd, vmpck, type, payload, out answer)
        ?? throw Refusals.BadField(field, $"fd {fd} of process {process.Pid} is not a VM");

    // MSG_REPORT_REQ
    private static byte[] Payload(GetReportRequest request)
    {
        byte[] payload = new byte[96];
        Structs.Fixed("report_data", request.ReportData, payload.AsSpan(0, 64));
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(0x40), request.Vmpl);
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(0x44), (uint)KeySel("key_selection", request.KeySelection));
        return payload;
    }

    // MSG_KEY_REQ
    private static byte[] Payload(DeriveKeyRequest request)
    {
        if (!Enum.IsDefined(request.RootKey))
        {
            throw Refusals.BadEnum("root_key", request.RootKey);
        }
        byte[] payload = new byte[request.HasLaunchMitVector ? 40 : 32];
        BinaryPrimitives.WriteUInt32LittleEndian(payload, request.RootKey == RootKey.Vmrk ? 1u : 0);
        BinaryPrimitives.WriteUInt64LittleEndian(payload.AsSpan(8), request.GuestFieldSelect);
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(16), request.Vmpl);
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(20), request.GuestSvn);
        BinaryPrimitives.WriteUInt64LittleEndian(payload.AsSpan(24), request.TcbVersion);
        if (request.HasLaunchMitVector)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(payload.AsSpan(32), request.LaunchMitVector);
        }
        return payload;
    }

    private static byte Vmpck(string field, uint value) => value <= 3 ? (byte)value : throw Refusals.BadField(field, $"{value} is not a VMPCK; there are 0 to 3");

    private static KeySelection KeySel(string field, V1.KeySelection selection) => selection switch
    {
        V1.KeySelection.Unspecified or V1.KeySelection.VlekIfLoaded => KeySelection.VLEK_IF_LOADED,
        V1.KeySelection.Vcek => KeySelection.VCEK,
        V1.KeySelection.Vlek => KeySelection.VLEK,
        _ => throw Refusals.BadEnum(field, selection),
    };

    private static MessageStatus StatusOf(FirmwareAnswer answer) =>
        new() { Status = (uint)answer.MessageStatus, StatusName = answer.Payload.IsEmpty ? "" : answer.MessageStatus.ToString() };

    private static ByteString Bytes(ReadOnlyMemory<byte> bytes) => UnsafeByteOperations.UnsafeWrap(bytes);
}
