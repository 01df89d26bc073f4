// KVM_{GET,SET}_{FPU,XSAVE,XCRS}. The XSAVE expectations without AVX-512 were seen on a 6.18 kernel.

using SimKvm.Abi;
using SimMachine.Amd;
using Xunit;

namespace SimKvm.Tests.X86;

public sealed class FpuTests : IDisposable
{
    private const int Mxcsr = 0x18;
    private const int MxcsrMask = 0x1C;
    private const int Xmm0 = 0xA0;
    private const int Software = 0x1D0;
    private const int XstateBv = 0x200;
    private const int Ymm0 = 0x240;
    private const int PkruOffset = 0x980;

    private readonly TestVcpu _vcpu = new();

    public static TheoryData<int, uint, uint, string> BadXsave => new()
    {
        // Offset and value of one word, XSTATE_BV, rule.
        { XstateBv, 0x8, 0x8, "kvm.x86.set-xsave.components" },
        { XstateBv, 0x18, 0x18, "kvm.x86.set-xsave.components" },
        { XstateBv, 0xE7, 0xE7, "kvm.x86.set-xsave.components" },
        { XstateBv, 0x800, 0x800, "kvm.x86.set-xsave.components" },
        { XstateBv + 4, 1, 0, "kvm.x86.set-xsave.components" },
        { 0x208, 1, 0, "kvm.x86.set-xsave.xcomp-bv" },
        { 0x20C, 0x80000000, 0, "kvm.x86.set-xsave.xcomp-bv" },
        { 0x210, 1, 0, "kvm.x86.set-xsave.reserved" },
        { 0x23C, 0x1000000, 0, "kvm.x86.set-xsave.reserved" },
        { Mxcsr, 0x10000, 1, "kvm.x86.set-xsave.mxcsr" },
        { Mxcsr, 0x10000, 2, "kvm.x86.set-xsave.mxcsr" },
        { Mxcsr, 0x40000, 4, "kvm.x86.set-xsave.mxcsr" },
    };

    public static TheoryData<uint, uint, uint, ulong, string> BadXcrs => new()
    {
        // nr_xcrs, flags, index, value, rule
        { 17, 0, 0, 1, "kvm.x86.set-xcrs.header" },
        { 1, 1, 0, 1, "kvm.x86.set-xcrs.header" },
        { 1, 0, 0, 0, "kvm.x86.xcr0.fp" },
        { 16, 0, 0, 6, "kvm.x86.xcr0.fp" },
        { 1, 0, 0, 5, "kvm.x86.xcr0.avx-without-sse" },
        { 1, 0, 0, 9, "kvm.x86.xcr0.unsupported" },
        { 1, 0, 0, 0x19, "kvm.x86.xcr0.unsupported" },
        { 1, 0, 0, 0x60007, "kvm.x86.xcr0.unsupported" },
    };

    public void Dispose() => _vcpu.Dispose();

    [Fact]
    public void FreshVcpu_HasInitialFloatingPointState()
    {
        Assert.Equal(Errno.OK, _vcpu.Arch.GetFpu(_vcpu.Current, out kvm_fpu fpu));
        TestVcpu.AssertSame(new kvm_fpu { fcw = 0x37F }, fpu);
        Func<int, uint> xsave = _vcpu.GetXsave();
        Assert.Equal(0x37Fu, xsave(0));
        Assert.Equal(0x1F80u, xsave(Mxcsr));
        Assert.Equal(0x2FFFFu, xsave(MxcsrMask));
        Assert.Equal(0x207u, xsave(Software));
        Assert.Equal(0u, xsave(XstateBv));
        Assert.Equal(Errno.OK, _vcpu.Arch.GetXcrs(_vcpu.Current, out kvm_xcrs xcrs));
        Assert.Equal(1u, xcrs.nr_xcrs);
        Assert.Equal(0u, xcrs.xcrs[0].xcr);
        Assert.Equal(1UL, xcrs.xcrs[0].value);
    }

    [Fact]
    public void SetFpu_IsReadBackWithoutMxcsr_AndLeavesXstateBv()
    {
        var fpu = new kvm_fpu { fcw = 0x27F, fsw = 0x3800, ftwx = 0x80, last_opcode = 5, last_ip = 6, last_dp = 7, mxcsr = 0x1F00, pad2 = 2 };
        fpu.fpr[7][9] = 0x44;
        fpu.xmm[15][15] = 0x55;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetFpu(_vcpu.Current, fpu));
        Assert.Equal(Errno.OK, _vcpu.Arch.GetFpu(_vcpu.Current, out kvm_fpu after));
        fpu.mxcsr = 0;
        fpu.pad2 = 0;
        TestVcpu.AssertSame(fpu, after);
        Func<int, uint> xsave = _vcpu.GetXsave();
        Assert.Equal(0u, xsave(XstateBv));
        Assert.Equal(0x37Fu, xsave(0));
        Assert.Equal(0x1F80u, xsave(Mxcsr));
    }

    [Fact]
    public void SetXsave_X87Only_LeavesMxcsrInitialForReaders()
    {
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 1)));
        Func<int, uint> xsave = _vcpu.GetXsave();
        Assert.Equal(0u, xsave(0));
        Assert.Equal(0x1F80u, xsave(Mxcsr));
        Assert.Equal(1u, xsave(XstateBv));
    }

    [Fact]
    public void SetXsave_LegacyComponents_AreReadBack()
    {
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 3), (0, 0x37F), (Mxcsr, 0x1F80), (Xmm0, 0x77)));
        Func<int, uint> xsave = _vcpu.GetXsave();
        Assert.Equal(0x37Fu, xsave(0));
        Assert.Equal(0x1F80u, xsave(Mxcsr));
        Assert.Equal(0u, xsave(MxcsrMask));
        Assert.Equal(0x77u, xsave(Xmm0));
        Assert.Equal(3u, xsave(XstateBv));
    }

    [Fact]
    public void SetXsave_ComponentNotInXstateBv_ReadsAsInitial_AndItsBytesStay()
    {
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 3), (Mxcsr, 0x1F80), (Xmm0, 0x78)));
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 4), (0, 0x12), (Mxcsr, 0x1F82), (Xmm0, 0x79)));
        Func<int, uint> xsave = _vcpu.GetXsave();
        Assert.Equal(0x37Fu, xsave(0));
        Assert.Equal(0u, xsave(Xmm0));
        Assert.Equal(Errno.OK, _vcpu.Arch.GetFpu(_vcpu.Current, out kvm_fpu fpu));
        Assert.Equal(0x78, fpu.xmm[0][0]);
        Assert.Equal(0, fpu.fcw);
    }

    [Fact]
    public void GetXsave_ShowsAvxOnlyToAGuestWhoseCpuidHasIt()
    {
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 7), (Mxcsr, 0x1F80), (Ymm0, 0x9A)));
        Assert.Equal(3u, _vcpu.GetXsave()(XstateBv));
        Assert.Equal(0u, _vcpu.GetXsave()(Ymm0));
        _vcpu.SetSupportedCpuid();
        Assert.Equal(7u, _vcpu.GetXsave()(XstateBv));
        Assert.Equal(0x9Au, _vcpu.GetXsave()(Ymm0));
    }

    [Fact]
    public void SetXsave_Pkru_StaysWhenItsBitIsAbsent()
    {
        _vcpu.SetSupportedCpuid();
        Assert.Equal(Errno.OK, _vcpu.SetXsave((XstateBv, 0x200), (PkruOffset, 6), (Mxcsr, 0x10000)));
        Assert.Equal(6u, _vcpu.Arch.Pkru);
        Assert.Equal(6u, _vcpu.GetXsave()(PkruOffset));
        Assert.Equal(Errno.OK, _vcpu.SetXsave());
        Assert.Equal(6u, _vcpu.Arch.Pkru);
    }

    [Fact]
    public void SetXsave_Avx512_IsKeptOnGenoa()
    {
        using var genoa = new TestVcpu(product: EpycProduct.Genoa);
        genoa.SetSupportedCpuid();
        Assert.Equal(Errno.OK, genoa.SetXsave((XstateBv, 0xE7), (0x340, 1), (0x380, 2), (0x580, 3), (0x97C, 4)));
        Func<int, uint> xsave = genoa.GetXsave();
        Assert.Equal((1u, 2u, 3u, 4u), (xsave(0x340), xsave(0x380), xsave(0x580), xsave(0x97C)));
    }

    [Theory]
    [MemberData(nameof(BadXsave))]
    public void SetXsave_Bad_IsEinval_AndChangesNothing(int offset, uint value, uint xstateBv, string rule)
    {
        byte[] before = _vcpu.Arch.Xsave.ToArray();
        Assert.Equal(Errno.EINVAL, _vcpu.SetXsave((XstateBv, xstateBv), (Xmm0, 0x11), (offset, value)));
        Assert.Equal(rule, _vcpu.Refusal());
        Assert.Equal(before, _vcpu.Arch.Xsave.ToArray());
    }

    [Fact]
    public void SetXsave_ReservedMxcsr_DoesNotMatterWithoutX87SseAvx() => Assert.Equal(Errno.OK, _vcpu.SetXsave((Mxcsr, 0x10000)));

    [Theory]
    [MemberData(nameof(BadXcrs))]
    public void SetXcrs_Bad_IsEinval(uint count, uint flags, uint index, ulong value, string rule)
    {
        _vcpu.SetSupportedCpuid();
        var xcrs = new kvm_xcrs { nr_xcrs = count, flags = flags };
        xcrs.xcrs[0] = new kvm_xcr { xcr = index, value = value };
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetXcrs(_vcpu.Current, xcrs));
        Assert.Equal(rule, _vcpu.Refusal());
        Assert.Equal(1UL, _vcpu.Arch.Xcr0);
    }

    [Theory]
    [InlineData(0x27, "kvm.x86.xcr0.avx512")]
    [InlineData(0xE3, "kvm.x86.xcr0.avx512")]
    public void SetXcrs_PartOfAvx512_IsEinval(ulong value, string rule)
    {
        using var genoa = new TestVcpu(product: EpycProduct.Genoa);
        genoa.SetSupportedCpuid();
        var xcrs = new kvm_xcrs { nr_xcrs = 1 };
        xcrs.xcrs[0].value = value;
        Assert.Equal(Errno.EINVAL, genoa.Arch.SetXcrs(genoa.Current, xcrs));
        Assert.Equal(rule, genoa.Refusal());
        xcrs.xcrs[0].value = 0xE7;
        Assert.Equal(Errno.OK, genoa.Arch.SetXcrs(genoa.Current, xcrs));
    }

    [Fact]
    public void SetXcrs_NeedsCpuid()
    {
        var xcrs = new kvm_xcrs { nr_xcrs = 1 };
        xcrs.xcrs[0].value = 7;
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetXcrs(_vcpu.Current, xcrs));
        Assert.Equal("kvm.x86.xcr0.unsupported", _vcpu.Refusal());
        _vcpu.SetSupportedCpuid();
        Assert.Equal(Errno.OK, _vcpu.Arch.SetXcrs(_vcpu.Current, xcrs));
        Assert.Equal(7UL, _vcpu.Arch.Xcr0);
    }

    [Fact]
    public void SetXcrs_TakesTheFirstXcr0_AndIgnoresOtherRegisters()
    {
        _vcpu.SetSupportedCpuid();
        var xcrs = new kvm_xcrs { nr_xcrs = 3 };
        xcrs.xcrs[0] = new kvm_xcr { xcr = 1, value = 77 };
        xcrs.xcrs[1].value = 3;
        xcrs.xcrs[2].value = 0;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetXcrs(_vcpu.Current, xcrs));
        Assert.Equal(3UL, _vcpu.Arch.Xcr0);
        Assert.Equal(Errno.OK, _vcpu.Arch.SetXcrs(_vcpu.Current, new kvm_xcrs()));
    }

    [Fact]
    public void ConfidentialFloatingPointState_IsEinval_WithProtectedState()
    {
        _vcpu.Arch.FpstateConfidential = true;
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.GetFpu(_vcpu.Current, out _));
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetFpu(_vcpu.Current, new kvm_fpu()));
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.GetXsave(_vcpu.Current, out _));
        Assert.Equal(Errno.EINVAL, _vcpu.SetXsave((XstateBv, 0x18)));
        Assert.Equal("kvm.x86.fpu-protected", _vcpu.Refusal());
    }

    [Fact]
    public void ConfidentialFloatingPointState_IsIgnored_WithoutProtectedState()
    {
        using var es = new TestVcpu(hasProtectedState: false);
        es.Arch.FpstateConfidential = true;
        Assert.Equal(Errno.OK, es.Arch.GetFpu(es.Current, out kvm_fpu fpu));
        Assert.Equal(0, fpu.fcw);
        Assert.Equal(Errno.OK, es.SetXsave((XstateBv, 0x18)));
    }

    [Fact]
    public void FloatingPointState_OfAMeasuredSnpVcpu_CanStillBeReadAndWritten()
    {
        _vcpu.Arch.GuestStateProtected = true;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetFpu(_vcpu.Current, new kvm_fpu { fcw = 0x27F }));
        Assert.Equal(Errno.OK, _vcpu.Arch.GetFpu(_vcpu.Current, out kvm_fpu fpu));
        Assert.Equal(0x27F, fpu.fcw);
    }
}
