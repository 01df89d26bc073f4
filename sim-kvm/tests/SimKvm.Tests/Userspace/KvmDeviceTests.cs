using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine;
using Xunit;

namespace SimKvm.Tests;

/// <summary>/dev/kvm: API version, VM creation, device attributes (kvm-guest-memory.md 2.2, 2.4; snp.md 1.2).</summary>
public sealed class KvmDeviceTests : KvmTest
{
    public static TheoryData<string> Devices => ["/dev/kvm", "/dev/sev"];

    [Theory]
    [InlineData(KvmIoctl.KVM_GET_API_VERSION, 12)]
    [InlineData(KvmIoctl.KVM_GET_VCPU_MMAP_SIZE, 12288)]
    public void Constants_WantAnArgumentOf0(uint request, long value)
    {
        foreach (string profile in new[] { K616, K72 })
        {
            TestHost host = Boot(profile);
            Assert.Equal(value, AssertOk(host.Vmm.Ioctl(host.Vmm.Kvm, request, 0)).Value);
            AssertRefusedUnchanged(host, () => host.Vmm.Ioctl(host.Vmm.Kvm, request, 1), Errno.EINVAL, KvmDevice.ArgMustBeZero);
        }
    }

    [Theory]
    [MemberData(nameof(Devices))]
    public void Open_WithAFullTable_IsEmfile(string path)
    {
        TestHost host = Boot(fdLimit: 8);
        host.Vmm.ExhaustDescriptors();
        Assert.Equal(8 - 3, host.Vmm.Process.Files.Count);
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Open(path), Errno.EMFILE, FdTable.TableFull);
    }

    [Fact]
    public void Open_OfWhatIsNotThere_IsEnoent()
    {
        TestHost host = Boot(machine: new MachineConfig { Sev = false });
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Open("/dev/null"), Errno.ENOENT, Vfs.NoSuchFile);
        AssertRefusedUnchanged(host, () => host.Vmm.Process.Open("/dev/sev"), Errno.ENOENT, Vfs.SevDisabled);
    }

    // Types by the machine's switches: which of 0 to 4 exist.
    [Theory]
    [InlineData(true, true, true, 0x1f)]
    [InlineData(true, true, false, 0x0f)]
    [InlineData(true, false, false, 0x07)]
    [InlineData(true, false, true, 0x07)]
    [InlineData(false, true, true, 0x03)]
    public void CreateVm_KnowsTheTypesThatTheMaskNames(bool sev, bool es, bool snp, uint mask)
    {
        foreach (string profile in new[] { K616, K72 })
        {
            TestHost host = Boot(profile, new MachineConfig { Sev = sev, SevEs = es, SevSnp = snp });
            Assert.Equal(mask, host.Vmm.CheckExtension(KvmCap.VM_TYPES));
            for (uint type = 0; type < 32; type++)
            {
                CallReport report = host.Vmm.TryCreateVm(type);
                if ((mask & (1u << (int)type)) != 0)
                {
                    AssertOk(report);
                }
                else
                {
                    AssertRefused(report, Errno.EINVAL, KvmDevice.UnknownVmType);
                }
            }
        }
    }

    [Theory]
    [InlineData(32)]
    [InlineData(33)]
    [InlineData(0x8000_0000)]
    [InlineData(0x1_0000_0000)]
    [InlineData(ulong.MaxValue)]
    public void CreateVm_OfATypePast31_IsEinval(ulong type)
    {
        TestHost host = Boot();
        AssertRefusedUnchanged(host, () => host.Vmm.TryCreateVm(type), Errno.EINVAL, KvmDevice.UnknownVmType);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void CreateVm_WithoutADescriptor_IsEmfileBeforeTheTypeIsLookedAt(string profile)
    {
        TestHost host = Boot(profile, fdLimit: 8);
        host.Vmm.ExhaustDescriptors();
        AssertRefusedUnchanged(host, () => host.Vmm.TryCreateVm(0), Errno.EMFILE, FdTable.TableFull);
        AssertRefusedUnchanged(host, () => host.Vmm.TryCreateVm(31), Errno.EMFILE, FdTable.TableFull);
    }

    // Group, attribute, the value in K616 and in K72; null is ENXIO.
    [Theory]
    [InlineData(1, 0, 0x20L, 0x20L)]
    [InlineData(1, 1, null, 0x1b_ffffL)]
    [InlineData(1, 2, null, 1L)]
    [InlineData(1, 3, null, null)]
    [InlineData(1, ulong.MaxValue, null, null)]
    [InlineData(2, 0, null, null)]
    [InlineData(0xffff, 1, null, null)]
    public void DeviceAttributes_OfGroupSev(uint group, ulong attr, long? inK616, long? inK72)
    {
        foreach ((string profile, long? value) in new[] { (K616, inK616), (K72, inK72) })
        {
            TestHost host = Boot(profile);
            ulong address = host.Vmm.Map(1);
            var args = new kvm_device_attr { group = group, attr = attr, addr = address };
            CallReport has = host.Vmm.Ioctl(host.Vmm.Kvm, KvmIoctl.KVM_HAS_DEVICE_ATTR, ref args);
            CallReport get = host.Vmm.Ioctl(host.Vmm.Kvm, KvmIoctl.KVM_GET_DEVICE_ATTR, ref args);
            if (value is null)
            {
                AssertRefused(has, Errno.ENXIO, KvmDevice.UnknownAttribute);
                AssertRefused(get, Errno.ENXIO, KvmDevice.UnknownAttribute);
            }
            else
            {
                AssertOk(has);
                AssertOk(get);
                Assert.Equal((ulong)value, host.Vmm.Load<ulong>(address));
            }
        }
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void DeviceAttribute_ChecksCopyInThenNameThenCopyOut(string profile)
    {
        TestHost host = Boot(profile);
        var args = new kvm_device_attr { group = 1, attr = 0, addr = Vmm.Unmapped };
        AssertRefusedUnchanged(host, () => host.Vmm.IoctlCutShort(host.Vmm.Kvm, KvmIoctl.KVM_GET_DEVICE_ATTR, args), Errno.EFAULT, UserArg.CopyInFaulted);
        AssertRefused(host.Vmm.Ioctl(host.Vmm.Kvm, KvmIoctl.KVM_GET_DEVICE_ATTR, ref args), Errno.EFAULT, UserMemory.NotMapped);
        AssertOk(host.Vmm.Ioctl(host.Vmm.Kvm, KvmIoctl.KVM_HAS_DEVICE_ATTR, ref args));
        args.attr = 9;
        AssertRefused(host.Vmm.Ioctl(host.Vmm.Kvm, KvmIoctl.KVM_GET_DEVICE_ATTR, ref args), Errno.ENXIO, KvmDevice.UnknownAttribute);
    }

    [Theory]
    [InlineData(true, 1)]
    [InlineData(false, 0)]
    public void CertificateAttribute_SaysWhetherSnpIsEnabled(bool snp, ulong value)
    {
        TestHost host = Boot(machine: new MachineConfig { SevSnp = snp });
        ulong address = host.Vmm.Map(1);
        var args = new kvm_device_attr { group = 1, attr = 2, addr = address };
        AssertOk(host.Vmm.Ioctl(host.Vmm.Kvm, KvmIoctl.KVM_GET_DEVICE_ATTR, ref args));
        Assert.Equal(value, host.Vmm.Load<ulong>(address));
    }
}
