// KVM_{GET,SET}_MSRS: what is kept, what is refused, and where a call stops.

using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Amd;
using Xunit;

namespace SimKvm.Tests.X86;

public sealed class MsrTests : IDisposable
{
    private readonly TestVcpu _vcpu = new();

    public static TheoryData<uint, ulong> AtReset => new()
    {
        { 0x1B, 0xFEE00900 }, { 0x277, 0x0007040600070406 }, { 0xFE, 0x508 }, { 0x1A0, 0x1800 }, { 0xC0000080, 0 }, { 0xC0000101, 0 }, { 0x1D9, 0 },
        { 0xDA0, 0 }, { 0x2FF, 0 }, { 0x200, 0 }, { 0x26F, 0 },
    };

    // Index, value written, value read back.
    public static TheoryData<uint, ulong, ulong> Kept => new()
    {
        { 0x10, 0x55, 0x55 },
        { 0x3B, 5, 5 },
        { 0x1A0, 0x40001, 0x40001 },
        { 0x1B, 0xFEE00800, 0xFEE00800 },
        { 0x48, 0x87, 0x87 },
        { 0x174, ulong.MaxValue, ulong.MaxValue },
        { 0x175, 0x1_2345_6789, 0x2345_6789 },
        { 0x176, ulong.MaxValue, 0xFFFF_FFFF },
        { 0x1D9, 1, 1 },
        { 0x1D9, 0x3F, 1 },
        { 0x277, 0x0607050401000606, 0x0607050401000606 },
        { 0xDA0, 0, 0 },
        { 0xC0000080, 0x5D01, 0x5901 },
        { 0xC0000081, ulong.MaxValue, ulong.MaxValue },
        { 0xC0000082, 0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_0000 },
        { 0xC0000083, 0x7FFF_FFFF_FFFF, 0x7FFF_FFFF_FFFF },
        { 0xC0000084, ulong.MaxValue, ulong.MaxValue },
        { 0xC0000100, 0x1000, 0x1000 },
        { 0xC0000101, ulong.MaxValue, ulong.MaxValue },
        { 0xC0000102, 0x2000, 0x2000 },
        { 0xC0010117, 0x1234, 0x1000 },
        { 0x2FF, 0xC06, 0xC06 },
        { 0x250, 0x0606060606060606, 0x0606060606060606 },
        { 0x268, 0x0504010006060606, 0x0504010006060606 },
        { 0x20E, 0xF_FFFF_F006, 0xF_FFFF_F006 },
        { 0x20F, 0x800, 0x800 },
    };

    public static TheoryData<uint, ulong, string> Bad => new()
    {
        { 0x12345, 0, "kvm.x86.msrs.unknown" },
        { 0x210, 6, "kvm.x86.msrs.unknown" },
        { 0xFE, 0x508, "kvm.x86.msrs.read-only" },
        { 0xC0000080, 1 << 9, "kvm.x86.msrs.reserved-bits" },
        { 0xC0000080, 1 << 13, "kvm.x86.msrs.reserved-bits" },
        { 0xC0000080, 1 << 21, "kvm.x86.msrs.reserved-bits" },
        { 0xC0000080, 1UL << 63, "kvm.x86.msrs.reserved-bits" },
        { 0xDA0, 0x1800, "kvm.x86.msrs.reserved-bits" },
        { 0x1D9, 0x40, "kvm.x86.msrs.reserved-bits" },
        { 0x48, 0x8, "kvm.x86.msrs.reserved-bits" },
        { 0x277, 0x02, "kvm.x86.msrs.memory-type" },
        { 0x277, 0x0300000000000000, "kvm.x86.msrs.memory-type" },
        { 0x277, 0x08, "kvm.x86.msrs.memory-type" },
        { 0x2FF, 2, "kvm.x86.msrs.memory-type" },
        { 0x2FF, 0x1006, "kvm.x86.msrs.memory-type" },
        { 0x250, 2, "kvm.x86.msrs.memory-type" },
        { 0x250, 7, "kvm.x86.msrs.memory-type" },
        { 0x200, 2, "kvm.x86.msrs.memory-type" },
        { 0x200, 0x106, "kvm.x86.msrs.memory-type" },
        { 0x200, 1UL << 36, "kvm.x86.msrs.memory-type" },
        { 0x201, 1, "kvm.x86.msrs.memory-type" },
        { 0xC0000082, 1UL << 47, "kvm.x86.msrs.not-canonical" },
        { 0xC0000083, 1UL << 63, "kvm.x86.msrs.not-canonical" },
        { 0xC0000100, 1UL << 47, "kvm.x86.msrs.not-canonical" },
        { 0xC0000101, 0xFFFF_0000_0000_0000, "kvm.x86.msrs.not-canonical" },
        { 0xC0000102, 1UL << 62, "kvm.x86.msrs.not-canonical" },
        { 0x1B, 0xFEE00901, "kvm.x86.apic-base.reserved" },
    };

    public void Dispose() => _vcpu.Dispose();

    [Theory]
    [MemberData(nameof(AtReset))]
    public void FreshVcpu_HasResetValues(uint index, ulong value)
    {
        Assert.Equal(Errno.OK, _vcpu.Arch.GetMsr(_vcpu.Current, index, out ulong data));
        Assert.Equal(value, data);
    }

    [Theory]
    [MemberData(nameof(Kept))]
    public void SetMsr_IsReadBack(uint index, ulong written, ulong read)
    {
        Assert.Equal(Errno.OK, _vcpu.Arch.SetMsr(_vcpu.Current, index, written));
        Assert.Equal(Errno.OK, _vcpu.Arch.GetMsr(_vcpu.Current, index, out ulong data));
        Assert.Equal(read, data);
    }

    [Theory]
    [MemberData(nameof(Bad))]
    public void SetMsr_Bad_IsRefused(uint index, ulong value, string rule)
    {
        Assert.NotEqual(Errno.OK, _vcpu.Arch.SetMsr(_vcpu.Current, index, value));
        Assert.Equal(rule, _vcpu.Refusal());
    }

    [Fact]
    public void SegmentBases_AreThoseOfSregs()
    {
        Assert.Equal(Errno.OK, _vcpu.Arch.SetMsr(_vcpu.Current, 0xC0000100, 0x1000));
        Assert.Equal(Errno.OK, _vcpu.Arch.SetMsr(_vcpu.Current, 0xC0000101, 0x2000));
        Assert.Equal(0x1000UL, _vcpu.Sregs().fs.@base);
        Assert.Equal(0x2000UL, _vcpu.Sregs().gs.@base);
    }

    [Fact]
    public void Efer_AutoIbrs_IsThereSinceGenoa()
    {
        using var genoa = new TestVcpu(product: EpycProduct.Genoa);
        Assert.Equal(Errno.OK, genoa.Arch.SetMsr(genoa.Current, 0xC0000080, 1 << 21));
    }

    [Fact]
    public void Lstar_With57BitAddresses_OnGenoa()
    {
        using var genoa = new TestVcpu(product: EpycProduct.Genoa);
        Assert.Equal(Errno.OK, genoa.Arch.SetMsr(genoa.Current, 0xC0000082, 1UL << 55));
        Assert.Equal(Errno.EINVAL, genoa.Arch.SetMsr(genoa.Current, 0xC0000082, 1UL << 56));
    }

    [Fact]
    public void TscAux_IsKeptWithoutProtectedStateOnly()
    {
        using var plain = new TestVcpu(hasProtectedState: false);
        Assert.Equal(Errno.OK, plain.Arch.SetMsr(plain.Current, 0xC0000103, ulong.MaxValue));
        plain.Arch.GetMsr(plain.Current, 0xC0000103, out ulong data);
        Assert.Equal(0xFFFF_FFFFUL, data);
        Assert.Equal(Errno.OK, _vcpu.Arch.SetMsr(_vcpu.Current, 0xC0000103, ulong.MaxValue));
        _vcpu.Arch.GetMsr(_vcpu.Current, 0xC0000103, out data);
        Assert.Equal(0UL, data);
    }

    [Fact]
    public void GetMsrs_StopsAtTheFirstUnknownIndex_AndGivesTheNumberBefore()
    {
        byte[] bytes = TestVcpu.MsrBytes(
            3, new kvm_msr_entry { index = 0x277 }, new kvm_msr_entry { index = 0x12345, data = 7 }, new kvm_msr_entry { index = 0x277, data = 9 });
        SyscallResult result = _vcpu.Arch.GetMsrs(_vcpu.Current, UserArg.FromBytes(bytes));
        Assert.Equal(SyscallResult.Of(1), result);
        Assert.Equal("kvm.x86.msrs.unknown", _vcpu.Refusal());
        ReadOnlySpan<kvm_msr_entry> entries = MemoryMarshal.Cast<byte, kvm_msr_entry>(bytes.AsSpan(TestVcpu.HeadSize));
        Assert.Equal(0x0007040600070406UL, entries[0].data);
        Assert.Equal(0UL, entries[1].data);
        Assert.Equal(9UL, entries[2].data);
    }

    [Fact]
    public void SetMsrs_StopsAtTheFirstRefusedValue_AndKeepsThoseBefore()
    {
        byte[] bytes = TestVcpu.MsrBytes(
            3, new kvm_msr_entry { index = 0xC0000081, data = 1 }, new kvm_msr_entry { index = 0x277, data = 2 },
            new kvm_msr_entry { index = 0xC0000084, data = 3 });
        Assert.Equal(SyscallResult.Of(1), _vcpu.Arch.SetMsrs(_vcpu.Current, UserArg.FromBytes(bytes)));
        Assert.Equal("kvm.x86.msrs.memory-type", _vcpu.Refusal());
        Assert.Equal(1UL, _vcpu.Arch.Save.Star);
        Assert.Equal(0UL, _vcpu.Arch.Save.Sfmask);
    }

    [Theory]
    [InlineData(0, 0, Errno.OK)]
    [InlineData(255, 255, Errno.OK)]
    [InlineData(255, 254, Errno.EFAULT)]
    [InlineData(256, 256, Errno.E2BIG)]
    [InlineData(0xFFFF_FFFF, 0, Errno.E2BIG)]
    public void Msrs_Count(uint count, int present, Errno expected)
    {
        byte[] bytes = TestVcpu.MsrBytes(count, [.. Enumerable.Repeat(new kvm_msr_entry { index = 0x10 }, present)]);
        SyscallResult get = _vcpu.Arch.GetMsrs(_vcpu.Current, UserArg.FromBytes(bytes));
        SyscallResult set = _vcpu.Arch.SetMsrs(_vcpu.Current, UserArg.FromBytes(bytes));
        Assert.Equal(expected, get.Errno);
        Assert.Equal(expected == Errno.OK ? count : 0, get.Value);
        Assert.Equal(get, set);
    }

    [Theory]
    [InlineData(0xC0000080u)]
    [InlineData(0xC0000081u)]
    [InlineData(0xC0000101u)]
    [InlineData(0x277u)]
    [InlineData(0x176u)]
    [InlineData(0x1D9u)]
    [InlineData(0x1DBu)]
    [InlineData(0xC0010130u)]
    public void EncryptedMsrs_AreOutOfReach(uint index)
    {
        _vcpu.Arch.GuestStateProtected = true;
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.GetMsr(_vcpu.Current, index, out _));
        Assert.Equal("kvm.x86.msrs.protected", _vcpu.Refusal());
        Assert.Equal(Errno.EINVAL, _vcpu.Arch.SetMsr(_vcpu.Current, index, 0));
        Assert.Equal("kvm.x86.msrs.protected", _vcpu.Refusal());
    }

    [Theory]
    [InlineData(0xDA0u)]
    [InlineData(0x10u)]
    [InlineData(0x1Bu)]
    [InlineData(0x2FFu)]
    public void OtherMsrs_GoOnWorkingWhenTheStateIsEncrypted(uint index)
    {
        _vcpu.Arch.GuestStateProtected = true;
        Assert.Equal(Errno.OK, _vcpu.Arch.GetMsr(_vcpu.Current, index, out ulong data));
        Assert.Equal(Errno.OK, _vcpu.Arch.SetMsr(_vcpu.Current, index, data));
    }

    [Fact]
    public void EncryptedMsrs_OfAVmWithoutProtectedState_ReadAsZeroAndAreNotWritten()
    {
        using var es = new TestVcpu(hasProtectedState: false);
        es.Arch.GuestStateProtected = true;
        Assert.Equal(Errno.OK, es.Arch.GetMsr(es.Current, 0x277, out ulong data));
        Assert.Equal(0UL, data);
        Assert.Equal(Errno.OK, es.Arch.SetMsr(es.Current, 0x277, 0));
        Assert.Equal(0x0007040600070406UL, es.Arch.Save.GPat);
    }
}
