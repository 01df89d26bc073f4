namespace VmmService.Client.Launch;

/// <summary>Type of a section of the TDX metadata. Those from <see cref="PERM_MEM"/> on occur in images of td-shim only.</summary>
public enum TdvfSectionType : uint
{
    /// <summary>Boot firmware volume: code.</summary>
    BFV = 0,

    /// <summary>Configuration firmware volume: the variable store.</summary>
    CFV = 1,

    /// <summary>Where the VMM puts the hand-off blocks.</summary>
    TD_HOB = 2,

    /// <summary>Memory that the firmware uses before it accepts any: stack, heap, mailbox, page tables.</summary>
    TEMP_MEM = 3,

    /// <summary>Memory that belongs to the TD for good.</summary>
    PERM_MEM = 4,

    /// <summary>A kernel.</summary>
    PAYLOAD = 5,

    /// <summary>Its command line.</summary>
    PAYLOAD_PARAM = 6,

    /// <summary>A description in the image, not loaded by itself.</summary>
    TD_INFO = 7,

    /// <summary>Likewise.</summary>
    TD_PARAMS = 8,
}

/// <summary>Attributes of a section. Other bits may be set; nobody looks at them.</summary>
[Flags]
public enum TdvfAttributes : uint
{
    None = 0,

    /// <summary>The content is measured, beside the addresses.</summary>
    EXTENDMR = 1,

    /// <summary>The pages are not part of the initial image: the TD accepts them. QEMU ignores this and adds them.</summary>
    PAGE_AUG = 2,
}

/// <summary>A section of the TDX metadata: guest memory that the VMM adds to the TD before it runs.</summary>
/// <param name="DataOffset">Where its bytes start in the image.</param>
/// <param name="RawDataSize">How many of them; 0 for memory without content.</param>
/// <param name="MemoryAddress">GPA, page aligned.</param>
/// <param name="MemoryDataSize">Bytes of guest memory, whole pages and no fewer than <paramref name="RawDataSize"/>.</param>
/// <param name="Type">As the image has it.</param>
/// <param name="Attributes">As the image has them.</param>
/// <param name="Offset">Where the section's own 32 bytes are in the image.</param>
public readonly record struct TdvfSection(
    uint DataOffset, uint RawDataSize, ulong MemoryAddress, ulong MemoryDataSize, TdvfSectionType Type, TdvfAttributes Attributes, int Offset)
{
    public ulong End => MemoryAddress + MemoryDataSize;

    public bool IsExtended => (Attributes & TdvfAttributes.EXTENDMR) != 0;

    public bool IsAugmented => (Attributes & TdvfAttributes.PAGE_AUG) != 0;
}

/// <summary>Whose rules an image has to follow.</summary>
public enum TdvfRules
{
    /// <summary>QEMU's, for firmware of edk2: at least two sections, types up to TEMP_MEM.</summary>
    Qemu,

    /// <summary>Those of td-shim's tools: any number of sections, all types, and the offset of the metadata may stand near the end of an image without a footer.</summary>
    TdShim,
}
