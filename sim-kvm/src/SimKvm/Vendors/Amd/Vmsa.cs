using System.Buffers.Binary;
using System.Collections.Immutable;
using System.Globalization;
using SimKvm.Abi;
using SimKvm.Kvm;

namespace SimKvm.Vendors.Amd;

/// <summary>
/// The VM save area of a vCPU with encrypted state: its layout (AMD APM vol. 2, table B-4; struct sev_es_save_area), how KVM fills it from a vCPU
/// before firmware measures and encrypts it, and a reader for people.
/// </summary>
/// <remarks>Invariant: every byte that is not a field here is 0, because all 4096 enter the launch digest.</remarks>
public static class Vmsa
{
    public const int Size = 4096;

    /// <summary>DR7 of a vCPU without breakpoints. KVM refuses to encrypt any other (<c>sev_es_sync_vmsa</c>).</summary>
    public const ulong Dr7Fixed = VcpuArch.Dr7Fixed;

    private const int Cpl = 0xCB;
    private const int Efer = 0xD0;
    private const int Xss = 0x140;
    private const int Cr4 = 0x148;
    private const int Cr3 = 0x150;
    private const int Cr0 = 0x158;
    private const int Dr7 = 0x160;
    private const int Dr6 = 0x168;
    private const int Rflags = 0x170;
    private const int Rip = 0x178;
    private const int Rsp = 0x1D8;
    private const int Rax = 0x1F8;
    private const int Star = 0x200;
    private const int Lstar = 0x208;
    private const int Cstar = 0x210;
    private const int Sfmask = 0x218;
    private const int KernelGsBase = 0x220;
    private const int SysenterCs = 0x228;
    private const int SysenterEsp = 0x230;
    private const int SysenterEip = 0x238;
    private const int GPat = 0x268;
    private const int Dbgctl = 0x270;
    private const int SpecCtrl = 0x2E0;
    private const int Pkru = 0x2E8;
    private const int Rcx = 0x308;
    private const int Rdx = 0x310;
    private const int Rbx = 0x318;
    private const int Rbp = 0x328;
    private const int Rsi = 0x330;
    private const int Rdi = 0x338;
    private const int R8 = 0x340;
    private const int SevFeatures = 0x3B0;
    private const int Xcr0 = 0x3E8;
    private const int X87Dp = 0x400;
    private const int Mxcsr = 0x408;
    private const int X87Ftw = 0x40C;
    private const int X87Fsw = 0x40E;
    private const int X87Fcw = 0x410;
    private const int X87Fop = 0x412;
    private const int X87Rip = 0x418;
    private const int FpregX87 = 0x420;
    private const int FpregX87Tops = 0x460;
    private const int FpregXmm = 0x470;
    private const int FpregYmm = 0x570;
    private const int YmmSize = 256;
    private const int XsaveYmm = 0x240;
    private const ulong XfeatureYmm = 1UL << 2;

    /// <summary>The 64-bit and smaller fields, by offset. Segments and floating-point registers are added by <see cref="Describe"/>.</summary>
    private static readonly ImmutableArray<(int Offset, int Size, string Name)> Scalars =
    [
        (0xA0, 8, "vmpl0_ssp"), (0xA8, 8, "vmpl1_ssp"), (0xB0, 8, "vmpl2_ssp"), (0xB8, 8, "vmpl3_ssp"), (0xC0, 8, "u_cet"),
        (0xCA, 1, "vmpl"), (Cpl, 1, "cpl"), (Efer, 8, "efer"),
        (Xss, 8, "xss"), (Cr4, 8, "cr4"), (Cr3, 8, "cr3"), (Cr0, 8, "cr0"), (Dr7, 8, "dr7"), (Dr6, 8, "dr6"), (Rflags, 8, "rflags"), (Rip, 8, "rip"),
        (0x180, 8, "dr0"), (0x188, 8, "dr1"), (0x190, 8, "dr2"), (0x198, 8, "dr3"),
        (0x1A0, 8, "dr0_addr_mask"), (0x1A8, 8, "dr1_addr_mask"), (0x1B0, 8, "dr2_addr_mask"), (0x1B8, 8, "dr3_addr_mask"),
        (Rsp, 8, "rsp"), (0x1E0, 8, "s_cet"), (0x1E8, 8, "ssp"), (0x1F0, 8, "isst_addr"), (Rax, 8, "rax"),
        (Star, 8, "star"), (Lstar, 8, "lstar"), (Cstar, 8, "cstar"), (Sfmask, 8, "sfmask"), (KernelGsBase, 8, "kernel_gs_base"),
        (SysenterCs, 8, "sysenter_cs"), (SysenterEsp, 8, "sysenter_esp"), (SysenterEip, 8, "sysenter_eip"), (0x240, 8, "cr2"),
        (GPat, 8, "g_pat"), (Dbgctl, 8, "dbgctl"), (0x278, 8, "br_from"), (0x280, 8, "br_to"),
        (0x288, 8, "last_excp_from"), (0x290, 8, "last_excp_to"),
        (SpecCtrl, 4, "spec_ctrl"), (Pkru, 4, "pkru"), (0x2EC, 4, "tsc_aux"), (0x2F0, 8, "guest_tsc_scale"), (0x2F8, 8, "guest_tsc_offset"),
        (Rcx, 8, "rcx"), (Rdx, 8, "rdx"), (Rbx, 8, "rbx"), (Rbp, 8, "rbp"), (Rsi, 8, "rsi"), (Rdi, 8, "rdi"),
        (R8, 8, "r8"), (0x348, 8, "r9"), (0x350, 8, "r10"), (0x358, 8, "r11"),
        (0x360, 8, "r12"), (0x368, 8, "r13"), (0x370, 8, "r14"), (0x378, 8, "r15"),
        (0x390, 8, "exit_info_1"), (0x398, 8, "exit_info_2"), (0x3A0, 8, "exit_int_info"), (0x3A8, 8, "nrip"), (SevFeatures, 8, "sev_features"),
        (0x3B8, 8, "vintr_ctrl"), (0x3C0, 8, "exit_code"), (0x3C8, 8, "virtual_tom"),
        (0x3D0, 8, "tlb_id"), (0x3D8, 8, "pcpu_id"), (0x3E0, 8, "event_inj"),
        (Xcr0, 8, "xcr0"),
        (X87Dp, 8, "x87_dp"), (Mxcsr, 4, "mxcsr"), (X87Ftw, 2, "x87_ftw"), (X87Fsw, 2, "x87_fsw"), (X87Fcw, 2, "x87_fcw"), (X87Fop, 2, "x87_fop"),
        (0x414, 2, "x87_ds"), (0x416, 2, "x87_cs"), (X87Rip, 8, "x87_rip"),
    ];

    private static readonly ImmutableArray<string> Segments = ["es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr"];

    /// <summary>Fields of a VMSA that are not 0, by offset, for people: "cs" "f000 attrib 009b limit 0000ffff base ffff0000", "cr0" "0x10".</summary>
    /// <param name="page">4096 bytes, unencrypted.</param>
    public static IReadOnlyList<VmsaField> Describe(ReadOnlySpan<byte> page)
    {
        CheckSize(page);
        const int segmentSize = 16;
        var fields = new List<VmsaField>();
        for (int i = 0; i < Segments.Length; i++)
        {
            ReadOnlySpan<byte> seg = page.Slice(i * segmentSize, segmentSize);
            if (seg.IndexOfAnyExcept((byte)0) >= 0)
            {
                ushort selector = BinaryPrimitives.ReadUInt16LittleEndian(seg);
                ushort attrib = BinaryPrimitives.ReadUInt16LittleEndian(seg[2..]);
                uint limit = BinaryPrimitives.ReadUInt32LittleEndian(seg[4..]);
                ulong @base = BinaryPrimitives.ReadUInt64LittleEndian(seg[8..]);
                string text = string.Create(CultureInfo.InvariantCulture, $"{selector:x4} attrib {attrib:x4} limit {limit:x8} base {@base:x}");
                fields.Add(new VmsaField(i * segmentSize, segmentSize, Segments[i], text));
            }
        }
        foreach ((int offset, int size, string name) in Scalars)
        {
            ulong value = 0;
            for (int i = size - 1; i >= 0; i--)
            {
                value = (value << 8) | page[offset + i];
            }
            if (value != 0)
            {
                fields.Add(new VmsaField(offset, size, name, "0x" + value.ToString("x", CultureInfo.InvariantCulture)));
            }
        }
        AddBytes(fields, page, FpregX87, FpregXmm - FpregX87, "fpreg_x87");
        AddBytes(fields, page, FpregXmm, FpregYmm - FpregXmm, "fpreg_xmm");
        AddBytes(fields, page, FpregYmm, YmmSize, "fpreg_ymm");
        return fields;
    }

    /// <summary>
    /// sev_es_sync_vmsa, the part behind its checks: the page as firmware is to encrypt it.
    /// </summary>
    /// <param name="page">4096 bytes; overwritten as a whole.</param>
    /// <param name="sevFeatures">The VM's vmsa_features.</param>
    /// <param name="copyFpu">The VM was made by KVM_SEV_INIT2 (VM type not 0). KVM_SEV_ES_INIT never copied floating-point state, and digests depend
    /// on it.</param>
    internal static void Sync(Span<byte> page, VcpuArch arch, ulong sevFeatures, bool copyFpu)
    {
        CheckSize(page);
        page.Clear();

        // The VMCB's save area as it is. CR2 and DR0 to DR3 are not in it before the first entry to the guest, so they stay 0 whatever user space has
        // set.
        VmcbSave save = arch.Save;
        save.SegmentBytes.CopyTo(page);
        page[Cpl] = save.Cpl;
        Put(page, Efer, save.Efer);
        Put(page, Cr4, save.Cr4);
        Put(page, Cr3, save.Cr3);
        Put(page, Cr0, save.Cr0);
        Put(page, Dr7, save.Dr7);
        Put(page, Star, save.Star);
        Put(page, Lstar, save.Lstar);
        Put(page, Cstar, save.Cstar);
        Put(page, Sfmask, save.Sfmask);
        Put(page, KernelGsBase, save.KernelGsBase);
        Put(page, SysenterCs, save.SysenterCs);
        Put(page, SysenterEsp, save.SysenterEsp);
        Put(page, SysenterEip, save.SysenterEip);
        Put(page, GPat, save.GPat);
        Put(page, Dbgctl, save.Dbgctl);
        Put(page, SpecCtrl, save.SpecCtrl);

        kvm_regs regs = arch.Regs;
        Put(page, Rflags, regs.rflags);
        Put(page, Rip, regs.rip);
        Put(page, Rsp, regs.rsp);
        Put(page, Rax, regs.rax);
        Put(page, Rcx, regs.rcx);
        Put(page, Rdx, regs.rdx);
        Put(page, Rbx, regs.rbx);
        Put(page, Rbp, regs.rbp);
        Put(page, Rsi, regs.rsi);
        Put(page, Rdi, regs.rdi);
        int offset = R8;
        foreach (ulong register in (ReadOnlySpan<ulong>)[regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15])
        {
            Put(page, offset, register);
            offset += sizeof(ulong);
        }

        Put(page, Xcr0, arch.Xcr0);
        BinaryPrimitives.WriteUInt32LittleEndian(page[Pkru..], arch.Pkru);
        Put(page, Xss, arch.Xss);
        Put(page, Dr6, arch.Dr6);
        Put(page, SevFeatures, sevFeatures);
        if (copyFpu)
        {
            CopyFpu(page, arch.Xsave, arch.XstateBv);
        }
    }

    // From the FXSAVE layout. The legacy registers are taken whether or not XSTATE_BV has them; AVX only if it does.
    private static void CopyFpu(Span<byte> page, ReadOnlySpan<byte> xsave, ulong xstateBv)
    {
        const int fcw = 0x00;
        const int fsw = 0x02;
        const int ftw = 0x04;
        const int fop = 0x06;
        const int rip = 0x08;
        const int rdp = 0x10;
        const int mxcsr = 0x18;
        const int st = 0x20;
        const int xmm = 0xA0;
        xsave.Slice(rdp, 8).CopyTo(page[X87Dp..]);
        xsave.Slice(mxcsr, 4).CopyTo(page[Mxcsr..]);
        xsave.Slice(ftw, 2).CopyTo(page[X87Ftw..]);
        xsave.Slice(fsw, 2).CopyTo(page[X87Fsw..]);
        xsave.Slice(fcw, 2).CopyTo(page[X87Fcw..]);
        xsave.Slice(fop, 2).CopyTo(page[X87Fop..]);
        xsave.Slice(rip, 8).CopyTo(page[X87Rip..]);
        for (int i = 0; i < 8; i++)
        {
            // 80-bit registers, torn: eight times bytes 0 to 7, then eight times bytes 8 and 9.
            ReadOnlySpan<byte> register = xsave.Slice(st + (16 * i), 10);
            register[..8].CopyTo(page[(FpregX87 + (8 * i))..]);
            register[8..].CopyTo(page[(FpregX87Tops + (2 * i))..]);
        }
        xsave.Slice(xmm, FpregYmm - FpregXmm).CopyTo(page[FpregXmm..]);
        if ((xstateBv & XfeatureYmm) != 0)
        {
            xsave.Slice(XsaveYmm, YmmSize).CopyTo(page[FpregYmm..]);
        }
    }

    private static void Put(Span<byte> page, int offset, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(page[offset..], value);

    private static void AddBytes(List<VmsaField> fields, ReadOnlySpan<byte> page, int offset, int size, string name)
    {
        ReadOnlySpan<byte> bytes = page.Slice(offset, size);
        if (bytes.IndexOfAnyExcept((byte)0) >= 0)
        {
            fields.Add(new VmsaField(offset, size, name, Convert.ToHexStringLower(bytes)));
        }
    }

    private static void CheckSize(ReadOnlySpan<byte> page)
    {
        if (page.Length != Size)
        {
            throw new ArgumentException($"a VMSA has {Size} bytes, not {page.Length}", nameof(page));
        }
    }
}

/// <summary>A field of a VMSA.</summary>
/// <param name="Offset">In the page.</param>
/// <param name="Size">Bytes.</param>
/// <param name="Name">As in the AMD manual and the kernel.</param>
/// <param name="Text">The value for people: hexadecimal.</param>
public readonly record struct VmsaField(int Offset, int Size, string Name, string Text);
