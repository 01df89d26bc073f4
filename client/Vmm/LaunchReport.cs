using System.Security.Cryptography;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using VmmService.Client;
using VmmService.Client.Launching;
using VmmService.V1;

namespace VmmService.Vmm;

/// <summary>
/// What a launch came to, as data. The property names are those of --json; a 64-bit number that is an address or a mask is written as 0x hexadecimal, because
/// JSON readers round large numbers.
/// </summary>
internal sealed record LaunchReport
{
    private static readonly JsonSerializerOptions Json = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        WriteIndented = true,
    };

    /// <summary>96 lower-case hexadecimal digits.</summary>
    public required string LaunchDigest { get; init; }

    public string VmType { get; } = "SNP";

    /// <summary>Kernel profile of the host.</summary>
    public required string Profile { get; init; }

    /// <summary>Address of the daemon, or "in-process".</summary>
    public required string Server { get; init; }

    public required FirmwareEntry Firmware { get; init; }

    public FileEntry? Svsm { get; init; }

    public FileEntry? Kernel { get; init; }

    public FileEntry? Initrd { get; init; }

    /// <summary>The kernel's command line.</summary>
    public string? Append { get; init; }

    public required int Vcpus { get; init; }

    public required ParameterEntry Parameters { get; init; }

    /// <summary>The slots with what was measured in them, by guest physical address.</summary>
    public required IReadOnlyList<SlotEntry> GpaMap { get; init; }

    /// <summary>Every measured step, in order.</summary>
    public required IReadOnlyList<StepEntry> Transcript { get; init; }

    /// <summary>A file given on the command line.</summary>
    public sealed record FileEntry(string Path, ulong Size, string Sha256);

    /// <param name="Path">File, absent for the generated sample.</param>
    /// <param name="Size">Bytes.</param>
    /// <param name="Sha256">Of the image.</param>
    /// <param name="Source">"option", "installed" or "sample".</param>
    public sealed record FirmwareEntry(string? Path, ulong Size, string Sha256, string Source);

    /// <param name="Vmm">Whose way of launching.</param>
    /// <param name="VcpuType">CPU model, where one was named.</param>
    /// <param name="VcpuSignature">CPUID 1 EAX, in RDX of every vCPU where this VMM puts it there.</param>
    /// <param name="Policy">Guest policy.</param>
    /// <param name="GuestFeatures">SEV_FEATURES of the VMSAs.</param>
    /// <param name="MemoryBytes">RAM of the guest, in bytes.</param>
    /// <param name="Seed">Seed of the host.</param>
    public sealed record ParameterEntry(
        string Vmm, string? VcpuType, string? VcpuSignature, string Policy, string GuestFeatures, ulong MemoryBytes, ulong Seed);

    /// <param name="Gpa">First address.</param>
    /// <param name="Size">Bytes.</param>
    /// <param name="Slot">Slot id.</param>
    /// <param name="Name">What it is.</param>
    /// <param name="Private">All of it has KVM_MEMORY_ATTRIBUTE_PRIVATE.</param>
    /// <param name="Measured">What the launch put there.</param>
    public sealed record SlotEntry(string Gpa, ulong Size, uint Slot, string Name, bool Private, IReadOnlyList<RegionEntry> Measured);

    /// <param name="Gpa">First address.</param>
    /// <param name="Size">Bytes.</param>
    /// <param name="PageType">As given to SNP_LAUNCH_UPDATE.</param>
    /// <param name="Name">What it is.</param>
    /// <param name="Validated">All of it is assigned and validated in the RMP.</param>
    public sealed record RegionEntry(string Gpa, ulong Size, string PageType, string Name, bool Validated);

    /// <param name="Index">From 0.</param>
    /// <param name="PageType">NORMAL, VMSA, ZERO, UNMEASURED, SECRETS or CPUID.</param>
    /// <param name="Gpa">Of the page.</param>
    /// <param name="ContentHash">SHA-384 of the page, zeros where the content is not measured.</param>
    /// <param name="DigestAfter">The launch digest after this step.</param>
    public sealed record StepEntry(ulong Index, string PageType, string Gpa, string ContentHash, string DigestAfter);

    public string ToJson() => JsonSerializer.Serialize(this, Json);

    /// <summary>The report of a launched guest.</summary>
    public static LaunchReport Of(LaunchedSnpGuest guest, LaunchSnpCommand.Inputs inputs, RemoteHost host, string server)
    {
        bool measuresSignature = guest.Plan.Flavor.MeasuresSignature;
        return new LaunchReport
        {
            LaunchDigest = guest.LaunchDigest,
            Profile = host.Profile,
            Server = server,
            Firmware = new FirmwareEntry(
                inputs.Firmware.Path,
                inputs.Firmware.Image.Size,
                Convert.ToHexStringLower(SHA256.HashData(inputs.Firmware.Image.Bytes.Span)),
                inputs.Firmware.Source),
            Svsm = guest.Plan.Svsm is { } svsm ? new FileEntry(svsm.Name, svsm.Size, Convert.ToHexStringLower(SHA256.HashData(svsm.Bytes.Span))) : null,
            Kernel = FileOf(inputs.KernelPath, guest.Plan.Kernel?.Kernel),
            Initrd = FileOf(inputs.InitrdPath, guest.Plan.Kernel?.Initrd),
            Append = inputs.Append,
            Vcpus = guest.Vcpus.Count,
            Parameters = new ParameterEntry(
                guest.Plan.Flavor.Name,
                measuresSignature ? inputs.Model?.Name : null,
                measuresSignature ? guest.Plan.Signature.ToString() : null,
                Numbers.Hex(guest.Options.Policy),
                Numbers.Hex(guest.Plan.GuestFeatures),
                guest.Memory.Where(each => each.Gpa != guest.Plan.ImagesGpa).Aggregate(0UL, (sum, each) => sum + each.Size),
                host.Seed),
            GpaMap = [.. guest.Memory.Select(each => SlotOf(guest, each))],
            Transcript =
            [
                .. guest.Transcript.Select(each =>
                    new StepEntry(each.Index, NameOf(each.PageType), Numbers.Hex(each.Gpa), each.ContentHash, each.DigestAfter)),
            ],
        };
    }

    internal static FileEntry? FileOf(string? path, ReadOnlyMemory<byte>? sha256) =>
        path is null ? null : new FileEntry(path, (ulong)new FileInfo(path).Length, Convert.ToHexStringLower(sha256!.Value.Span));

    private static string NameOf(SnpPageType type) => type switch
    {
        SnpPageType.Normal => "NORMAL",
        SnpPageType.Vmsa => "VMSA",
        SnpPageType.Zero => "ZERO",
        SnpPageType.Unmeasured => "UNMEASURED",
        SnpPageType.Secrets => "SECRETS",
        SnpPageType.Cpuid => "CPUID",
        _ => type.ToString(),
    };

    private static SlotEntry SlotOf(LaunchedSnpGuest guest, GuestMemory memory) => new(
        Numbers.Hex(memory.Gpa),
        memory.Size,
        memory.Slot,
        memory.Name,
        Covers(
            guest.Description.Attributes
                .Where(each => (each.Attributes & KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0)
                .Select(each => (each.GfnStart * KernelNumbers.PAGE_SIZE, each.GfnEnd * KernelNumbers.PAGE_SIZE)),
            memory.Gpa,
            memory.Size),
        [
            .. guest.Plan.Regions.Where(each => memory.Contains(each.Gpa, each.Size)).OrderBy(each => each.Gpa).Select(each => new RegionEntry(
                Numbers.Hex(each.Gpa),
                each.Size,
                each.PageType.ToString(),
                each.Label,
                Covers(guest.Description.Rmp.Where(run => run.Validated).Select(run => (run.Gpa, run.Gpa + run.Size)), each.Gpa, each.Size))),
        ]);

    // Ranges come in ascending order; neighbours that differ in something else may touch.
    private static bool Covers(IEnumerable<(ulong Start, ulong End)> ranges, ulong start, ulong size)
    {
        ulong reached = start;
        foreach ((ulong from, ulong to) in ranges.OrderBy(each => each.Start))
        {
            if (from <= reached)
                reached = Math.Max(reached, to);
        }
        return reached >= start + size;
    }
}
