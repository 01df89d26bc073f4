using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace SimKvm.Abi;

// Registers of a vCPU as KVM_{GET,SET}_{REGS,SREGS,DEBUGREGS} exchange them (arch/x86/include/uapi/asm/kvm.h): the kernel's spelling and layout.
// The floating-point side is next door in KvmFpu.cs. No implicit padding anywhere.

/// <summary>Argument of KVM_GET_REGS and KVM_SET_REGS, 144 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_regs
{
    public ulong rax;
    public ulong rbx;
    public ulong rcx;
    public ulong rdx;
    public ulong rsi;
    public ulong rdi;
    public ulong rsp;
    public ulong rbp;
    public ulong r8;
    public ulong r9;
    public ulong r10;
    public ulong r11;
    public ulong r12;
    public ulong r13;
    public ulong r14;
    public ulong r15;
    public ulong rip;
    public ulong rflags;
}

/// <summary>A segment register with its descriptor taken apart, 24 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_segment
{
    public ulong @base;

    /// <summary>Bytes minus 1, granularity already applied.</summary>
    public uint limit;
    public ushort selector;
    public byte type;
    public byte present;
    public byte dpl;
    public byte db;
    public byte s;
    public byte l;
    public byte g;
    public byte avl;
    public byte unusable;
    public byte padding;
}

/// <summary>GDTR or IDTR, 16 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_dtable
{
    public ulong @base;
    public ushort limit;
    public ushort padding0;
    public ushort padding1;
    public ushort padding2;
}

/// <summary>Argument of KVM_GET_SREGS and KVM_SET_SREGS, 312 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sregs
{
    public kvm_segment cs;
    public kvm_segment ds;
    public kvm_segment es;
    public kvm_segment fs;
    public kvm_segment gs;
    public kvm_segment ss;
    public kvm_segment tr;
    public kvm_segment ldt;
    public kvm_dtable gdt;
    public kvm_dtable idt;
    public ulong cr0;
    public ulong cr2;
    public ulong cr3;
    public ulong cr4;
    public ulong cr8;
    public ulong efer;
    public ulong apic_base;

    /// <summary>256 bits; the lowest set one is the interrupt that waits to be delivered.</summary>
    public InlineArray4<ulong> interrupt_bitmap;
}

/// <summary>Argument of KVM_SET_GUEST_DEBUG, 72 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_guest_debug
{
    /// <summary>KVM_GUESTDBG_*: bit 0 enables, 1 single step, 16 software and 17 hardware breakpoints.</summary>
    public uint control;
    public uint pad;
    public InlineArray8<ulong> debugreg;
}

/// <summary>Argument of KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS, 128 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_debugregs
{
    /// <summary>DR0 to DR3.</summary>
    public InlineArray4<ulong> db;
    public ulong dr6;
    public ulong dr7;

    /// <summary>Must be 0.</summary>
    public ulong flags;
    public InlineArray9<ulong> reserved;
}
