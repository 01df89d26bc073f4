using System.Buffers.Binary;
using System.Numerics;
using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Amd;
using SimMachine.Stepping;

namespace SimKvm.Kvm;

// Floating-point and extended state: KVM_{GET,SET}_{FPU,XSAVE,XCRS}. The state is an XSAVE area (AMD APM vol. 2, 11.5). Its XSTATE_BV and its bytes
// have lives of their own, as in the kernel: KVM_SET_FPU writes bytes without XSTATE_BV, KVM_SET_XSAVE replaces XSTATE_BV but only the bytes of the
// components in it, and a VMSA takes the bytes. Seen the same on a 6.18 kernel.
internal sealed partial class VcpuArch
{
    public static readonly Rule FpuProtected = new(
        "kvm.x86.fpu-protected", "the vCPU's floating-point state is encrypted, user space can neither read nor write it",
        "kvm_arch_vcpu_ioctl_get_fpu and its siblings: fpstate_is_confidential", "set it before LAUNCH_UPDATE_VMSA");

    public static readonly Rule XsaveComponents = new(
        "kvm.x86.set-xsave.components", "XSTATE_BV names state components that the host does not support",
        "fpu_copy_uabi_to_guest_fpstate", "use components of CPUID 0xD of KVM_GET_SUPPORTED_CPUID only", "xstate_bv", "refused_bits");

    public static readonly Rule XsaveCompacted = new(
        "kvm.x86.set-xsave.xcomp-bv", "XCOMP_BV must be 0: the area is in the standard format", "validate_user_xstate_header",
        "write the area with XSAVE, not XSAVEC",
        "xcomp_bv");

    public static readonly Rule XsaveReserved = new(
        "kvm.x86.set-xsave.reserved", "bytes 528 to 575 of the XSAVE header must be 0", "validate_user_xstate_header", "clear them",
        "offset#", "value");

    public static readonly Rule XsaveMxcsr = new(
        "kvm.x86.set-xsave.mxcsr", "MXCSR has reserved bits", "copy_uabi_to_xstate, mxcsr_feature_mask", "use bits 15:0 and 17 only",
        "mxcsr", "refused_bits");

    public static readonly Rule XcrsHeader = new(
        "kvm.x86.set-xcrs.header", "nr_xcrs is beyond 16, or flags are not 0", "kvm_vcpu_ioctl_x86_set_xcrs",
        "set flags to 0 and nr_xcrs to 1", "nr_xcrs#", "flags");

    public static readonly Rule Xcr0WithoutFp = new(
        "kvm.x86.xcr0.fp", "XCR0 bit 0 (x87) is always set", "__kvm_set_xcr", "set it", "xcr0");

    public static readonly Rule Xcr0AvxWithoutSse = new(
        "kvm.x86.xcr0.avx-without-sse", "XCR0 with AVX (bit 2) needs SSE (bit 1)", "__kvm_set_xcr", "set bit 1 too", "xcr0");

    public static readonly Rule Xcr0Unsupported = new(
        "kvm.x86.xcr0.unsupported", "XCR0 has components that the guest's CPUID 0xD does not announce or the host does not have", "__kvm_set_xcr",
        "set CPUID with those components first", "xcr0", "refused_bits");

    public static readonly Rule Xcr0Avx512 = new(
        "kvm.x86.xcr0.avx512", "AVX-512 (bits 7:5) comes as a whole and needs AVX", "__kvm_set_xcr", "set bits 7:5 and 2:0", "xcr0");

    private const ulong FeatureFp = 1UL << 0;
    private const ulong FeatureSse = 1UL << 1;
    private const ulong FeatureAvx = 1UL << 2;
    private const ulong FeatureAvx512 = 7UL << 5;
    private const ulong FeaturePkru = 1UL << 9;
    private const uint FeatureXtileData = 1u << 18;
    private const ulong FeatureFpSse = FeatureFp | FeatureSse;

    // The area. 0x1D0 (bytes that hardware leaves to software) carries the components of the host in what user space reads.
    private const int XsaveSize = 4096;
    private const int FcwOffset = 0x00;
    private const int FswOffset = 0x02;
    private const int FtwOffset = 0x04;
    private const int FopOffset = 0x06;
    private const int RipOffset = 0x08;
    private const int RdpOffset = 0x10;
    private const int MxcsrOffset = 0x18;
    private const int MxcsrMaskOffset = 0x1C;
    private const int StOffset = 0x20;
    private const int StSize = 128;
    private const int XmmOffset = 0xA0;
    private const int XmmSize = 256;
    private const int SoftwareOffset = 0x1D0;
    private const int XstateBvOffset = 0x200;
    private const int XcompBvOffset = 0x208;
    private const int HeaderReservedOffset = 0x210;
    private const int HeaderEnd = 0x240;

    private const ushort InitialFcw = 0x37F;
    private const uint InitialMxcsr = 0x1F80;
    private const uint MxcsrFeatureMask = 0x2_FFFF;

    private readonly byte[] _xsave = new byte[XsaveSize];
    private readonly ulong _supportedXcr0;
    private ulong _guestSupportedXcr0;

    /// <summary>The XSAVE area, 4096 bytes; components without their bit in XSTATE_BV (offset 0x200) are stale bytes.</summary>
    public ReadOnlySpan<byte> Xsave => _xsave;

    public ulong XstateBv
    {
        get => BinaryPrimitives.ReadUInt64LittleEndian(_xsave.AsSpan(XstateBvOffset));
        private set => BinaryPrimitives.WriteUInt64LittleEndian(_xsave.AsSpan(XstateBvOffset), value);
    }

    public ulong Xcr0 { get; private set; } = FeatureFp;

    /// <summary>Protection keys; comes and goes as component 9 of KVM_{GET,SET}_XSAVE.</summary>
    public uint Pkru { get; private set; }

    /// <summary>KVM_GET_FPU. MXCSR reads as 0, the kernel does not fill it in.</summary>
    public Errno GetFpu(KTask current, out kvm_fpu fpu)
    {
        fpu = default;
        if (FpstateConfidential)
        {
            return ConfidentialAnswer(current);
        }
        ReadOnlySpan<byte> area = _xsave;
        fpu.fcw = BinaryPrimitives.ReadUInt16LittleEndian(area[FcwOffset..]);
        fpu.fsw = BinaryPrimitives.ReadUInt16LittleEndian(area[FswOffset..]);
        fpu.ftwx = area[FtwOffset];
        fpu.last_opcode = BinaryPrimitives.ReadUInt16LittleEndian(area[FopOffset..]);
        fpu.last_ip = BinaryPrimitives.ReadUInt64LittleEndian(area[RipOffset..]);
        fpu.last_dp = BinaryPrimitives.ReadUInt64LittleEndian(area[RdpOffset..]);
        area.Slice(StOffset, StSize).CopyTo(Bytes(ref fpu.fpr));
        area.Slice(XmmOffset, XmmSize).CopyTo(Bytes(ref fpu.xmm));
        return Errno.OK;
    }

    public SyscallResult GetFpu(KTask current, UserArg arg)
    {
        Errno errno = GetFpu(current, out kvm_fpu fpu);
        return errno == Errno.OK ? arg.CopyOut(current, fpu) : errno;
    }

    /// <summary>KVM_SET_FPU. Takes everything but MXCSR, and leaves XSTATE_BV alone.</summary>
    public Errno SetFpu(KTask current, in kvm_fpu fpu)
    {
        if (FpstateConfidential)
        {
            return ConfidentialAnswer(current);
        }
        Span<byte> area = _xsave;
        BinaryPrimitives.WriteUInt16LittleEndian(area[FcwOffset..], fpu.fcw);
        BinaryPrimitives.WriteUInt16LittleEndian(area[FswOffset..], fpu.fsw);
        BinaryPrimitives.WriteUInt16LittleEndian(area[FtwOffset..], fpu.ftwx);
        BinaryPrimitives.WriteUInt16LittleEndian(area[FopOffset..], fpu.last_opcode);
        BinaryPrimitives.WriteUInt64LittleEndian(area[RipOffset..], fpu.last_ip);
        BinaryPrimitives.WriteUInt64LittleEndian(area[RdpOffset..], fpu.last_dp);
        kvm_fpu copy = fpu;
        Bytes(ref copy.fpr).CopyTo(area[StOffset..]);
        Bytes(ref copy.xmm).CopyTo(area[XmmOffset..]);
        return Errno.OK;
    }

    public SyscallResult SetFpu(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_fpu fpu);
        return errno == Errno.OK ? SetFpu(current, fpu) : errno;
    }

    /// <summary>
    /// KVM_GET_XSAVE: the components that the guest's CPUID announces (x87 and SSE always); one without its bit in XSTATE_BV reads as its initial
    /// value.
    /// </summary>
    public Errno GetXsave(KTask current, out kvm_xsave xsave)
    {
        xsave = default;
        if (FpstateConfidential)
        {
            return ConfidentialAnswer(current);
        }
        Span<byte> to = Bytes(ref xsave.region);
        ReadOnlySpan<byte> area = _xsave;
        ulong present = XstateBv & _supportedXcr0 & (_guestSupportedXcr0 | FeatureFpSse);

        if ((present & FeatureFp) != 0)
        {
            area[..MxcsrOffset].CopyTo(to);
            area.Slice(StOffset, StSize).CopyTo(to[StOffset..]);
        }
        else
        {
            BinaryPrimitives.WriteUInt16LittleEndian(to[FcwOffset..], InitialFcw);
        }
        if ((present & (FeatureSse | FeatureAvx)) != 0)
        {
            area[MxcsrOffset..StOffset].CopyTo(to[MxcsrOffset..]);
        }
        else
        {
            BinaryPrimitives.WriteUInt32LittleEndian(to[MxcsrOffset..], InitialMxcsr);
            BinaryPrimitives.WriteUInt32LittleEndian(to[MxcsrMaskOffset..], MxcsrFeatureMask);
        }
        if ((present & FeatureSse) != 0)
        {
            area.Slice(XmmOffset, XmmSize).CopyTo(to[XmmOffset..]);
        }
        BinaryPrimitives.WriteUInt64LittleEndian(to[SoftwareOffset..], _supportedXcr0);
        BinaryPrimitives.WriteUInt64LittleEndian(to[XstateBvOffset..], present);

        for (ulong rest = present & ~FeatureFpSse; rest != 0; rest &= rest - 1)
        {
            ulong feature = rest & (0 - rest);
            Range bytes = Component(feature);
            if (feature == FeaturePkru)
            {
                BinaryPrimitives.WriteUInt32LittleEndian(to[bytes], Pkru);
            }
            else
            {
                area[bytes].CopyTo(to[bytes]);
            }
        }
        return Errno.OK;
    }

    public SyscallResult GetXsave(KTask current, UserArg arg)
    {
        Errno errno = GetXsave(current, out kvm_xsave xsave);
        return errno == Errno.OK ? arg.CopyOut(current, xsave) : errno;
    }

    /// <summary>
    /// KVM_SET_XSAVE. Components that are not in XSTATE_BV go back to their initial value, except PKRU, which stays. EINVAL: see the rules above.
    /// </summary>
    public Errno SetXsave(KTask current, in kvm_xsave xsave)
    {
        if (FpstateConfidential)
        {
            return ConfidentialAnswer(current);
        }
        ReadOnlySpan<byte> from = MemoryMarshal.AsBytes(new ReadOnlySpan<kvm_xsave>(in xsave));
        ulong present = BinaryPrimitives.ReadUInt64LittleEndian(from[XstateBvOffset..]);
        if ((present & ~_supportedXcr0) != 0)
        {
            return current.Fail(Errno.EINVAL, XsaveComponents, present, present & ~_supportedXcr0);
        }
        ulong compacted = BinaryPrimitives.ReadUInt64LittleEndian(from[XcompBvOffset..]);
        if (compacted != 0)
        {
            return current.Fail(Errno.EINVAL, XsaveCompacted, compacted);
        }
        int reserved = from[HeaderReservedOffset..HeaderEnd].IndexOfAnyExcept((byte)0);
        if (reserved >= 0)
        {
            return current.Fail(Errno.EINVAL, XsaveReserved, (ulong)(HeaderReservedOffset + reserved), from[HeaderReservedOffset + reserved]);
        }
        Span<byte> area = _xsave;
        if ((present & (FeatureFpSse | FeatureAvx)) != 0)
        {
            uint mxcsr = BinaryPrimitives.ReadUInt32LittleEndian(from[MxcsrOffset..]);
            if ((mxcsr & ~MxcsrFeatureMask) != 0)
            {
                return current.Fail(Errno.EINVAL, XsaveMxcsr, mxcsr, mxcsr & ~MxcsrFeatureMask);
            }
            // MXCSR lies in the x87 component's bytes but belongs to SSE and AVX as well.
            from[MxcsrOffset..StOffset].CopyTo(area[MxcsrOffset..]);
        }

        if ((present & FeatureFp) != 0)
        {
            from[..XmmOffset].CopyTo(area);
        }
        if ((present & FeatureSse) != 0)
        {
            from.Slice(XmmOffset, XmmSize).CopyTo(area[XmmOffset..]);
        }
        for (ulong rest = present & ~FeatureFpSse; rest != 0; rest &= rest - 1)
        {
            ulong feature = rest & (0 - rest);
            Range bytes = Component(feature);
            from[bytes].CopyTo(area[bytes]);
            if (feature == FeaturePkru)
            {
                Pkru = BinaryPrimitives.ReadUInt32LittleEndian(from[bytes]);
            }
        }
        XstateBv = present;
        return Errno.OK;
    }

    public SyscallResult SetXsave(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_xsave xsave);
        return errno == Errno.OK ? SetXsave(current, xsave) : errno;
    }

    /// <summary>KVM_GET_XCRS: XCR0 alone. EINVAL when the state is encrypted.</summary>
    public Errno GetXcrs(KTask current, out kvm_xcrs xcrs)
    {
        xcrs = default;
        Errno errno = CheckAccess(current);
        if (errno == Errno.OK)
        {
            xcrs.nr_xcrs = 1;
            xcrs.xcrs[0].value = Xcr0;
        }
        return errno;
    }

    public SyscallResult GetXcrs(KTask current, UserArg arg)
    {
        Errno errno = GetXcrs(current, out kvm_xcrs xcrs);
        return errno == Errno.OK ? arg.CopyOut(current, xcrs) : errno;
    }

    /// <summary>KVM_SET_XCRS: takes the first entry that is XCR0 and ignores all others, unknown registers too.</summary>
    public Errno SetXcrs(KTask current, in kvm_xcrs xcrs)
    {
        Errno errno = CheckAccess(current);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (xcrs.nr_xcrs > kvm_xcrs.MAX_XCRS || xcrs.flags != 0)
        {
            return current.Fail(Errno.EINVAL, XcrsHeader, xcrs.nr_xcrs, xcrs.flags);
        }
        for (int i = 0; i < (int)xcrs.nr_xcrs; i++)
        {
            if (xcrs.xcrs[i].xcr == 0)
            {
                return SetXcr0(current, xcrs.xcrs[i].value);
            }
        }
        return Errno.OK;
    }

    public SyscallResult SetXcrs(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_xcrs xcrs);
        return errno == Errno.OK ? SetXcrs(current, xcrs) : errno;
    }

    // __kvm_set_xcr. MPX and AMX need no rule of their own: no EPYC has them, so they are unsupported bits.
    private Errno SetXcr0(KTask current, ulong xcr0)
    {
        if ((xcr0 & FeatureFp) == 0)
        {
            return current.Fail(Errno.EINVAL, Xcr0WithoutFp, xcr0);
        }
        if ((xcr0 & FeatureAvx) != 0 && (xcr0 & FeatureSse) == 0)
        {
            return current.Fail(Errno.EINVAL, Xcr0AvxWithoutSse, xcr0);
        }
        ulong refused = xcr0 & ~(_guestSupportedXcr0 | FeatureFp);
        if (refused != 0)
        {
            return current.Fail(Errno.EINVAL, Xcr0Unsupported, xcr0, refused);
        }
        ulong avx512 = xcr0 & FeatureAvx512;
        if (avx512 != 0 && (avx512 != FeatureAvx512 || (xcr0 & FeatureAvx) == 0))
        {
            return current.Fail(Errno.EINVAL, Xcr0Avx512, xcr0);
        }
        Xcr0 = xcr0;
        return Errno.OK;
    }

    // fpstate_init_user
    private void ResetXsave()
    {
        BinaryPrimitives.WriteUInt16LittleEndian(_xsave.AsSpan(FcwOffset), InitialFcw);
        BinaryPrimitives.WriteUInt32LittleEndian(_xsave.AsSpan(MxcsrOffset), InitialMxcsr);
    }

    // Encrypted state of a VM type without "protected state" (KVM_SEV_ES_INIT): old user space must not be surprised, so nothing happens and all is
    // well.
    private Errno ConfidentialAnswer(KTask current) => HasProtectedState ? current.Fail(Errno.EINVAL, FpuProtected) : Errno.OK;

    private Range Component(ulong feature)
    {
        if (!_host.TryFind(0xD, (uint)BitOperations.TrailingZeroCount(feature), out CpuidEntry component))
        {
            throw new InvalidOperationException($"CPUID 0xD announces component 0x{feature:x} and does not place it");
        }
        return (int)component.Ebx..(int)(component.Ebx + component.Eax);
    }

    private static Span<byte> Bytes<T>(ref T value)
        where T : unmanaged => MemoryMarshal.AsBytes(new Span<T>(ref value));
}
