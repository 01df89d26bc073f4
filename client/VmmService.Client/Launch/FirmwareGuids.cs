namespace VmmService.Client.Launch;

/// <summary>The entries of the footer table that are known by name (snp.md 8.4; edk2 ResetVector). An image may carry others.</summary>
public static class FirmwareGuids
{
    /// <summary>Ends the table; without it an image has none.</summary>
    public static readonly Guid Footer = new("96b582de-1fb2-45f7-baea-a366c55a082d");

    /// <summary>u32: where APs start.</summary>
    public static readonly Guid SevEsResetBlock = new("00f771de-1a7e-4fcb-890e-68c77e2fb44e");

    /// <summary>u32 base, u32 size: where a launch secret may be put.</summary>
    public static readonly Guid SecretArea = new("4c2eb361-7d9b-4cc3-8081-127c90d3d294");

    /// <summary>u32 base, u32 size: where the guest looks for the hashes of kernel, initrd and command line.</summary>
    public static readonly Guid KernelHashArea = new("7255371f-3a3b-4b04-927b-1da6efa8d454");

    /// <summary>u32: distance of the SEV metadata from the end of the image.</summary>
    public static readonly Guid SevMetadata = new("dc886566-984a-4798-a75e-5585a7bf67cc");

    /// <summary>u32: distance of the TDX metadata from the end of the image.</summary>
    public static readonly Guid TdxMetadata = new("e47a6535-984a-4798-865e-4685a7bf8ec2");

    /// <summary>Where IGVM parameters are; kept as bytes.</summary>
    public static readonly Guid IgvmParameterArea = new("784fa70e-3176-4677-8a20-04b68699e374");

    /// <summary>u32: entry point as an offset in an SVSM image.</summary>
    public static readonly Guid SvsmInfo = new("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd");

    /// <summary>A name for people; null for a GUID that is not known here.</summary>
    public static string? NameOf(Guid guid)
    {
        if (guid == SevEsResetBlock) return "SEV-ES reset block";
        if (guid == SecretArea) return "launch secret area";
        if (guid == KernelHashArea) return "kernel-hash area";
        if (guid == SevMetadata) return "SEV metadata pointer";
        if (guid == TdxMetadata) return "TDX metadata pointer";
        if (guid == IgvmParameterArea) return "IGVM parameter area";
        if (guid == SvsmInfo) return "SVSM info";
        return guid == Footer ? "footer" : null;
    }

    // What is read of an entry; it may be longer.
    internal static int BytesNeeded(Guid guid)
    {
        if (guid == SecretArea || guid == KernelHashArea) return 8;
        return guid == SevEsResetBlock || guid == SevMetadata || guid == TdxMetadata || guid == SvsmInfo ? 4 : 0;
    }
}
