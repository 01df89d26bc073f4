using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using VmmService.Client.Attestation;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>An attestation report for people, and as JSON: every field under the name that the firmware ABI gives it, in its order.</summary>
internal static class ReportText
{
    private static readonly JsonSerializerOptions Json = new() { WriteIndented = true };

    public static void Write(TextWriter output, SnpReport report)
    {
        output.WriteLine(report.IsSimulated
            ? "Simulated platform: this report says nothing about real hardware."
            : "The platform masks its chip id.");
        output.WriteLine();
        foreach ((string name, object? value, string? meaning) in Fields(report))
        {
            if (value is not null)
                output.WriteLine($"{name,-20}{value}{(meaning is null ? "" : $"  ({meaning})")}");
        }
    }

    public static string ToJson(SnpReport report)
    {
        var json = new JsonObject();
        foreach ((string name, object? value, _) in Fields(report))
        {
            if (value is not null)
                json.Add(name, JsonSerializer.SerializeToNode(value));
        }
        return json.ToJsonString(Json);
    }

    private static IEnumerable<(string Name, object? Value, string? Meaning)> Fields(SnpReport report)
    {
        yield return ("VERSION", report.Version, null);
        yield return ("GUEST_SVN", report.GuestSvn, null);
        yield return ("POLICY", Numbers.Hex(report.Policy), report.DebugAllowed ? "debugging allowed" : null);
        yield return ("FAMILY_ID", Hex(report.FamilyId), null);
        yield return ("IMAGE_ID", Hex(report.ImageId), null);
        yield return ("VMPL", report.Vmpl, null);
        yield return ("SIGNATURE_ALGO", report.SignatureAlgo, report.SignatureAlgo == 1 ? "ECDSA P-384 with SHA-384" : null);
        yield return ("CURRENT_TCB", Numbers.Hex(report.CurrentTcb), Parts(report, report.CurrentTcb));
        yield return ("PLATFORM_INFO", Numbers.Hex(report.PlatformInfo), null);
        yield return ("KEY_INFO", Numbers.Hex(report.KeyInfo), $"signed by {report.SigningKey}");
        yield return ("REPORT_DATA", Hex(report.ReportData), null);
        yield return ("MEASUREMENT", Hex(report.Measurement), null);
        yield return ("HOST_DATA", Hex(report.HostData), null);
        yield return ("ID_KEY_DIGEST", Hex(report.IdKeyDigest), null);
        yield return ("AUTHOR_KEY_DIGEST", Hex(report.AuthorKeyDigest), null);
        yield return ("REPORT_ID", Hex(report.ReportId), null);
        yield return ("REPORT_ID_MA", Hex(report.ReportIdMa), null);
        yield return ("REPORTED_TCB", Numbers.Hex(report.ReportedTcb), Parts(report, report.ReportedTcb));
        yield return ("CPUID_FAM_ID", report.Cpuid?.Family, null);
        yield return ("CPUID_MOD_ID", report.Cpuid?.Model, null);
        yield return ("CPUID_STEP", report.Cpuid?.Stepping, null);
        yield return ("CHIP_ID", Hex(report.ChipId), null);
        yield return ("COMMITTED_TCB", Numbers.Hex(report.CommittedTcb), Parts(report, report.CommittedTcb));
        yield return ("CURRENT_VERSION", Version(report.CurrentFirmware), "major.minor.build");
        yield return ("COMMITTED_VERSION", Version(report.CommittedFirmware), "major.minor.build");
        yield return ("LAUNCH_TCB", Numbers.Hex(report.LaunchTcb), Parts(report, report.LaunchTcb));
        yield return ("LAUNCH_MIT_VECTOR", report.LaunchMitVector is { } launch ? Numbers.Hex(launch) : null, null);
        yield return ("CURRENT_MIT_VECTOR", report.CurrentMitVector is { } current ? Numbers.Hex(current) : null, null);
        yield return ("SIGNATURE_R", Hex(report.Signature[..72]), "little-endian");
        yield return ("SIGNATURE_S", Hex(report.Signature[72..144]), "little-endian");
    }

    private static string Parts(SnpReport report, ulong encoded)
    {
        TcbVersion tcb = report.DecodeTcb(encoded);
        return $"boot loader {tcb.BootLoader}, TEE {tcb.Tee}, SNP {tcb.Snp}, microcode {tcb.Microcode}{(tcb.Fmc != 0 ? $", FMC {tcb.Fmc}" : "")}";
    }

    private static string Hex(ReadOnlyMemory<byte> bytes) => Convert.ToHexStringLower(bytes.Span);

    private static string Version((byte Major, byte Minor, byte Build) version) =>
        string.Create(CultureInfo.InvariantCulture, $"{version.Major}.{version.Minor}.{version.Build}");
}
