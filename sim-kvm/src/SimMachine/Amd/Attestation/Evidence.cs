namespace SimMachine.Amd.Attestation;

/// <summary>What is wrong with a piece of evidence. Each has exactly one defect; everything else about it holds.</summary>
public enum EvidenceKind
{
    /// <summary>Nothing: a verifier must accept it.</summary>
    Sound,

    /// <summary>MEASUREMENT is not that of the launch that is expected.</summary>
    WrongMeasurement,

    /// <summary>POLICY allows debugging.</summary>
    DebugPolicy,

    /// <summary>REPORTED_TCB has a part that is older than the oldest accepted.</summary>
    StaleTcb,

    /// <summary>VMPL is not the expected one.</summary>
    WrongVmpl,

    /// <summary>The intermediate's certificate names the trusted root and was signed by another key.</summary>
    BrokenChain,

    /// <summary>The root is not the trusted one, though of the same name; chain and signature hold below it.</summary>
    UntrustedRoot,

    /// <summary>The root's CRL lists the intermediate.</summary>
    Revoked,

    /// <summary>REPORT_DATA answers another challenge.</summary>
    ReplayedNonce,

    /// <summary>A bit of the report was changed after it was signed.</summary>
    AlteredReport,

    /// <summary>The endorsement certificate names another chip than the report.</summary>
    ForeignChip,

    /// <summary>The endorsement certificate is for another TCB version than the report.</summary>
    TcbMismatch,

    /// <summary>The endorsement certificate is past its end.</summary>
    ExpiredCertificate,
}

/// <summary>What a verifier of a piece of evidence is to demand.</summary>
/// <param name="ReportData">The challenge, 64 bytes.</param>
/// <param name="Measurement">48 bytes.</param>
/// <param name="Vmpl">Whose report it is.</param>
/// <param name="MinTcb">Oldest REPORTED_TCB.</param>
/// <param name="AllowDebug">Whether POLICY may allow debugging.</param>
/// <param name="Ark">The trusted root, DER.</param>
public sealed record Expectation(
    ReadOnlyMemory<byte> ReportData, ReadOnlyMemory<byte> Measurement, uint Vmpl, TcbVersion MinTcb, bool AllowDebug, ReadOnlyMemory<byte> Ark);

/// <summary>
/// A report with its chain and revocation list as an attester would present them, and what to demand of them. Every kind but <see cref="EvidenceKind.Sound"/>
/// must be refused, for the reason that <see cref="Defect"/> states: food for the tests of verifiers.
/// </summary>
/// <param name="Kind">Which defect it has.</param>
/// <param name="Defect">The defect in a sentence, with its values; empty for sound evidence.</param>
/// <param name="Report">0x4A0 bytes.</param>
/// <param name="EndorsementCertificate">VCEK or VLEK, DER.</param>
/// <param name="Intermediate">ASK or ASVK, DER.</param>
/// <param name="Ark">As presented, DER; what to trust is in <paramref name="Expected"/>.</param>
/// <param name="Crl">DER.</param>
/// <param name="Expected">What a verifier is to demand.</param>
public sealed record Evidence(
    EvidenceKind Kind,
    string Defect,
    ReadOnlyMemory<byte> Report,
    ReadOnlyMemory<byte> EndorsementCertificate,
    ReadOnlyMemory<byte> Intermediate,
    ReadOnlyMemory<byte> Ark,
    ReadOnlyMemory<byte> Crl,
    Expectation Expected)
{
    /// <summary>Makes evidence from a report that a guest of this platform was given.</summary>
    /// <param name="identity">The platform that signed the report.</param>
    /// <param name="report">As firmware answered it; it is signed again where the defect is in it.</param>
    /// <param name="kind">The defect.</param>
    /// <param name="evidence">The evidence.</param>
    /// <returns>Null, or why this platform cannot give such evidence.</returns>
    public static string? TryMake(PlatformIdentity identity, in AttestationReport report, EvidenceKind kind, out Evidence? evidence)
    {
        evidence = null;
        var signedBy = (SigningKey)((report.KEY_INFO >> AttestationReport.KeyInfoBits.SigningKeyShift) & 7);
        EndorsementKey? key = signedBy switch
        {
            SigningKey.VCEK => identity.Vcek,
            SigningKey.VLEK => identity.Vlek,
            _ => null,
        };
        if (key is null)
        {
            return "the platform masks its chip key, so there is no signature to judge; configure mask_chip_key = false";
        }
        var expected = new Expectation(
            ((ReadOnlySpan<byte>)report.REPORT_DATA).ToArray(),
            ((ReadOnlySpan<byte>)report.MEASUREMENT).ToArray(),
            report.VMPL,
            identity.ReportedTcb,
            AllowDebug: (report.POLICY & Psp.PolicyBits.Debug) != 0,
            identity.Authority.Ark);
        var sound = new Evidence(
            EvidenceKind.Sound, "", report.ToArray(), key.Certificate, identity.Authority.Intermediate(key.Kind), identity.Authority.Ark,
            identity.Authority.Crl, expected);
        return new Maker(identity, key, report, sound).TryMake(kind, out evidence);
    }

    private sealed class Maker(PlatformIdentity identity, EndorsementKey key, AttestationReport report, Evidence sound)
    {
        public string? TryMake(EvidenceKind kind, out Evidence? evidence)
        {
            string? problem = null;
            evidence = kind switch
            {
                EvidenceKind.Sound => sound,
                EvidenceKind.WrongMeasurement => WrongMeasurement(),
                EvidenceKind.DebugPolicy => DebugPolicy(),
                EvidenceKind.StaleTcb => StaleTcb(out problem),
                EvidenceKind.WrongVmpl => WrongVmpl(),
                EvidenceKind.BrokenChain => BrokenChain(),
                EvidenceKind.UntrustedRoot => UntrustedRoot(),
                EvidenceKind.Revoked => Revoked(),
                EvidenceKind.ReplayedNonce => ReplayedNonce(),
                EvidenceKind.AlteredReport => AlteredReport(),
                EvidenceKind.ForeignChip => ForeignChip(out problem),
                EvidenceKind.TcbMismatch => TcbMismatch(),
                _ => ExpiredCertificate(),
            };
            if (evidence is not null)
            {
                evidence = evidence with { Kind = kind };
            }
            return problem;
        }

        // As if a launch had measured something else.
        private Evidence WrongMeasurement()
        {
            AttestationReport other = report;
            Invert(other.MEASUREMENT);
            return Signed(
                other, key, $"MEASUREMENT is {Hex(other.MEASUREMENT)}, not that of the launch, {Hex(report.MEASUREMENT)}");
        }

        private Evidence DebugPolicy()
        {
            AttestationReport other = report;
            other.POLICY |= Psp.PolicyBits.Debug;
            Evidence evidence = Signed(other, key, $"POLICY is 0x{other.POLICY:x}: bit 19 lets the host read the guest's memory");
            return evidence with { Expected = sound.Expected with { AllowDebug = false } };
        }

        // One patch level below in one part. The certificate is that of the older version, so only a verifier's minimum can object.
        private Evidence? StaleTcb(out string? problem)
        {
            TcbVersion tcb = identity.ReportedTcb;
            TcbVersion? older = tcb switch
            {
                { Snp: > 0 } => tcb with { Snp = (byte)(tcb.Snp - 1) },
                { Microcode: > 0 } => tcb with { Microcode = (byte)(tcb.Microcode - 1) },
                { BootLoader: > 0 } => tcb with { BootLoader = (byte)(tcb.BootLoader - 1) },
                { Tee: > 0 } => tcb with { Tee = (byte)(tcb.Tee - 1) },
                { Fmc: > 0 } => tcb with { Fmc = (byte)(tcb.Fmc - 1) },
                _ => null,
            };
            problem = older is null ? "the platform reports a TCB version of zeros, and none is older; configure reported_tcb" : null;
            if (older is null)
            {
                return null;
            }
            EndorsementKey olderKey = key.At(older.Value);
            AttestationReport other = report;
            other.REPORTED_TCB = older.Value.Encode(identity.Product);
            Evidence evidence = Signed(other, olderKey, $"REPORTED_TCB is {older}, older than the minimum, {tcb}");
            return evidence with { EndorsementCertificate = olderKey.Certificate };
        }

        private Evidence WrongVmpl()
        {
            AttestationReport other = report;
            other.VMPL = report.VMPL == 3 ? 0u : 3u;
            return Signed(other, key, $"VMPL is {other.VMPL}, not {report.VMPL}: other software of the guest asked for the report");
        }

        private Evidence BrokenChain() => sound with
        {
            Intermediate = identity.Authority.IssueSignedByAnotherKey(key.Kind),
            Defect = "the intermediate's certificate names the trusted root as its issuer and was signed by another key",
        };

        private Evidence UntrustedRoot()
        {
            (byte[] ark, byte[] intermediate, byte[] crl) = identity.Authority.IssueByAnotherRoot(key.Kind);
            return sound with
            {
                Ark = ark,
                Intermediate = intermediate,
                Crl = crl,
                Defect = "chain and signatures hold, below a root that has the name of the trusted one and another key",
            };
        }

        private Evidence Revoked() => sound with
        {
            Crl = identity.Authority.IssueCrlThatRevokes(key.Kind),
            Defect = "the root's CRL lists the serial number of the intermediate",
        };

        private Evidence ReplayedNonce()
        {
            AttestationReport other = report;
            Invert(other.REPORT_DATA);
            return Signed(other, key, $"REPORT_DATA is {Hex(other.REPORT_DATA)}, the answer to another challenge");
        }

        private Evidence AlteredReport()
        {
            const int hostDataOffset = 0xC0;
            byte[] altered = report.ToArray();
            altered[hostDataOffset] ^= 1;
            return sound with { Report = altered, Defect = $"bit 0 of byte 0x{hostDataOffset:x} (HOST_DATA) was changed after the report was signed" };
        }

        private Evidence? ForeignChip(out string? problem)
        {
            problem = key.Kind == EndorsementKeyKind.Vlek ? "a VLEK's certificate names no chip; select the VCEK" : null;
            if (problem is not null)
            {
                return null;
            }
            byte[] chip = identity.ChipId[..ChipId.SignificantBytes(identity.Product)].ToArray();
            chip[^1] ^= 1;
            return sound with
            {
                EndorsementCertificate = key.CertifyWith(chipId: chip),
                Defect = $"the certificate's HWID is {Convert.ToHexStringLower(chip)}, which is not the report's CHIP_ID",
            };
        }

        private Evidence TcbMismatch()
        {
            TcbVersion tcb = identity.ReportedTcb;
            TcbVersion other = tcb with { Microcode = (byte)(tcb.Microcode == byte.MaxValue ? 0 : tcb.Microcode + 1) };
            return sound with { EndorsementCertificate = key.CertifyWith(tcb: other), Defect = $"the certificate is for {other}, the report is of {tcb}" };
        }

        private Evidence ExpiredCertificate()
        {
            DateTimeOffset end = SimulatedAuthority.NotBefore;
            return sound with { EndorsementCertificate = key.CertifyWith(notAfter: end), Defect = $"the endorsement certificate ended on {end:yyyy-MM-dd}" };
        }

        private Evidence Signed(AttestationReport other, EndorsementKey by, string defect)
        {
            by.Sign(ref other);
            return sound with { Report = other.ToArray(), Defect = defect };
        }

        private static void Invert(Span<byte> bytes)
        {
            foreach (ref byte each in bytes)
            {
                each = (byte)~each;
            }
        }

        private static string Hex(ReadOnlySpan<byte> bytes) => Convert.ToHexStringLower(bytes);
    }
}
