// Sizes and offsets of the vCPU structures, against the kernel's header.

using System.Runtime.CompilerServices;
using SimKvm.Abi;
using Xunit;

namespace SimKvm.Tests.Abi;

public sealed class VcpuStructsTests
{
    [Fact]
    public void Sizes_AreThoseOfTheIoctlNumbers()
    {
        Assert.Equal(144, Unsafe.SizeOf<kvm_regs>());
        Assert.Equal(24, Unsafe.SizeOf<kvm_segment>());
        Assert.Equal(16, Unsafe.SizeOf<kvm_dtable>());
        Assert.Equal(312, Unsafe.SizeOf<kvm_sregs>());
        Assert.Equal(128, Unsafe.SizeOf<kvm_debugregs>());
        Assert.Equal(416, Unsafe.SizeOf<kvm_fpu>());
        Assert.Equal(4096, Unsafe.SizeOf<kvm_xsave>());
        Assert.Equal(16, Unsafe.SizeOf<kvm_xcr>());
        Assert.Equal(392, Unsafe.SizeOf<kvm_xcrs>());
        Assert.Equal(8, Unsafe.SizeOf<kvm_msrs>());
        Assert.Equal(16, Unsafe.SizeOf<kvm_msr_entry>());
        Assert.Equal(8, Unsafe.SizeOf<kvm_cpuid2>());
        Assert.Equal(40, Unsafe.SizeOf<kvm_cpuid_entry2>());
    }

    [Fact]
    public void Regs_Offsets()
    {
        kvm_regs regs = default;
        Check(ref regs, 0, ref regs.rax);
        Check(ref regs, 8, ref regs.rbx);
        Check(ref regs, 16, ref regs.rcx);
        Check(ref regs, 24, ref regs.rdx);
        Check(ref regs, 32, ref regs.rsi);
        Check(ref regs, 40, ref regs.rdi);
        Check(ref regs, 48, ref regs.rsp);
        Check(ref regs, 56, ref regs.rbp);
        Check(ref regs, 64, ref regs.r8);
        Check(ref regs, 72, ref regs.r9);
        Check(ref regs, 80, ref regs.r10);
        Check(ref regs, 88, ref regs.r11);
        Check(ref regs, 96, ref regs.r12);
        Check(ref regs, 104, ref regs.r13);
        Check(ref regs, 112, ref regs.r14);
        Check(ref regs, 120, ref regs.r15);
        Check(ref regs, 128, ref regs.rip);
        Check(ref regs, 136, ref regs.rflags);
    }

    [Fact]
    public void Segment_Offsets()
    {
        kvm_segment segment = default;
        Check(ref segment, 0, ref segment.@base);
        Check(ref segment, 8, ref segment.limit);
        Check(ref segment, 12, ref segment.selector);
        Check(ref segment, 14, ref segment.type);
        Check(ref segment, 15, ref segment.present);
        Check(ref segment, 16, ref segment.dpl);
        Check(ref segment, 17, ref segment.db);
        Check(ref segment, 18, ref segment.s);
        Check(ref segment, 19, ref segment.l);
        Check(ref segment, 20, ref segment.g);
        Check(ref segment, 21, ref segment.avl);
        Check(ref segment, 22, ref segment.unusable);
        Check(ref segment, 23, ref segment.padding);
    }

    [Fact]
    public void Dtable_Offsets()
    {
        kvm_dtable table = default;
        Check(ref table, 0, ref table.@base);
        Check(ref table, 8, ref table.limit);
        Check(ref table, 10, ref table.padding0);
        Check(ref table, 12, ref table.padding1);
        Check(ref table, 14, ref table.padding2);
    }

    [Fact]
    public void Sregs_Offsets()
    {
        kvm_sregs sregs = default;
        Check(ref sregs, 0, ref sregs.cs);
        Check(ref sregs, 24, ref sregs.ds);
        Check(ref sregs, 48, ref sregs.es);
        Check(ref sregs, 72, ref sregs.fs);
        Check(ref sregs, 96, ref sregs.gs);
        Check(ref sregs, 120, ref sregs.ss);
        Check(ref sregs, 144, ref sregs.tr);
        Check(ref sregs, 168, ref sregs.ldt);
        Check(ref sregs, 192, ref sregs.gdt);
        Check(ref sregs, 208, ref sregs.idt);
        Check(ref sregs, 224, ref sregs.cr0);
        Check(ref sregs, 232, ref sregs.cr2);
        Check(ref sregs, 240, ref sregs.cr3);
        Check(ref sregs, 248, ref sregs.cr4);
        Check(ref sregs, 256, ref sregs.cr8);
        Check(ref sregs, 264, ref sregs.efer);
        Check(ref sregs, 272, ref sregs.apic_base);
        Check(ref sregs, 280, ref sregs.interrupt_bitmap);
    }

    [Fact]
    public void Debugregs_Offsets()
    {
        kvm_debugregs debugregs = default;
        Check(ref debugregs, 0, ref debugregs.db);
        Check(ref debugregs, 32, ref debugregs.dr6);
        Check(ref debugregs, 40, ref debugregs.dr7);
        Check(ref debugregs, 48, ref debugregs.flags);
        Check(ref debugregs, 56, ref debugregs.reserved);
    }

    [Fact]
    public void Fpu_Offsets()
    {
        kvm_fpu fpu = default;
        Check(ref fpu, 0, ref fpu.fpr);
        Check(ref fpu, 128, ref fpu.fcw);
        Check(ref fpu, 130, ref fpu.fsw);
        Check(ref fpu, 132, ref fpu.ftwx);
        Check(ref fpu, 133, ref fpu.pad1);
        Check(ref fpu, 134, ref fpu.last_opcode);
        Check(ref fpu, 136, ref fpu.last_ip);
        Check(ref fpu, 144, ref fpu.last_dp);
        Check(ref fpu, 152, ref fpu.xmm);
        Check(ref fpu, 408, ref fpu.mxcsr);
        Check(ref fpu, 412, ref fpu.pad2);
    }

    [Fact]
    public void Xcrs_Offsets()
    {
        kvm_xcrs xcrs = default;
        Check(ref xcrs, 0, ref xcrs.nr_xcrs);
        Check(ref xcrs, 4, ref xcrs.flags);
        Check(ref xcrs, 8, ref xcrs.xcrs);
        Check(ref xcrs, 264, ref xcrs.padding);
        kvm_xcr xcr = default;
        Check(ref xcr, 0, ref xcr.xcr);
        Check(ref xcr, 4, ref xcr.reserved);
        Check(ref xcr, 8, ref xcr.value);
    }

    [Fact]
    public void Msr_Offsets()
    {
        kvm_msrs head = default;
        Check(ref head, 0, ref head.nmsrs);
        Check(ref head, 4, ref head.pad);
        kvm_msr_entry entry = default;
        Check(ref entry, 0, ref entry.index);
        Check(ref entry, 4, ref entry.reserved);
        Check(ref entry, 8, ref entry.data);
    }

    [Fact]
    public void Cpuid_Offsets()
    {
        kvm_cpuid2 head = default;
        Check(ref head, 0, ref head.nent);
        Check(ref head, 4, ref head.padding);
        kvm_cpuid_entry2 entry = default;
        Check(ref entry, 0, ref entry.function);
        Check(ref entry, 4, ref entry.index);
        Check(ref entry, 8, ref entry.flags);
        Check(ref entry, 12, ref entry.eax);
        Check(ref entry, 16, ref entry.ebx);
        Check(ref entry, 20, ref entry.ecx);
        Check(ref entry, 24, ref entry.edx);
        Check(ref entry, 28, ref entry.padding0);
        Check(ref entry, 32, ref entry.padding1);
        Check(ref entry, 36, ref entry.padding2);
    }

    private static void Check<TStruct, TField>(ref TStruct whole, int offset, ref TField field) =>
        Assert.Equal(offset, (int)Unsafe.ByteOffset(ref Unsafe.As<TStruct, byte>(ref whole), ref Unsafe.As<TField, byte>(ref field)));
}
