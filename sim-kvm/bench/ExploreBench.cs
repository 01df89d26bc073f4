using System.Runtime.InteropServices;
using BenchmarkDotNet.Attributes;
using SimKvm.Abi;
using SimKvm.Exploration;
using SimKvm.Profiles;
using SimKvm.Userspace;

namespace SimKvm.Bench;

/// <summary>
/// What a schedule costs: a machine booted, five calls of setup, and two ioctls in some order. Next to it the same without an order to choose, one step of the journal, and the peer
/// that all of it is to be compared with: two threads of this process that hand over to each other, which is what a switch between programs cannot be cheaper than.
/// </summary>
public class ExploreBench
{
    private const int Schedules = 64;

    private readonly Scenario _scenario = new() { Title = "bench", Profile = KernelProfiles.K72, Prepare = Prepare };
    private SimHost _host = null!;
    private Process _process = null!;
    private int _vm;
    private byte[] _noop = [];
    private SemaphoreSlim _mine = null!;
    private SemaphoreSlim _its = null!;
    private Thread _other = null!;
    private volatile bool _over;

    [GlobalSetup]
    public void Setup()
    {
        _host = new SimHost(KernelProfiles.K72, _scenario.Machine, 1);
        (_process, _vm, _) = Boot(_host);
        _noop = Attributes(kvm_memory_attributes.PRIVATE);
        (_mine, _its) = (new SemaphoreSlim(0), new SemaphoreSlim(0));
        _other = new Thread(() =>
        {
            while (true)
            {
                _its.Wait();
                if (_over)
                {
                    return;
                }
                _mine.Release();
            }
        });
        _other.Start();
    }

    [GlobalCleanup]
    public void Cleanup()
    {
        _over = true;
        _its.Release();
        _other.Join();
        _mine.Dispose();
        _its.Dispose();
        _host.Dispose();
    }

    [Benchmark(Description = "peer: a hand-over between two threads", Baseline = true, OperationsPerInvoke = 2 * Schedules)]
    public void HandOver()
    {
        for (int i = 0; i < Schedules; i++)
        {
            _its.Release();
            _mine.Wait();
        }
    }

    [Benchmark(Description = "a schedule of 2 ioctls, exploring at random", OperationsPerInvoke = Schedules)]
    public int Random() => Explore(ExplorationStrategy.Random);

    // As many schedules as there are that can be told apart.
    [Benchmark(Description = "all orders of 2 ioctls, reduced search")]
    public int Reduced() => Explore(ExplorationStrategy.Exhaustive);

    [Benchmark(Description = "boot and setup alone")]
    public int BootAndSetup()
    {
        using var host = new SimHost(KernelProfiles.K72, _scenario.Machine, 1);
        return Boot(host).Vm;
    }

    // ioctl enter, slots_lock, its release, ioctl exit: four steps and next to nothing else.
    [Benchmark(Description = "a step of the journal, live (in an ioctl of 4)", OperationsPerInvoke = 4)]
    public long Step() => _process.Ioctl(_vm, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, _noop).Value;

    private int Explore(ExplorationStrategy strategy)
    {
        using var explorer = new Explorer(_scenario, new ExplorationOptions { Strategy = strategy, MaxSchedules = Schedules });
        return explorer.Explore().Schedules;
    }

    private static PreparedScenario Prepare(SimHost host)
    {
        (Process process, int vm, int gmem) = Boot(host);
        return new PreparedScenario(
        [
            new ExploredProgram("convert", process, each => each.Ioctl(vm, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, Attributes(0))),
            new ExploredProgram("punch hole", process, each => each.Fallocate(gmem, 3, 0, 8192)),
        ]);
    }

    private static (Process Process, int Vm, int Gmem) Boot(SimHost host)
    {
        Process process = host.StartProcess();
        int kvm = (int)process.Open("/dev/kvm").Value;
        int vm = (int)process.Ioctl(kvm, KvmIoctl.KVM_CREATE_VM, (ulong)VmType.KVM_X86_SW_PROTECTED_VM).Value;
        byte[] create = new byte[64], slot = new byte[160];
        MemoryMarshal.Write(create, new kvm_create_guest_memfd { size = 8192 });
        int gmem = (int)process.Ioctl(vm, KvmIoctl.KVM_CREATE_GUEST_MEMFD, create).Value;
        MemoryMarshal.Write(slot, new kvm_userspace_memory_region2 { flags = KvmMem.GUEST_MEMFD, memory_size = 8192, guest_memfd = (uint)gmem });
        process.Ioctl(vm, KvmIoctl.KVM_SET_USER_MEMORY_REGION2, slot);
        process.Ioctl(vm, KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, Attributes(kvm_memory_attributes.PRIVATE));
        return (process, vm, gmem);
    }

    private static byte[] Attributes(ulong value)
    {
        byte[] bytes = new byte[32];
        MemoryMarshal.Write(bytes, new kvm_memory_attributes { size = 8192, attributes = value });
        return bytes;
    }
}
