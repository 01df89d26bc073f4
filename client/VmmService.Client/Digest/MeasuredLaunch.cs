using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>
/// What an SNP launch measures, in order, whoever launches it: ranges of guest memory, then a VMSA for each vCPU. The digest is <see cref="DigestTranscript"/>'s, over
/// <see cref="Pages()"/>. Nothing is launched and nobody is asked.
/// </summary>
public sealed record MeasuredLaunch
{
    private static readonly Hash384 s_zeroPage = Hash384.Of(new byte[FirmwareImage.PageSize]);

    /// <summary>In order of launch.</summary>
    public required IReadOnlyList<LaunchRegion> Regions { get; init; }

    /// <summary>By vCPU index.</summary>
    public required IReadOnlyList<VcpuResetState> Vcpus { get; init; }

    /// <summary>SEV_FEATURES of every VMSA.</summary>
    public required ulong SevFeatures { get; init; }

    /// <summary>Guest physical address that firmware is told for every VMSA.</summary>
    public ulong VmsaGpa { get; init; } = VmsaPage.KvmGpa;

    /// <summary>What a plan will measure once it is launched.</summary>
    public static MeasuredLaunch Of(SnpLaunchPlan plan)
    {
        ArgumentNullException.ThrowIfNull(plan);
        return new MeasuredLaunch { Regions = plan.Regions, Vcpus = plan.Vcpus, SevFeatures = plan.GuestFeatures };
    }

    /// <summary>Every measured page, in order.</summary>
    public IEnumerable<MeasuredPage> Pages()
    {
        foreach (LaunchRegion region in Regions)
        {
            foreach (MeasuredPage page in Pages(region))
                yield return page;
        }

        // vCPUs after the first are alike.
        VcpuResetState? before = null;
        MeasuredPage vmsa = default;
        foreach (VcpuResetState vcpu in Vcpus)
        {
            if (vcpu != before)
                vmsa = Vmsa(vcpu, SevFeatures, VmsaGpa);
            before = vcpu;
            yield return vmsa;
        }
    }

    /// <summary>The pages of a range. NORMAL pages whose content is not given are zeros.</summary>
    internal static IEnumerable<MeasuredPage> Pages(LaunchRegion region)
    {
        for (ulong offset = 0; offset < region.Size; offset += FirmwareImage.PageSize)
        {
            Hash384 contents = region switch
            {
                { PageType: not SnpPageType.NORMAL } => default,
                { Content.IsEmpty: true } => s_zeroPage,
                _ => Hash384.Of(region.Content.Span.Slice((int)offset, FirmwareImage.PageSize)),
            };
            // Both enums have firmware's numbers.
            yield return new MeasuredPage((MeasuredPageType)region.PageType, region.Gpa + offset, contents);
        }
    }

    /// <summary>What is measured of a vCPU.</summary>
    internal static MeasuredPage Vmsa(VcpuResetState vcpu, ulong sevFeatures, ulong gpa) =>
        new(MeasuredPageType.VMSA, gpa, Hash384.Of(VmsaPage.Build(vcpu, sevFeatures)));
}
