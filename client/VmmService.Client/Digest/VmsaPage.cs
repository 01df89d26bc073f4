using System.Buffers.Binary;
using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>A field in which two VMSAs differ.</summary>
/// <param name="Field">Which.</param>
/// <param name="A">What the first has, as a number; of a field wider than 8 bytes the first 8.</param>
/// <param name="B">What the second has.</param>
public readonly record struct VmsaDifference(VmsaField Field, ulong A, ulong B)
{
    public override string ToString() => $"{Field.Name} (offset 0x{Field.Offset:x}) is 0x{A:x} in A and 0x{B:x} in B";
}

/// <summary>The page that a vCPU is measured as, made from its registers (snp.md 7.1), and the comparison of two of them.</summary>
public static class VmsaPage
{
    /// <summary>Where KVM tells firmware that every VMSA is: INITIAL_VMSA_GPA in sev.c.</summary>
    public const ulong KvmGpa = 0xffff_ffff_f000;

    /// <summary>Lays out a VMSA of 4096 bytes.</summary>
    /// <param name="state">The registers.</param>
    /// <param name="sevFeatures">SEV_FEATURES; 0 for SEV-ES.</param>
    public static byte[] Build(VcpuResetState state, ulong sevFeatures)
    {
        ArgumentNullException.ThrowIfNull(state);
        byte[] page = new byte[VmsaLayout.Size];
        foreach ((string name, SegmentState segment) in new[]
        {
            ("es", state.Es), ("cs", state.Cs), ("ss", state.Ss), ("ds", state.Ds), ("fs", state.Fs), ("gs", state.Gs), ("ldtr", state.Ldtr), ("tr", state.Tr),
            ("gdtr", new SegmentState(0, default, state.Gdtr.Limit, state.Gdtr.Base)), ("idtr", new SegmentState(0, default, state.Idtr.Limit, state.Idtr.Base)),
        })
        {
            Put(page, $"{name}.selector", segment.Selector);
            Put(page, $"{name}.attrib", segment.Attrib.Value);
            Put(page, $"{name}.limit", segment.Limit);
            Put(page, $"{name}.base", segment.Base);
        }

        foreach ((string name, ulong value) in new[]
        {
            ("efer", state.Efer), ("cr4", state.Cr4), ("cr3", state.Cr3), ("cr0", state.Cr0), ("dr7", state.Dr7), ("dr6", state.Dr6), ("rflags", state.Rflags), ("rip", state.Rip),
            ("rsp", state.Rsp), ("rax", state.Rax), ("g_pat", state.GPat), ("rcx", state.Rcx), ("rdx", state.Rdx), ("rbx", state.Rbx), ("rbp", state.Rbp), ("rsi", state.Rsi),
            ("rdi", state.Rdi), ("r8", state.R8), ("r9", state.R9), ("r10", state.R10), ("r11", state.R11), ("r12", state.R12), ("r13", state.R13), ("r14", state.R14),
            ("r15", state.R15), ("sev_features", sevFeatures), ("xcr0", state.Xcr0), ("mxcsr", state.Mxcsr), ("x87_fcw", state.Fcw),
            // KVM's svm_set_segment: the CPL is the DPL of the stack segment.
            ("cpl", state.Ss.Attrib.Dpl),
        })
        {
            Put(page, name, value);
        }

        return page;
    }

    /// <summary>The fields in which two VMSAs differ, by offset. Reserved bytes are told one by one.</summary>
    public static IReadOnlyList<VmsaDifference> Compare(ReadOnlySpan<byte> a, ReadOnlySpan<byte> b)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(a.Length, VmsaLayout.Size);
        ArgumentOutOfRangeException.ThrowIfNotEqual(b.Length, VmsaLayout.Size);
        List<VmsaDifference> differences = [];
        for (int offset = 0; offset < VmsaLayout.Size;)
        {
            if (a[offset] == b[offset])
            {
                offset++;
                continue;
            }

            VmsaField field = VmsaLayout.At(offset);
            differences.Add(new VmsaDifference(field, Get(a, field), Get(b, field)));
            offset = field.End;
        }

        return differences;
    }

    private static void Put(Span<byte> page, string name, ulong value)
    {
        VmsaField field = VmsaLayout.Field(name);
        Span<byte> bytes = stackalloc byte[sizeof(ulong)];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        bytes[..field.Size].CopyTo(page[field.Offset..]);
    }

    private static ulong Get(ReadOnlySpan<byte> page, VmsaField field)
    {
        Span<byte> bytes = stackalloc byte[sizeof(ulong)];
        bytes.Clear();
        page.Slice(field.Offset, Math.Min(field.Size, sizeof(ulong))).CopyTo(bytes);
        return BinaryPrimitives.ReadUInt64LittleEndian(bytes);
    }
}
