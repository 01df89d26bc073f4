using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>A VMSA that was recognised.</summary>
/// <param name="State">The registers in it.</param>
/// <param name="SevFeatures">SEV_FEATURES.</param>
/// <param name="Flavor">The VMM that starts vCPUs like this.</param>
/// <param name="Signature">The CPU signature; means nothing where the VMM does not measure it.</param>
/// <param name="Eip">Where the vCPU starts.</param>
public sealed record KnownVmsa(VcpuResetState State, ulong SevFeatures, VmmFlavor Flavor, CpuSignature Signature, uint Eip)
{
    public override string ToString() =>
        $"a vCPU of {Flavor.Name}{(Flavor.MeasuresSignature ? $" with signature {CpuModelNames.Of(Signature)}" : "")} and guest features 0x{SevFeatures:x} that starts at 0x{Eip:x}";
}

/// <summary>
/// Recognises VMSAs by their hash, which is all that a transcript has of them: every VMSA is made that the known VMMs, CPU models and guest features give. What a VMSA with other
/// registers has cannot be told.
/// </summary>
public sealed class VmsaCatalog
{
    /// <summary>Where edk2's SEV-ES reset block sends APs unless a platform is built otherwise (PcdSevEsWorkAreaBase).</summary>
    private const uint Edk2ResetEip = 0x0080b004;

    private readonly Dictionary<Hash384, KnownVmsa> _byHash = [];

    /// <param name="facts">Of launches whose VMSAs are to be recognised: their firmware says where APs start, their features and signatures are tried first.</param>
    public VmsaCatalog(IEnumerable<LaunchFacts> facts)
    {
        LaunchFacts[] all = [.. facts];
        ulong[] features = [.. all.Select(each => each.SevFeatures).OfType<ulong>().Concat(SevFeatures.KnownSnp).Distinct()];
        CpuSignature[] signatures =
            [.. all.Select(each => each.Signature).OfType<CpuSignature>().Concat(CpuModel.All.Select(model => model.Signature)).Append(default).Distinct()];
        uint[] eips = [.. all.Select(each => each.Firmware?.SevEsResetEip).OfType<uint>().Append(Edk2ResetEip).Distinct()];
        foreach (VmmFlavor flavor in DigestKnobs.Flavors)
        {
            foreach (CpuSignature signature in flavor.MeasuresSignature ? signatures : [default])
            {
                foreach (ulong feature in features)
                {
                    Add(flavor.Bsp(signature), VmmFlavor.BspEip);
                    foreach (uint eip in eips)
                        Add(flavor.Ap(signature, eip), eip);

                    void Add(VcpuResetState state, uint eip) =>
                        _byHash.TryAdd(Hash384.Of(VmsaPage.Build(state, feature)), new KnownVmsa(state, feature, flavor, signature, eip));
                }
            }
        }
    }

    /// <summary>The VMSA with this hash; null if it is none of the known.</summary>
    public KnownVmsa? Find(Hash384 contents) => _byHash.GetValueOrDefault(contents);
}

/// <summary>CPU signatures as people know them.</summary>
public static class CpuModelNames
{
    /// <summary>The signature with the CPU models that have it, such as "0x00a00f11 (EPYC-Milan)"; versions of one model are not told apart.</summary>
    public static string Of(CpuSignature signature)
    {
        // A version differs from its model in features only, which are not measured.
        string[] names = [.. CpuModel.All.Where(model => model.Signature == signature).Select(model => model.Name)];
        string[] models = [.. names.Where(name => !names.Any(other => name.StartsWith(other + "-v", StringComparison.Ordinal)))];
        return models.Length == 0 ? $"{signature}" : $"{signature} ({string.Join(", ", models)})";
    }
}
