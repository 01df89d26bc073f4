// KVM_{GET,SET}_CPUID2.

using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests.X86;

public sealed class CpuidTests : IDisposable
{
    private readonly TestVcpu _vcpu = new();

    public void Dispose() => _vcpu.Dispose();

    [Fact]
    public void SetCpuid2_IsReadBack_WithTheBitsThatFollowTheState()
    {
        kvm_cpuid_entry2[] entries = _vcpu.SupportedCpuid();
        Assert.True(_vcpu.Arch.SetCpuid2(_vcpu.Current, UserArg.FromBytes(TestVcpu.CpuidBytes((uint)entries.Length, entries))).Succeeded);
        kvm_sregs sregs = _vcpu.Sregs();
        sregs.cr4 = (1 << 18) | (1 << 22);
        sregs.apic_base = 0xFEE00000;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetSregs(_vcpu.Current, sregs));
        var xcrs = new kvm_xcrs { nr_xcrs = 1 };
        xcrs.xcrs[0].value = 7;
        Assert.Equal(Errno.OK, _vcpu.Arch.SetXcrs(_vcpu.Current, xcrs));

        kvm_cpuid_entry2[] after = Get(256);

        Assert.Equal(entries.Length, after.Length);
        for (int i = 0; i < entries.Length; i++)
        {
            kvm_cpuid_entry2 expected = entries[i];
            switch (expected.function, expected.index)
            {
                case (1, 0):
                    expected.ecx |= 1 << 27;
                    expected.edx &= ~(1u << 9);
                    break;
                case (7, 0):
                    expected.ecx |= 1 << 4;
                    break;
                case (0xD, 0) or (0xD, 1):
                    expected.ebx = 0x340;
                    break;
                default:
                    break;
            }
            Assert.Equal(expected, after[i]);
        }
    }

    [Fact]
    public void GetCpuid2_WithTooLittleRoom_IsE2big_AndDoesNotSayHowManyThereAre()
    {
        _vcpu.SetSupportedCpuid();
        byte[] bytes = TestVcpu.CpuidBytes(3, new kvm_cpuid_entry2[3]);
        Assert.Equal(Errno.E2BIG, _vcpu.Arch.GetCpuid2(_vcpu.Current, UserArg.FromBytes(bytes)).Errno);
        Assert.Equal("kvm.x86.get-cpuid2.too-few", _vcpu.Refusal());
        Assert.Equal(3, bytes[0]);
    }

    [Fact]
    public void GetCpuid2_OfAFreshVcpu_IsEmpty() => Assert.Empty(Get(0));

    [Fact]
    public void SetCpuid2_DoesNotChangeRdx()
    {
        _vcpu.SetSupportedCpuid();
        Assert.Equal(0x600UL, _vcpu.Regs().rdx);
    }

    [Theory]
    [InlineData(0, 0, Errno.OK)]
    [InlineData(256, 256, Errno.OK)]
    [InlineData(2, 1, Errno.EFAULT)]
    [InlineData(257, 257, Errno.E2BIG)]
    [InlineData(0xFFFF_FFFF, 0, Errno.E2BIG)]
    public void SetCpuid2_Count(uint count, int present, Errno expected)
    {
        byte[] bytes = TestVcpu.CpuidBytes(count, new kvm_cpuid_entry2[present]);
        Assert.Equal(expected, _vcpu.Arch.SetCpuid2(_vcpu.Current, UserArg.FromBytes(bytes)).Errno);
    }

    [Theory]
    [InlineData(0, Errno.OK)]
    [InlineData(48, Errno.OK)]
    [InlineData(57, Errno.OK)]
    [InlineData(47, Errno.EINVAL)]
    [InlineData(64, Errno.EINVAL)]
    [InlineData(255, Errno.EINVAL)]
    public void SetCpuid2_VirtualAddressWidth(uint bits, Errno expected)
    {
        var entry = new kvm_cpuid_entry2 { function = 0x8000_0008, eax = (bits << 8) | 48 };
        Assert.Equal(expected, _vcpu.Arch.SetCpuid2(_vcpu.Current, [entry]));
        Assert.Equal(expected == Errno.OK ? null : "kvm.x86.set-cpuid2.virtual-address-width", _vcpu.Refusal());
        Assert.Equal(expected == Errno.OK ? 1 : 0, _vcpu.Arch.Cpuid.Count);
    }

    [Fact]
    public void SetCpuid2_WithAmxTiles_IsEperm()
    {
        Assert.Equal(Errno.EPERM, _vcpu.Arch.SetCpuid2(_vcpu.Current, [new kvm_cpuid_entry2 { function = 0xD, eax = 1 << 18 }]));
        Assert.Equal("kvm.x86.set-cpuid2.dynamic-feature", _vcpu.Refusal());
    }

    private kvm_cpuid_entry2[] Get(uint room)
    {
        byte[] bytes = TestVcpu.CpuidBytes(room, new kvm_cpuid_entry2[room]);
        Assert.True(_vcpu.Arch.GetCpuid2(_vcpu.Current, UserArg.FromBytes(bytes)).Succeeded);
        uint count = MemoryMarshal.Read<uint>(bytes);
        return MemoryMarshal.Cast<byte, kvm_cpuid_entry2>(bytes.AsSpan(TestVcpu.HeadSize))[..(int)count].ToArray();
    }
}
