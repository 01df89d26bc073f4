using System.Globalization;
using System.Text;
using SimKvm.Abi;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Measurement;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>A host is a function of its seed and the calls: the same calls give the same reports, descriptors, digests, memory and journal.</summary>
public sealed class ReplayTests : KvmTest
{
    public static TheoryData<string, int> ProfilesAndSeeds
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (int seed in new[] { 1, 4, 9, 16 })
            {
                data.Add(K616, seed);
                data.Add(K72, seed);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(ProfilesAndSeeds))]
    public void SameCalls_GiveTheSameEverything(string profile, int seed)
    {
        string first = Play(Boot(profile, seed: 5), new Random(seed));
        string second = Play(Boot(profile, seed: 5), new Random(seed));
        Assert.Equal(first, second);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void AnotherHostSeed_ChangesKeysAndCiphertext_ButNoReportAndNoDigest(string profile)
    {
        TestHost five = Boot(profile, seed: 5);
        TestHost six = Boot(profile, seed: 6);
        Assert.Equal(Play(five, new Random(2)), Play(six, new Random(2)));
        byte[] fives = new byte[32];
        byte[] sixes = new byte[32];
        five.Machine.Entropy.Derive("x", fives);
        six.Machine.Entropy.Derive("x", sixes);
        Assert.NotEqual(fives, sixes);
    }

    // Random calls of every kind, most of them with something wrong, and all that can be seen of them.
    private static string Play(TestHost host, Random random)
    {
        var log = new StringBuilder();
        Vmm vmm = host.Vmm;
        ulong source = vmm.MapFilled(4);
        var vms = new List<TestVm>();
        var fds = new List<int> { 0, 3, 4, 99 };
        for (int step = 0; step < 300; step++)
        {
            TestVm? vm = vms.Count > 0 ? vms[random.Next(vms.Count)] : null;
            ulong gpa = (ulong)random.Next(12) << 12;
            ulong pages = (ulong)random.Next(6);
            int fd = fds[random.Next(fds.Count)];
            CallReport report;
            switch (random.Next(14))
            {
                case 0:
                    report = vmm.TryCreateVm((ulong)random.Next(6));
                    if (report.Succeeded)
                    {
                        var made = new TestVm(vmm, (int)report.Value);
                        vms.Add(made);
                        host.Vms.Add(made);
                    }
                    break;
                case 1 when fds.Count > 8:
                    report = vmm.Close(fd);
                    break;
                case 2:
                    report = vmm.Process.Fallocate(fd, (uint)random.Next(4), (long)gpa, (long)(pages << 12));
                    break;
                case 3:
                    report = vmm.Process.Mmap(0, pages << 12, 3, (uint)random.Next(4), fd, 0);
                    break;
                case 4:
                    report = vmm.Ioctl(fd, KvmIoctl.KVM_CHECK_EXTENSION, (ulong)random.Next(240));
                    break;
                case 5 when vm is not null:
                    report = vm.TryCreateGmem(8 * 4096, (ulong)random.Next(4));
                    break;
                case 6 when vm is not null:
                    report = vm.TryCreateVcpu((ulong)random.Next(4));
                    break;
                case 7 when vm is not null:
                    report = vm.TrySetRegion2((uint)random.Next(4), (uint)random.Next(5), gpa, pages, 0, fd, 0);
                    break;
                case 8 when vm is not null:
                    report = vm.TrySetAttributes(gpa, pages << 12, (ulong)random.Next(2) * 8);
                    break;
                case 9 when vm is not null:
                    report = vm.TryInit2().Report;
                    break;
                case 10 when vm is not null:
                    report = vm.TryStart().Report;
                    break;
                case 11 when vm is not null:
                    report = vm.TryUpdate((SnpPageType)random.Next(1, 5), gpa, source, pages).Report;
                    break;
                case 12 when vm is not null && random.Next(4) == 0:
                    report = vm.TryFinish().Report;
                    break;
                default:
                    report = vmm.Process.Open(random.Next(2) == 0 ? "/dev/kvm" : "/dev/sev");
                    break;
            }
            if (report.Succeeded && report.Value is > 2 and < 4096)
            {
                fds.Add((int)report.Value);
            }
            log.AppendLine(CultureInfo.InvariantCulture, $"{report.Call} {report.What} {report.Errno} {report.Value} {string.Join(" | ", report.Causes.Select(cause => $"{cause.Step} {cause}"))}");
        }
        log.Append(host.Snapshot());
        foreach (StepRecord record in host.Machine.Journal.Read(0))
        {
            log.AppendLine(CultureInfo.InvariantCulture, $"{record.Step} {record.Label} {record.Call} {record.Thread} {record.A:x} {record.B:x}");
        }
        foreach (TestVm vm in vms)
        {
            log.Append(vm.TryDescribe()?.Sev.Guest is { } guest ? Convert.ToHexString(guest.LaunchDigest) : "-");
        }
        if (host.Profile.Id == K616)
        {
            // A second LAUNCH_FINISH of such a kernel is a fault of its host.
            host.Expect("host-rmp-fault");
        }
        return log.ToString();
    }
}
