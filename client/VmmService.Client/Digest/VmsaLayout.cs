namespace VmmService.Client.Digest;

/// <summary>A field of a VMSA.</summary>
/// <param name="Name">As Linux struct sev_es_save_area spells it.</param>
/// <param name="Offset">Bytes from the start of the page.</param>
/// <param name="Size">Bytes.</param>
public readonly record struct VmsaField(string Name, int Offset, int Size)
{
    public int End => Offset + Size;
}

/// <summary>Where a VMSA has which register (snp.md 7.1; AMD64 APM volume 2, table B-4; Linux struct sev_es_save_area). Bytes between the fields are reserved and zero.</summary>
public static class VmsaLayout
{
    /// <summary>Bytes of a VMSA.</summary>
    public const int Size = 4096;

    private static readonly string[] s_segments = ["es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr"];

    /// <summary>All fields by offset.</summary>
    public static IReadOnlyList<VmsaField> Fields { get; } =
    [
        .. s_segments.SelectMany((name, i) => Segment(name, 16 * i)),
        .. Qwords(0x0a0, "vmpl0_ssp", "vmpl1_ssp", "vmpl2_ssp", "vmpl3_ssp", "u_cet"),
        new("vmpl", 0x0ca, 1), new("cpl", 0x0cb, 1),
        .. Qwords(0x0d0, "efer"),
        .. Qwords(0x140, "xss", "cr4", "cr3", "cr0", "dr7", "dr6", "rflags", "rip", "dr0", "dr1", "dr2", "dr3", "dr0_addr_mask", "dr1_addr_mask", "dr2_addr_mask", "dr3_addr_mask"),
        .. Qwords(0x1d8, "rsp", "s_cet", "ssp", "isst_addr", "rax", "star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp", "sysenter_eip", "cr2"),
        .. Qwords(0x268, "g_pat", "dbgctl", "br_from", "br_to", "last_excp_from", "last_excp_to"),
        new("pkru", 0x2e8, 4), new("tsc_aux", 0x2ec, 4),
        .. Qwords(0x2f0, "guest_tsc_scale", "guest_tsc_offset"),
        .. Qwords(0x308, "rcx", "rdx", "rbx"),
        .. Qwords(0x328, "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
        .. Qwords(0x390, "guest_exit_info_1", "guest_exit_info_2", "guest_exit_int_info", "guest_nrip", "sev_features", "vintr_ctrl", "guest_exit_code", "virtual_tom", "tlb_id", "pcpu_id", "event_inj", "xcr0"),
        .. Qwords(0x400, "x87_dp"),
        new("mxcsr", 0x408, 4), new("x87_ftw", 0x40c, 2), new("x87_fsw", 0x40e, 2), new("x87_fcw", 0x410, 2), new("x87_fop", 0x412, 2), new("x87_ds", 0x414, 2), new("x87_cs", 0x416, 2),
        .. Qwords(0x418, "x87_rip"),
        new("fpreg_x87", 0x420, 80), new("fpreg_xmm", 0x470, 256), new("fpreg_ymm", 0x570, 256),
    ];

    private static readonly Dictionary<string, VmsaField> s_byName = Fields.ToDictionary(field => field.Name, StringComparer.Ordinal);

    /// <summary>A field by its name.</summary>
    /// <exception cref="KeyNotFoundException">There is none.</exception>
    public static VmsaField Field(string name) => s_byName[name];

    /// <summary>The field that a byte belongs to; for a reserved byte a field named "reserved" of that byte alone.</summary>
    public static VmsaField At(int offset)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(offset, Size);
        foreach (VmsaField field in Fields)
        {
            if (offset >= field.Offset && offset < field.End)
                return field;
        }

        return new VmsaField("reserved", offset, 1);
    }

    private static IEnumerable<VmsaField> Segment(string name, int offset) =>
        [new($"{name}.selector", offset, 2), new($"{name}.attrib", offset + 2, 2), new($"{name}.limit", offset + 4, 4), new($"{name}.base", offset + 8, 8)];

    private static IEnumerable<VmsaField> Qwords(int offset, params string[] names) => names.Select((name, i) => new VmsaField(name, offset + (8 * i), 8));
}
