using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Google.Protobuf;
using SimKvm.Abi;
using VmmService.V1;

namespace VmmService.Server.Wire;

/// <summary>Between messages and the structures of the vCPU fd, field by field.</summary>
internal static class VcpuStructs
{
    private static readonly int HeadSize = Unsafe.SizeOf<kvm_cpuid2>();
    private static readonly int CpuidEntrySize = Unsafe.SizeOf<kvm_cpuid_entry2>();
    private static readonly int MsrEntrySize = Unsafe.SizeOf<kvm_msr_entry>();

    public static kvm_regs ToAbi(KvmRegs? regs) => regs is null ? throw Structs.Missing("regs") : new()
    {
        rax = regs.Rax,
        rbx = regs.Rbx,
        rcx = regs.Rcx,
        rdx = regs.Rdx,
        rsi = regs.Rsi,
        rdi = regs.Rdi,
        rsp = regs.Rsp,
        rbp = regs.Rbp,
        r8 = regs.R8,
        r9 = regs.R9,
        r10 = regs.R10,
        r11 = regs.R11,
        r12 = regs.R12,
        r13 = regs.R13,
        r14 = regs.R14,
        r15 = regs.R15,
        rip = regs.Rip,
        rflags = regs.Rflags,
    };

    public static KvmRegs FromAbi(in kvm_regs regs) => new()
    {
        Rax = regs.rax,
        Rbx = regs.rbx,
        Rcx = regs.rcx,
        Rdx = regs.rdx,
        Rsi = regs.rsi,
        Rdi = regs.rdi,
        Rsp = regs.rsp,
        Rbp = regs.rbp,
        R8 = regs.r8,
        R9 = regs.r9,
        R10 = regs.r10,
        R11 = regs.r11,
        R12 = regs.r12,
        R13 = regs.r13,
        R14 = regs.r14,
        R15 = regs.r15,
        Rip = regs.rip,
        Rflags = regs.rflags,
    };

    public static kvm_sregs ToAbi(KvmSregs? message)
    {
        if (message is null)
        {
            throw Structs.Missing("sregs");
        }
        var sregs = new kvm_sregs
        {
            cs = Segment("sregs.cs", message.Cs),
            ds = Segment("sregs.ds", message.Ds),
            es = Segment("sregs.es", message.Es),
            fs = Segment("sregs.fs", message.Fs),
            gs = Segment("sregs.gs", message.Gs),
            ss = Segment("sregs.ss", message.Ss),
            tr = Segment("sregs.tr", message.Tr),
            ldt = Segment("sregs.ldt", message.Ldt),
            gdt = Table("sregs.gdt", message.Gdt),
            idt = Table("sregs.idt", message.Idt),
            cr0 = message.Cr0,
            cr2 = message.Cr2,
            cr3 = message.Cr3,
            cr4 = message.Cr4,
            cr8 = message.Cr8,
            efer = message.Efer,
            apic_base = message.ApicBase,
        };
        Structs.Fixed("sregs.interrupt_bitmap", message.InterruptBitmap, BytesOf(ref sregs.interrupt_bitmap));
        return sregs;
    }

    public static KvmSregs FromAbi(kvm_sregs sregs) => new()
    {
        Cs = Segment(sregs.cs),
        Ds = Segment(sregs.ds),
        Es = Segment(sregs.es),
        Fs = Segment(sregs.fs),
        Gs = Segment(sregs.gs),
        Ss = Segment(sregs.ss),
        Tr = Segment(sregs.tr),
        Ldt = Segment(sregs.ldt),
        Gdt = new KvmDtable { Base = sregs.gdt.@base, Limit = sregs.gdt.limit },
        Idt = new KvmDtable { Base = sregs.idt.@base, Limit = sregs.idt.limit },
        Cr0 = sregs.cr0,
        Cr2 = sregs.cr2,
        Cr3 = sregs.cr3,
        Cr4 = sregs.cr4,
        Cr8 = sregs.cr8,
        Efer = sregs.efer,
        ApicBase = sregs.apic_base,
        InterruptBitmap = ByteString.CopyFrom(BytesOf(ref sregs.interrupt_bitmap)),
    };

    public static kvm_fpu ToAbi(KvmFpu? message)
    {
        if (message is null)
        {
            throw Structs.Missing("fpu");
        }
        var fpu = new kvm_fpu
        {
            fcw = Structs.U16("fpu.fcw", message.Fcw),
            fsw = Structs.U16("fpu.fsw", message.Fsw),
            ftwx = Structs.U8("fpu.ftwx", message.Ftwx),
            last_opcode = Structs.U16("fpu.last_opcode", message.LastOpcode),
            last_ip = message.LastIp,
            last_dp = message.LastDp,
            mxcsr = message.Mxcsr,
        };
        Structs.Fixed("fpu.fpr", message.Fpr, BytesOf(ref fpu.fpr));
        Structs.Fixed("fpu.xmm", message.Xmm, BytesOf(ref fpu.xmm));
        return fpu;
    }

    public static KvmFpu FromAbi(kvm_fpu fpu) => new()
    {
        Fpr = ByteString.CopyFrom(BytesOf(ref fpu.fpr)),
        Fcw = fpu.fcw,
        Fsw = fpu.fsw,
        Ftwx = fpu.ftwx,
        LastOpcode = fpu.last_opcode,
        LastIp = fpu.last_ip,
        LastDp = fpu.last_dp,
        Xmm = ByteString.CopyFrom(BytesOf(ref fpu.xmm)),
        Mxcsr = fpu.mxcsr,
    };

    public static kvm_xcrs ToAbi(IReadOnlyList<KvmXcr> messages, uint flags)
    {
        if (messages.Count > kvm_xcrs.MAX_XCRS)
        {
            throw Refusals.BadField("xcrs", $"{messages.Count} were given; kvm_xcrs has room for {kvm_xcrs.MAX_XCRS}");
        }
        var xcrs = new kvm_xcrs { nr_xcrs = (uint)messages.Count, flags = flags };
        for (int i = 0; i < messages.Count; i++)
        {
            xcrs.xcrs[i] = new kvm_xcr { xcr = messages[i].Xcr, value = messages[i].Value };
        }
        return xcrs;
    }

    public static IEnumerable<KvmXcr> FromAbi(kvm_xcrs xcrs)
    {
        for (int i = 0; i < xcrs.nr_xcrs; i++)
        {
            yield return new KvmXcr { Xcr = xcrs.xcrs[i].xcr, Value = xcrs.xcrs[i].value };
        }
    }

    public static kvm_debugregs ToAbi(KvmDebugregs? message)
    {
        if (message is null)
        {
            throw Structs.Missing("debugregs");
        }
        var debugregs = new kvm_debugregs { dr6 = message.Dr6, dr7 = message.Dr7, flags = message.Flags };
        if (message.Db.Count is not (0 or 4))
        {
            throw Refusals.BadField("debugregs.db", $"{message.Db.Count} registers were given; there are four, or leave them out for zeros");
        }
        for (int i = 0; i < message.Db.Count; i++)
        {
            debugregs.db[i] = message.Db[i];
        }
        return debugregs;
    }

    public static KvmDebugregs FromAbi(kvm_debugregs debugregs)
    {
        var message = new KvmDebugregs { Dr6 = debugregs.dr6, Dr7 = debugregs.dr7, Flags = debugregs.flags };
        for (int i = 0; i < 4; i++)
        {
            message.Db.Add(debugregs.db[i]);
        }
        return message;
    }

    /// <summary>struct kvm_msrs with its entries behind it.</summary>
    public static byte[] MsrBuffer(IReadOnlyList<KvmMsrEntry> entries)
    {
        byte[] bytes = new byte[HeadSize + (entries.Count * MsrEntrySize)];
        MemoryMarshal.Write(bytes, new kvm_msrs { nmsrs = (uint)entries.Count });
        for (int i = 0; i < entries.Count; i++)
        {
            MemoryMarshal.Write(bytes.AsSpan(HeadSize + (i * MsrEntrySize)), new kvm_msr_entry { index = entries[i].Index, data = entries[i].Data });
        }
        return bytes;
    }

    public static IEnumerable<KvmMsrEntry> ReadMsrs(byte[] bytes, int count)
    {
        for (int i = 0; i < count; i++)
        {
            var entry = MemoryMarshal.Read<kvm_msr_entry>(bytes.AsSpan(HeadSize + (i * MsrEntrySize)));
            yield return new KvmMsrEntry { Index = entry.index, Data = entry.data };
        }
    }

    /// <summary>struct kvm_cpuid2 with room for so many entries.</summary>
    public static byte[] CpuidBuffer(int entries)
    {
        byte[] bytes = new byte[HeadSize + (entries * CpuidEntrySize)];
        MemoryMarshal.Write(bytes, new kvm_cpuid2 { nent = (uint)entries });
        return bytes;
    }

    public static byte[] CpuidBuffer(IReadOnlyList<KvmCpuidEntry2> entries)
    {
        byte[] bytes = CpuidBuffer(entries.Count);
        for (int i = 0; i < entries.Count; i++)
        {
            KvmCpuidEntry2 entry = entries[i];
            MemoryMarshal.Write(bytes.AsSpan(HeadSize + (i * CpuidEntrySize)), new kvm_cpuid_entry2
            {
                function = entry.Function,
                index = entry.Index,
                flags = entry.Flags,
                eax = entry.Eax,
                ebx = entry.Ebx,
                ecx = entry.Ecx,
                edx = entry.Edx,
            });
        }
        return bytes;
    }

    public static IEnumerable<KvmCpuidEntry2> ReadCpuid(byte[] bytes)
    {
        uint count = MemoryMarshal.Read<kvm_cpuid2>(bytes).nent;
        for (int i = 0; i < count; i++)
        {
            var entry = MemoryMarshal.Read<kvm_cpuid_entry2>(bytes.AsSpan(HeadSize + (i * CpuidEntrySize)));
            yield return new KvmCpuidEntry2
            {
                Function = entry.function,
                Index = entry.index,
                Flags = entry.flags,
                Eax = entry.eax,
                Ebx = entry.ebx,
                Ecx = entry.ecx,
                Edx = entry.edx,
            };
        }
    }

    private static kvm_segment Segment(string field, KvmSegment? message) => message is null ? default : new()
    {
        @base = message.Base,
        limit = message.Limit,
        selector = Structs.U16($"{field}.selector", message.Selector),
        type = Structs.U8($"{field}.type", message.Type),
        present = Structs.U8($"{field}.present", message.Present),
        dpl = Structs.U8($"{field}.dpl", message.Dpl),
        db = Structs.U8($"{field}.db", message.Db),
        s = Structs.U8($"{field}.s", message.S),
        l = Structs.U8($"{field}.l", message.L),
        g = Structs.U8($"{field}.g", message.G),
        avl = Structs.U8($"{field}.avl", message.Avl),
        unusable = Structs.U8($"{field}.unusable", message.Unusable),
    };

    private static KvmSegment Segment(in kvm_segment segment) => new()
    {
        Base = segment.@base,
        Limit = segment.limit,
        Selector = segment.selector,
        Type = segment.type,
        Present = segment.present,
        Dpl = segment.dpl,
        Db = segment.db,
        S = segment.s,
        L = segment.l,
        G = segment.g,
        Avl = segment.avl,
        Unusable = segment.unusable,
    };

    private static kvm_dtable Table(string field, KvmDtable? message) => message is null ? default : new()
    {
        @base = message.Base,
        limit = Structs.U16($"{field}.limit", message.Limit),
    };

    private static Span<byte> BytesOf<T>(ref T value)
        where T : unmanaged =>
        MemoryMarshal.AsBytes(new Span<T>(ref value));
}
