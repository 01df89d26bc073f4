// A fresh vCPU on a host of its own, and the ioctls as a VMM calls them: on bytes.

using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Amd;
using Xunit;

namespace SimKvm.Tests.X86;

internal delegate SyscallResult VcpuIoctl(KTask current, UserArg arg);

internal sealed class TestVcpu : IDisposable
{
    public const int HeadSize = 8;

    private readonly SimHost _host;

    public TestVcpu(bool hasProtectedState = true, ulong id = 0, EpycProduct product = EpycProduct.Milan)
    {
        _host = new SimHost(KernelProfiles.Default, new MachineConfig { Product = product }, 1);
        Current = new KTask(_host.StartProcess(), 1);
        Cpuid = PlatformCpuid.For(product);
        Arch = new VcpuArch(hasProtectedState, id, Cpuid);
    }

    public KTask Current { get; }

    public PlatformCpuid Cpuid { get; }

    public VcpuArch Arch { get; }

    /// <summary>The rule that refused last, the outermost; forgets it.</summary>
    public string? Refusal()
    {
        string? id = Current.Causes.Count == 0 ? null : Current.Causes[^1].Rule.Id;
        Current.ForgetCausesAfter(0);
        return id;
    }

    public kvm_sregs Sregs()
    {
        Assert.Equal(Errno.OK, Arch.GetSregs(Current, out kvm_sregs sregs));
        return sregs;
    }

    public kvm_regs Regs()
    {
        Assert.Equal(Errno.OK, Arch.GetRegs(Current, out kvm_regs regs));
        return regs;
    }

    /// <summary>What KVM_GET_SUPPORTED_CPUID gives.</summary>
    public kvm_cpuid_entry2[] SupportedCpuid() => [.. Cpuid.Entries.Select(entry => new kvm_cpuid_entry2
    {
        function = entry.Function,
        index = entry.Index,
        flags = entry.SignificantIndex ? kvm_cpuid_entry2.FLAG_SIGNIFCANT_INDEX : 0,
        eax = entry.Eax,
        ebx = entry.Ebx,
        ecx = entry.Ecx,
        edx = entry.Edx,
    })];

    public void SetSupportedCpuid() => Assert.Equal(Errno.OK, Arch.SetCpuid2(Current, SupportedCpuid()));

    /// <summary>KVM_SET_XSAVE of an area that is 0 but for the given 32-bit words.</summary>
    public Errno SetXsave(params (int Offset, uint Value)[] words) => Arch.SetXsave(Current, Xsave(words));

    public static kvm_xsave Xsave(params (int Offset, uint Value)[] words)
    {
        kvm_xsave xsave = default;
        foreach ((int offset, uint value) in words)
        {
            xsave.region[offset / sizeof(uint)] = value;
        }
        return xsave;
    }

    /// <summary>The area that KVM_GET_XSAVE gives, as words.</summary>
    public Func<int, uint> GetXsave()
    {
        Assert.Equal(Errno.OK, Arch.GetXsave(Current, out kvm_xsave xsave));
        return offset => xsave.region[offset / sizeof(uint)];
    }

    /// <summary>Structures with inline arrays have no equality of their own.</summary>
    public static void AssertSame<T>(T expected, T actual)
        where T : unmanaged =>
        Assert.Equal(MemoryMarshal.AsBytes<T>(new ReadOnlySpan<T>(ref expected)), MemoryMarshal.AsBytes<T>(new ReadOnlySpan<T>(ref actual)));

    public static byte[] MsrBytes(uint count, params kvm_msr_entry[] entries) =>
        [.. MemoryMarshal.AsBytes<uint>([count, 0]), .. MemoryMarshal.AsBytes<kvm_msr_entry>(entries)];

    public static byte[] CpuidBytes(uint count, params kvm_cpuid_entry2[] entries) =>
        [.. MemoryMarshal.AsBytes<uint>([count, 0]), .. MemoryMarshal.AsBytes<kvm_cpuid_entry2>(entries)];

    public void Dispose() => _host.Dispose();
}
