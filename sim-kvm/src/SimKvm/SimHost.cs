using SimKvm.Auditing;
using SimKvm.Locking;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimKvm.Vendors.Intel;
using SimMachine;
using SimMachine.Addressing;

namespace SimKvm;

/// <summary>
/// A simulated computer with a Linux of one generation booted on it: the unit of isolation, determinism and placement. All state hangs from here; nothing
/// mutable is static.
/// </summary>
/// <remarks>
/// A host runs one call at a time, in the order of arrival (<see cref="Run{T}"/>), so the same calls give the same replies, digests, descriptors, frame numbers
/// and journal on any machine. Parallelism is between hosts.
/// </remarks>
public sealed class SimHost : IDisposable
{
    private readonly Lock _oneCallAtATime = new();
    private readonly SortedDictionary<int, Process> _processes = [];
    private readonly SortedDictionary<(FdKind, uint), ulong> _unknownIoctls = [];
    private int _lastPid;
    private Pfn _zeroPage;
    private Hugetlb? _hugetlb;
    private bool _disposed;

    public SimHost(KernelProfile profile, MachineConfig machine, ulong seed)
    {
        Profile = profile;
        Machine = new Machine(machine, seed);
        KvmAmd = new KvmAmd(this);
        KvmIntel = new KvmIntel(this);
        PagePins = new PagePins(this);
    }

    public KernelProfile Profile { get; }

    /// <summary>How this kernel was built and started.</summary>
    public KernelConfig Config { get; init; } = new();

    public Machine Machine { get; }

    /// <summary>Calls made so far.</summary>
    public ulong Calls { get; private set; }

    /// <summary>The last calls, with what they answered.</summary>
    public CallLog CallLog { get; } = new();

    /// <summary>RLIMIT_NOFILE of new processes.</summary>
    public int FdLimit { get; init; } = 4096;

    /// <summary>Live processes, by pid.</summary>
    public IReadOnlyCollection<Process> Processes => _processes.Values;

    /// <summary>ioctl numbers that were asked for and are not known, with how often, in order of fd kind and number.</summary>
    public IEnumerable<(FdKind Fd, uint Request, ulong Count)> UnknownIoctls => _unknownIoctls.Select(pair => (pair.Key.Item1, pair.Key.Item2, pair.Value));

    /// <summary>The pools of huge pages.</summary>
    internal Hugetlb Hugetlb => _hugetlb ??= new Hugetlb(this);

    internal Lockdep Lockdep { get; } = new();

    /// <summary>Faults that are to strike; null where none ever was asked for.</summary>
    internal Faults.FaultPlan? Faults { get; private set; }

    /// <summary>Has a fault strike. False where as many wait already as may.</summary>
    /// <exception cref="ArgumentException">It is no fault (<see cref="Faults.ScriptedFault.Problem"/>).</exception>
    public bool Inject(Faults.ScriptedFault fault)
    {
        if (fault.Problem(Machine.Config.Platform) is { } problem)
        {
            throw new ArgumentException(problem, nameof(fault));
        }
        Faults ??= new Faults.FaultPlan(this);
        Machine.StepWatcher = (thread, label) => Faults.AtStep((KTask)thread, label);
        Machine.MemoryIsOut = Faults.TakesMemory;
        if (Faults.Waiting >= SimKvm.Faults.FaultPlan.MaxFaults)
        {
            return false;
        }
        Faults.Add(fault);
        return true;
    }

    /// <summary>The one inode that VM and vCPU descriptors share (anon_inode_inode).</summary>
    internal VfsInode AnonInode { get; } = new();

    internal KvmAmd KvmAmd { get; }

    internal KvmIntel KvmIntel { get; }

    internal PagePins PagePins { get; }

    /// <summary>The last handle that the hypervisor of protected KVM gave to a VM.</summary>
    internal uint LastPkvmHandle { get; set; }

    /// <summary>VMs that exist, whether or not somebody still has their fd.</summary>
    public int LiveVms { get; internal set; }

    /// <summary>The page that read faults of untouched anonymous memory map.</summary>
    internal Pfn ZeroPage
    {
        get
        {
            if (_zeroPage.Value == 0 && !Machine.TryAllocateFrame(out _zeroPage))
            {
                throw new InvalidOperationException("the machine is too small for a zero page");
            }
            return _zeroPage;
        }
    }

    /// <summary>Runs something on this host while nothing else runs on it.</summary>
    public T Run<T>(Func<SimHost, T> body)
    {
        // While a baton is passed, it is what keeps threads apart: one that stands at a step has a call under way and must not keep others out.
        if (Machine.Baton is not null)
        {
            return body(this);
        }
        lock (_oneCallAtATime)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            return body(this);
        }
    }

    /// <summary>Work of a program for its own ends, which is no step of what is explored; null in live service.</summary>
    public IDisposable? Quietly() => Machine.Baton?.Quietly();

    /// <summary>The plug is pulled: memory goes, and no process gets to exit. For machines that were stopped in the middle of calls.</summary>
    internal void PullPlug()
    {
        Machine.Baton = null;
        Machine.Dispose();
        CallLog.Close();
        _disposed = true;
    }

    public Process StartProcess()
    {
        var process = new Process(this, ++_lastPid, FdLimit);
        _processes.Add(process.Pid, process);
        return process;
    }

    /// <summary>A forked child, with the next pid.</summary>
    internal Process AddForked(Func<int, Process> make)
    {
        Process child = make(++_lastPid);
        _processes.Add(child.Pid, child);
        return child;
    }

    public Process? FindProcess(int pid) => _processes.GetValueOrDefault(pid);

    /// <summary>Switches the machine off: processes exit, then memory goes.</summary>
    public void Dispose()
    {
        lock (_oneCallAtATime)
        {
            if (_disposed)
            {
                return;
            }
            foreach (Process process in _processes.Values.ToArray())
            {
                process.Exit();
            }
            Machine.Dispose();
            CallLog.Close();
            _disposed = true;
        }
    }

    /// <summary>Walks everything that the host has and checks that it hangs together (<see cref="Auditing.HostAudit"/>).</summary>
    /// <exception cref="InvalidOperationException">It does not: a bug of ours.</exception>
    public void CheckInvariants() => new Auditing.HostAudit(this).Check();

    internal Pfn ZeroPageIfMade => _zeroPage;

    /// <summary>What threads may touch at the same time, in an order that is always the same; for exploration.</summary>
    internal IEnumerable<object> SharedState
    {
        get
        {
            foreach (object state in (IEnumerable<object>)[.. Machine.SharedState, .. KvmAmd.SharedState, .. KvmIntel.SharedState, PagePins])
            {
                yield return state;
            }
            foreach (Process process in _processes.Values)
            {
                foreach (object state in (IEnumerable<object>)[process.Files, .. process.Memory.SharedState, .. process.Files.Open.SelectMany(open => open.File.SharedState)])
                {
                    yield return state;
                }
            }
        }
    }

    internal ulong NextCall() => ++Calls;

    /// <summary>Threads are numbered together with processes.</summary>
    internal int NextTid() => ++_lastPid;

    internal void Remove(Process process) => _processes.Remove(process.Pid);

    internal void CountUnknownIoctl(FdKind fd, uint request)
    {
        // Bounded: a client that tries all numbers must not fill memory.
        if (_unknownIoctls.Count < 1024 || _unknownIoctls.ContainsKey((fd, request)))
        {
            _unknownIoctls[(fd, request)] = _unknownIoctls.GetValueOrDefault((fd, request)) + 1;
        }
    }
}
