// KVM_{GET,SET}_{REGS,SREGS,DEBUGREGS}: reset state, round trips, every refusal.

using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Amd;
using Xunit;

namespace SimKvm.Tests.X86;

public sealed class RegsTests : IDisposable
{
    private readonly TestVcpu _vcpu = new();

    private delegate void Change(ref kvm_sregs sregs);

    private static readonly Dictionary<string, Change> Changes = new()
    {
        ["long mode without CR4.PAE"] = (ref s) => { s.efer = 0x500; s.cr0 = 0x80000011; },
        ["long mode without EFER.LMA"] = (ref s) => { s.efer = 0x100; s.cr0 = 0x80000011; s.cr4 = 0x20; },
        ["CR3 beyond 36 bits"] = (ref s) => { s.efer = 0x500; s.cr0 = 0x80000011; s.cr4 = 0x20; s.cr3 = 1UL << 36; },
        ["LMA without paging"] = (ref s) => s.efer = 0x400,
        ["LMA with paging, without LME"] = (ref s) => { s.efer = 0x400; s.cr0 = 0x80000011; s.cr4 = 0x20; },
        ["CS.L without long mode"] = (ref s) => s.cs.l = 1,
        ["CR4.SMXE"] = (ref s) => s.cr4 = 1 << 14,
        ["CR4 bit 40"] = (ref s) => s.cr4 = 1UL << 40,
        ["CR4.VMXE"] = (ref s) => s.cr4 = 1 << 13,
        ["CR4.OSXSAVE without CPUID"] = (ref s) => s.cr4 = 1 << 18,
        ["CR4.UMIP without CPUID"] = (ref s) => s.cr4 = 1 << 11,
        ["CR4.SMEP without CPUID"] = (ref s) => s.cr4 = 1 << 20,
        ["CR0 bit 32"] = (ref s) => s.cr0 |= 1UL << 32,
        ["CR0.NW without CD"] = (ref s) => s.cr0 = 0x20000010,
        ["CR0.PG without PE"] = (ref s) => s.cr0 = 0x80000010,
        ["APIC base bit 0"] = (ref s) => s.apic_base = 0xFEE00901,
        ["APIC base bit 9"] = (ref s) => s.apic_base = 0xFEE00A00,
        ["APIC base bit 40"] = (ref s) => s.apic_base = 1UL << 40,
        ["x2APIC without CPUID"] = (ref s) => s.apic_base = 0xFEE00D00,
        ["bad CR4, CR0 and APIC base: CR4 is looked at first"] = (ref s) => { s.cr4 = 1 << 14; s.cr0 = 1UL << 32; s.apic_base = 1; },
        ["bad CR0 and APIC base: CR0 is looked at first"] = (ref s) => { s.cr0 = 1UL << 32; s.apic_base = 1; },
    };

    public static TheoryData<string, string> BadSregs => new()
    {
        { "long mode without CR4.PAE", "kvm.x86.set-sregs.long-mode-without-pae" },
        { "long mode without EFER.LMA", "kvm.x86.set-sregs.long-mode-without-pae" },
        { "CR3 beyond 36 bits", "kvm.x86.set-sregs.cr3-illegal" },
        { "LMA without paging", "kvm.x86.set-sregs.lma-outside-long-mode" },
        { "LMA with paging, without LME", "kvm.x86.set-sregs.lma-outside-long-mode" },
        { "CS.L without long mode", "kvm.x86.set-sregs.lma-outside-long-mode" },
        { "CR4.SMXE", "kvm.x86.set-sregs.cr4-reserved" },
        { "CR4 bit 40", "kvm.x86.set-sregs.cr4-reserved" },
        { "CR4.VMXE", "kvm.x86.set-sregs.cr4-reserved" },
        { "CR4.OSXSAVE without CPUID", "kvm.x86.set-sregs.cr4-reserved" },
        { "CR4.UMIP without CPUID", "kvm.x86.set-sregs.cr4-reserved" },
        { "CR4.SMEP without CPUID", "kvm.x86.set-sregs.cr4-reserved" },
        { "CR0 bit 32", "kvm.x86.set-sregs.cr0-upper-bits" },
        { "CR0.NW without CD", "kvm.x86.set-sregs.cr0-nw-without-cd" },
        { "CR0.PG without PE", "kvm.x86.set-sregs.cr0-pg-without-pe" },
        { "APIC base bit 0", "kvm.x86.apic-base.reserved" },
        { "APIC base bit 9", "kvm.x86.apic-base.reserved" },
        { "APIC base bit 40", "kvm.x86.apic-base.reserved" },
        { "x2APIC without CPUID", "kvm.x86.apic-base.reserved" },
        { "bad CR4, CR0 and APIC base: CR4 is looked at first", "kvm.x86.set-sregs.cr4-reserved" },
        { "bad CR0 and APIC base: CR0 is looked at first", "kvm.x86.set-sregs.cr0-upper-bits" },
    };

    public static TheoryData<ulong, ulong, ulong, string> BadDebugregs => new()
    {
        { 0, 0, 1, "kvm.x86.set-debugregs.flags" },
        { 1UL << 32, 0, 0, "kvm.x86.set-debugregs.dr6-upper-bits" },
        { 0, 1UL << 63, 0, "kvm.x86.set-debugregs.dr7-upper-bits" },
        { 1UL << 32, 1UL << 32, 1, "kvm.x86.set-debugregs.flags" },
        { 1UL << 32, 1UL << 32, 0, "kvm.x86.set-debugregs.dr6-upper-bits" },
    };

    public void Dispose() => _vcpu.Dispose();

    [Fact]
    public void FreshVcpu_IsInTheResetState()
    {
        kvm_regs regs = _vcpu.Regs();
        Assert.Equal(new kvm_regs { rip = 0xFFF0, rflags = 2, rdx = 0x600 }, regs);
        kvm_sregs sregs = _vcpu.Sregs();
        Assert.Equal(0x60000010UL, sregs.cr0);
        Assert.Equal(0UL, sregs.cr4);
        Assert.Equal(0UL, sregs.efer);
        Assert.Equal(0xFEE00900UL, sregs.apic_base);
        Assert.Equal(new kvm_segment { selector = 0xF000, @base = 0xFFFF0000, limit = 0xFFFF, type = 0xA, present = 1, s = 1 }, sregs.cs);
        Assert.Equal(new kvm_segment { limit = 0xFFFF, type = 2, present = 1, s = 1 }, sregs.ss);
        Assert.Equal(new kvm_segment { limit = 0xFFFF, type = 3, present = 1, s = 1 }, sregs.ds);
        Assert.Equal(new kvm_segment { limit = 0xFFFF, type = 3, present = 1 }, sregs.tr);
        Assert.Equal(new kvm_segment { limit = 0xFFFF, type = 2, present = 1 }, sregs.ldt);
        Assert.Equal(0xFFFF, sregs.gdt.limit);
        Assert.Equal(0xFFFF, sregs.idt.limit);
        Assert.Equal(Errno.OK, _vcpu.Arch.GetDebugregs(_vcpu.Current, out kvm_debugregs debugregs));
        Assert.Equal(0xFFFF0FF0UL, debugregs.dr6);
        Assert.Equal(0x400UL, debugregs.dr7);
    }

    [Fact]
    public void OtherVcpus_AreNotTheBootProcessor()
    {
        using var second = new TestVcpu(id: 1);
        Assert.Equal(0xFEE00800UL, second.Sregs().apic_base);
    }

    [Fact]
    public void SetRegs_IsReadBack_WithTheFixedFlag()
    {
        kvm_regs regs = default;
        Span<ulong> words = MemoryMarshal.Cast<kvm_regs, ulong>(new Span<kvm_regs>(ref regs));
        for (int i = 0; i < words.Length; i++)
        {
            words[i] = 0x1111_0000_0000_0000UL * (ulong)(i + 1);
        }
        Assert.Equal(Errno.OK, _vcpu.Arch.SetRegs(_vcpu.Current, regs));
        regs.rflags |= 2;
        Assert.Equal(regs, _vcpu.Regs());
    }

    [Theory]
    [MemberData(nameof(BadSregs))]
    public void SetSregs_OfAnImpossibleState_IsEinval_AndChangesNothing(string change, string rule)
    {
        kvm_sregs before = _vcpu.Sregs();
        kvm_sregs sregs = before;
        sregs.cr2 = 0x1234;
        Changes[change](ref sregs);

        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));

        Assert.Equal(rule, _vcpu.Refusal());
        TestVcpu.AssertSame(before, _vcpu.Sregs());
    }

    [Fact]
    public void SetSregs_X2apicWithoutEnable_IsAnInvalidMode()
    {
        _vcpu.SetSupportedCpuid();
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.apic_base = 0xFEE00500;
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        Assert.Equal("kvm.x86.apic-base.mode", _vcpu.Refusal());
        sregs.apic_base = 0xFEE00D00;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        sregs.apic_base = 0xFED00000;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        Assert.Equal(0xFED00000UL, _vcpu.Sregs().apic_base);
    }

    [Fact]
    public void SetSregs_LongMode_IsReadBack()
    {
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.efer = 0xD01;
        sregs.cr0 = 0x80050033;
        sregs.cr4 = 0x6A0;
        sregs.cr3 = 0x1000;
        sregs.cr2 = 0x5555;
        sregs.cr8 = 9;
        sregs.cs = new kvm_segment { selector = 0x10, limit = uint.MaxValue, type = 0xB, present = 1, s = 1, l = 1, g = 1 };
        sregs.ss = new kvm_segment { selector = 0x1B, limit = uint.MaxValue, type = 3, present = 1, s = 1, dpl = 3, db = 1, g = 1, avl = 1 };
        sregs.tr = new kvm_segment { selector = 0x40, limit = 0x67, type = 0xB, present = 1, @base = 0xFFFF_8880_0000_0000 };
        sregs.gdt = new kvm_dtable { @base = 0x2000, limit = 0x7F };
        sregs.idt = new kvm_dtable { @base = 0x3000, limit = 0xFFF };
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        TestVcpu.AssertSame(sregs, _vcpu.Sregs());
        Assert.Equal(0x1D01UL, _vcpu.Arch.Save.Efer);
        Assert.Equal(3, _vcpu.Arch.Save.Cpl);
    }

    [Fact]
    public void SetSregs_Cr3_MayHaveTheCBitOfTheGuestsCpuid()
    {
        _vcpu.SetSupportedCpuid();
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.efer = 0x500;
        sregs.cr0 = 0x80000011;
        sregs.cr4 = 0x20;
        sregs.cr3 = (1UL << 51) | 0x1000;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        sregs.cr3 = (1UL << 50) | 0x1000;
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        Assert.Equal("kvm.x86.set-sregs.cr3-illegal", _vcpu.Refusal());
    }

    [Fact]
    public void SetSregs_LeavingPaging_LosesLmeInTheVmcbOnly()
    {
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.efer = 0x500;
        sregs.cr0 = 0x80000011;
        sregs.cr4 = 0x20;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        sregs.efer = 0x100;
        sregs.cr0 = 0x11;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        Assert.Equal(0x100UL, _vcpu.Sregs().efer);
        Assert.Equal(0x1000UL, _vcpu.Arch.Save.Efer);
    }

    [Theory]
    [InlineData(11)]
    [InlineData(16)]
    [InlineData(17)]
    [InlineData(18)]
    [InlineData(20)]
    [InlineData(21)]
    [InlineData(22)]
    public void SetSregs_Cr4Feature_NeedsItsCpuid(int bit)
    {
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.cr4 = 1UL << bit;
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        _vcpu.SetSupportedCpuid();
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
    }

    [Theory]
    [InlineData(EpycProduct.Milan, Errno.EINVAL)]
    [InlineData(EpycProduct.Genoa, Errno.OK)]
    public void SetSregs_La57_IsThereSinceGenoa(EpycProduct product, Errno expected)
    {
        using var vcpu = new TestVcpu(product: product);
        vcpu.SetSupportedCpuid();
        kvm_sregs sregs = vcpu.Sregs();
        sregs.cr4 = 1 << 12;
        Assert.Equal(expected, vcpu.Arch.SetSregs(vcpu.Current, sregs));
    }

    [Fact]
    public void SetSregs_Cr8WithReservedBits_SucceedsAndIsIgnored()
    {
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.cr8 = 0x1F;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        Assert.Equal(0UL, _vcpu.Sregs().cr8);
    }

    [Fact]
    public void SetSregs_InterruptBitmap_KeepsTheLowestVector()
    {
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.interrupt_bitmap[2] = (1UL << 40) | (1UL << 50);
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        Assert.Equal(1UL << 40, _vcpu.Sregs().interrupt_bitmap[2]);
        sregs.interrupt_bitmap[2] = 0;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        Assert.Equal(1UL << 40, _vcpu.Sregs().interrupt_bitmap[2]);
    }

    [Fact]
    public void Segments_AreKeptAsSvmPacksThem()
    {
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.cs = new kvm_segment { limit = 0x123456, type = 0x1B, present = 3, dpl = 7, db = 3, s = 3, avl = 3, g = 0 };
        sregs.ds = new kvm_segment { limit = 0xFFFF, type = 2, present = 1, s = 1, unusable = 1 };
        sregs.ss = new kvm_segment { limit = 0xFFFF, type = 3, present = 1, s = 1, dpl = 2, db = 1, unusable = 1 };
        sregs.tr = new kvm_segment { limit = 0x67, type = 9, present = 1, padding = 0xFF };
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));

        Assert.Equal(0x5FB, _vcpu.Arch.Save[VmcbSegment.CS].attrib);
        kvm_sregs after = _vcpu.Sregs();
        Assert.Equal(new kvm_segment { limit = 0x123456, type = 0xB, present = 1, dpl = 3, db = 1, s = 1, avl = 1, g = 1 }, after.cs);
        Assert.Equal(new kvm_segment { limit = 0xFFFF, type = 2, s = 1, unusable = 1 }, after.ds);
        Assert.Equal(new kvm_segment { limit = 0xFFFF, type = 3, s = 1, dpl = 2, unusable = 1 }, after.ss);
        Assert.Equal(new kvm_segment { limit = 0x67, type = 0xB, present = 1 }, after.tr);
    }

    [Theory]
    [MemberData(nameof(BadDebugregs))]
    public void SetDebugregs_Bad_IsEinval(ulong dr6, ulong dr7, ulong flags, string rule)
    {
        var debugregs = new kvm_debugregs { dr6 = dr6, dr7 = dr7, flags = flags };
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetDebugregs(_vcpu.Current, debugregs));
        Assert.Equal(rule, _vcpu.Refusal());
        Assert.Equal(0x400UL, _vcpu.Arch.Dr7);
    }

    [Fact]
    public void SetDebugregs_IsReadBack_WithoutItsReservedWords()
    {
        var debugregs = new kvm_debugregs { dr6 = 0x55, dr7 = 0x7 };
        debugregs.db[3] = ulong.MaxValue;
        debugregs.reserved[8] = 5;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetDebugregs(_vcpu.Current, debugregs));
        debugregs.reserved[8] = 0;
        Assert.Equal(Errno.OK, _vcpu.Arch.GetDebugregs(_vcpu.Current, out kvm_debugregs after));
        TestVcpu.AssertSame(debugregs, after);
    }

    [Fact]
    public void EncryptedState_CannotBeReadOrWritten()
    {
        _vcpu.Arch.GuestStateProtected = true;
        foreach ((VcpuIoctl ioctl, int size) in new (VcpuIoctl, int)[]
        {
            (_vcpu.Arch.GetRegs, 144), (_vcpu.Arch.SetRegs, 144), (_vcpu.Arch.GetSregs, 312), (_vcpu.Arch.SetSregs, 312),
            (_vcpu.Arch.GetDebugregs, 128), (_vcpu.Arch.SetDebugregs, 128), (_vcpu.Arch.GetXcrs, 392), (_vcpu.Arch.SetXcrs, 392),
        })
        {
            Assert.Equal(Errno.EINVAL, ioctl(_vcpu.Current, UserArg.FromBytes(new byte[size])).Errno);
            Assert.Equal("kvm.x86.state-protected", _vcpu.Refusal());
        }
    }

    [Fact]
    public void EncryptedStateOfAVmWithoutProtectedState_ReadsAsStale()
    {
        using var es = new TestVcpu(hasProtectedState: false);
        kvm_sregs sregs = es.Sregs();
        es.Arch.GuestStateProtected = true;
        Assert.Equal(0x600UL, es.Regs().rdx);
        Assert.Equal(default, es.Sregs().cs);
        Assert.Equal(0x60000010UL, es.Sregs().cr0);
        sregs.cr0 = 0x11;
        sregs.apic_base = 0xFEE00800;
        Assert.Equal(Errno.OK, es.Arch.SetSregs(es.Current, sregs));
        Assert.Equal(0x60000010UL, es.Sregs().cr0);
        Assert.Equal(0xFEE00800UL, es.Sregs().apic_base);
    }

    [Fact]
    public void Ioctls_FaultWhereTheStructureIsNotMapped()
    {
        foreach ((VcpuIoctl ioctl, int size, string rule) in new (VcpuIoctl, int, string)[]
        {
            (_vcpu.Arch.GetRegs, 144, "to"), (_vcpu.Arch.SetRegs, 144, "from"), (_vcpu.Arch.GetSregs, 312, "to"),
            (_vcpu.Arch.SetSregs, 312, "from"),
            (_vcpu.Arch.GetDebugregs, 128, "to"), (_vcpu.Arch.SetDebugregs, 128, "from"), (_vcpu.Arch.GetFpu, 416, "to"),
            (_vcpu.Arch.SetFpu, 416, "from"),
            (_vcpu.Arch.GetXsave, 4096, "to"), (_vcpu.Arch.SetXsave, 4096, "from"), (_vcpu.Arch.GetXcrs, 392, "to"),
            (_vcpu.Arch.SetXcrs, 392, "from"), (_vcpu.Arch.GetMsrs, 8, "from"),
            (_vcpu.Arch.SetMsrs, 8, "from"), (_vcpu.Arch.GetCpuid2, 8, "from"), (_vcpu.Arch.SetCpuid2, 8, "from"),
        })
        {
            Assert.Equal(Errno.EFAULT, ioctl(_vcpu.Current, UserArg.FromBytes(new byte[size - 1])).Errno);
            Assert.Equal($"uaccess.copy-{rule}-user", _vcpu.Refusal());
            Assert.Equal(Errno.EFAULT, ioctl(_vcpu.Current, UserArg.FromValue(0)).Errno);
            Assert.Equal($"uaccess.copy-{rule}-user", _vcpu.Refusal());
        }
    }

    [Fact]
    public void Ioctls_RoundTripTheirBytes()
    {
        byte[] bytes = new byte[144];
        Assert.True(_vcpu.Arch.GetRegs(_vcpu.Current, UserArg.FromBytes(bytes)).Succeeded);
        Assert.Equal(0x600, bytes[24] | (bytes[25] << 8));
        bytes[0] = 0x77;
        Assert.True(_vcpu.Arch.SetRegs(_vcpu.Current, UserArg.FromBytes(bytes)).Succeeded);
        Assert.Equal(0x77UL, _vcpu.Regs().rax);

        bytes = new byte[312];
        Assert.True(_vcpu.Arch.GetSregs(_vcpu.Current, UserArg.FromBytes(bytes)).Succeeded);
        bytes[232] = 0x99;
        Assert.True(_vcpu.Arch.SetSregs(_vcpu.Current, UserArg.FromBytes(bytes)).Succeeded);
        Assert.Equal(0x99UL, _vcpu.Sregs().cr2);
    }
}
