using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>
/// A VMM process: its memory, its descriptors, its system calls. A client's session is one of these; when it exits, descriptors close and mappings go, and what
/// only they held is freed, because that is what Linux does. Calls on descriptors are in <c>Process.Files.cs</c>, calls on memory in <c>Process.Memory.cs</c>.
/// </summary>
/// <remarks>
/// Every public method is one system call (or one load or store of the program) and runs under the host's rule of one call at a time: callers go through
/// <see cref="SimHost.Run{T}"/>.
/// </remarks>
public sealed partial class Process
{
    private static readonly StepLabel CallStep = new("call");

    // The thread whose turn it is: the only one, unless interleavings are explored.
    private KTask _task;

    internal Process(SimHost host, int pid, int fdLimit)
        : this(host, pid, new UserMemory(host), new FdTable(fdLimit))
    {
    }

    internal Process(SimHost host, int pid, UserMemory memory, FdTable files)
    {
        Host = host;
        Pid = pid;
        Memory = memory;
        Files = files;
        _task = new KTask(this, pid);
    }

    /// <summary>
    /// Whoever waits for the call under way. When it gives up, the call sees a fatal signal, so that a call of any length can be ended from outside.
    /// </summary>
    public CancellationToken Caller { get; set; }

    public SimHost Host { get; }

    public int Pid { get; }

    public bool Exited { get; private set; }

    /// <summary>Number of the thread whose turn it is.</summary>
    public int Tid => _task.Id;

    /// <summary>Another thread of the process, which runs when it is given its turn (<see cref="Switch"/>).</summary>
    internal KTask AddThread() => new(this, Host.NextTid()) { Borrows = true };

    /// <summary>From here on calls are made by this thread.</summary>
    /// <returns>The one whose turn it was.</returns>
    internal KTask Switch(KTask to)
    {
        KTask from = _task;
        _task = to;
        return from;
    }

    public UserMemory Memory { get; }

    public FdTable Files { get; }

    /// <summary>ioctl(2) with a number or an address as argument.</summary>
    public CallReport Ioctl(int fd, uint request, ulong arg) =>
        Call(IoctlTable.Describe(this, fd, request), current => IoctlTable.Dispatch(current, fd, request, UserArg.FromValue(arg)));

    /// <summary>ioctl(2) whose argument points to exactly <paramref name="argument"/>; what the call stores goes back into it.</summary>
    public CallReport Ioctl(int fd, uint request, Memory<byte> argument) =>
        Call(IoctlTable.Describe(this, fd, request, argument.Span), current => IoctlTable.Dispatch(current, fd, request, UserArg.FromBytes(argument.Span)));

    /// <summary>Loads of the program. The value is the number of bytes that could be read; where that is not all, the signal says why,
    /// and EFAULT stands in for an errno, which a load or store does not have.</summary>
    public CallReport Read(ulong address, Memory<byte> destination) => Call("load", current =>
    {
        int done = Memory.Read(current, address, destination.Span, out Signal? signal);
        current.Signal = signal;
        return done == destination.Length ? SyscallResult.Of(done) : new SyscallResult(Errno.EFAULT, done);
    });

    /// <summary>Stores of the program. The value is the number of bytes that could be stored; where that is not all, the signal says why,
    /// and EFAULT stands in for an errno, which a load or store does not have.</summary>
    public CallReport Write(ulong address, ReadOnlyMemory<byte> source) => Call("store", current =>
    {
        int done = Memory.Write(current, address, source.Span, out Signal? signal);
        current.Signal = signal;
        return done == source.Length ? SyscallResult.Of(done) : new SyscallResult(Errno.EFAULT, done);
    });

    /// <summary>A signal arrives when the process's calls have looked for one so many times in vain; the call that then notices it delivers it.</summary>
    public void RaiseSignal(int afterChecks) => _task.SignalAfter(afterChecks);

    /// <summary>Pins pages for long (get_user_pages with FOLL_LONGTERM), as a device does. The value is the pin's id.</summary>
    public CallReport PinPages(ulong address, ulong length, bool write) => Call("pin pages", current => Memory.PinLongTerm(current, address, length, write));

    /// <summary>Ends such a pin.</summary>
    public CallReport UnpinPages(ulong pin) => Call("unpin pages", current => Memory.UnpinLongTerm(current, pin));

    /// <summary>Gives a vCPU what it executes. False where the descriptor is no vCPU.</summary>
    public bool LoadGuestProgram(int fd, IEnumerable<Kvm.GuestStep> program)
    {
        if (!Files.TryGet(fd, out KernelFile? file) || file is not Kvm.VcpuFile { Vcpu: var vcpu })
        {
            return false;
        }
        vcpu.LoadProgram(program);
        return true;
    }

    /// <summary>Guests of the VM behind a vCPU fd can mark accesses as private or shared; null where the descriptor is no vCPU.</summary>
    public bool? GuestAccessesAreMarked(int fd) =>
        Files.TryGet(fd, out KernelFile? file) && file is Kvm.VcpuFile { Vcpu: var vcpu } ? vcpu.Vm.Backend.AccessesAreMarked : null;

    /// <summary>The guest's progress and the results of the steps done since the last look; null where the descriptor is no vCPU.</summary>
    public Kvm.GuestProgress? TakeGuestProgress(int fd)
    {
        if (!Files.TryGet(fd, out KernelFile? file) || file is not Kvm.VcpuFile { Vcpu: var vcpu })
        {
            return null;
        }
        byte[] run = new byte[Kvm.GuestProgress.RunBytes];
        vcpu.Run.CopyTo(run);
        return new Kvm.GuestProgress(vcpu.Guest.Pc, vcpu.Guest.Length, vcpu.Guest.TakeResults(), run);
    }

    /// <summary>Stores into a vCPU's run page (or, from 4096 on, its PIO page), as a program that mapped it would. False where the descriptor is no vCPU.</summary>
    public bool StoreToRunPage(int fd, int offset, ReadOnlySpan<byte> bytes)
    {
        if (!Files.TryGet(fd, out KernelFile? file) || file is not Kvm.VcpuFile { Vcpu: var vcpu })
        {
            return false;
        }
        vcpu.Run.Store(offset, bytes);
        return true;
    }

    /// <summary>
    /// What software in an SNP guest would do to ask firmware something, in one call: for tools that want a report without a guest program. Null where the
    /// descriptor is no VM. EIO where firmware refuses the message or denies what it asks.
    /// </summary>
    /// <param name="fd">A VM fd.</param>
    /// <param name="vmpck">Key and VMPL of who asks, 0 to 3.</param>
    /// <param name="type">A request.</param>
    /// <param name="payload">Its payload.</param>
    /// <param name="answer">What firmware answered.</param>
    public CallReport? AskFirmwareAsGuest(
        int fd, byte vmpck, SimMachine.Amd.Attestation.GuestMessageType type, byte[] payload, out Vendors.Amd.FirmwareAnswer answer)
    {
        Vendors.Amd.FirmwareAnswer found = default;
        answer = found;
        if (!Files.TryGet(fd, out KernelFile? file) || file is not Kvm.VmFile { Vm.Backend: Vendors.Amd.SevBackend backend })
        {
            return null;
        }
        CallReport report = Call($"guest message {type}", current => backend.AskAsGuest(current, vmpck, type, payload, out found));
        answer = found;
        return report;
    }

    /// <summary>exit_group(2): mappings go, descriptors close in order.</summary>
    public void Exit()
    {
        if (Exited)
        {
            return;
        }
        Call("exit", current =>
        {
            Memory.Exit(current);
            Files.CloseAll(current);
            return Errno.OK;
        });
        Exited = true;
        Host.Remove(this);
    }

    /// <summary>Descriptors and memory are whole, and no lock outlived a call.</summary>
    internal void CheckInvariants()
    {
        Files.CheckInvariants();
        Memory.CheckInvariants();
        if (_task.Held.Count != 0)
        {
            throw new InvalidOperationException($"process {Pid} holds {_task.Held.Items[0].Class} between calls");
        }
    }

    /// <summary>A call of a test's own making.</summary>
    internal CallReport CallForTest(string what, Func<KTask, SyscallResult> body) => Call(what, body);

    private CallReport Call(string what, Func<KTask, SyscallResult> body)
    {
        if (Exited)
        {
            throw new InvalidOperationException($"process {Pid} has exited");
        }
        KTask current = _task;
        current.What = what;
        Host.Machine.Baton?.Pass(current, CallStep);
        ulong findingsBefore = Host.Machine.Findings.Count;
        ulong stepsBefore = Host.Machine.Journal.Steps;
        ulong call = Host.NextCall();
        current.BeginCall(call);
        current.Signal = null;
        Errno injected = Host.Faults?.AtCall(current, what) ?? Errno.OK;
        SyscallResult result = injected != Errno.OK ? injected : body(current);
        current.ReturnBorrowed();
        current.EndCall();
        current.DeliverSignal();
        if (current.Held.Count != 0)
        {
            throw new InvalidOperationException($"{what} returned with {current.Held.Items[0].Class} held");
        }
        var report = new CallReport(
            call, what, result,
            result.Succeeded ? [] : current.Causes.ToArray(),
            Host.Machine.Findings.Count == findingsBefore ? [] : Host.Machine.Findings.All.Skip((int)findingsBefore).Where(finding => finding.Call == call).ToArray())
        {
            Signal = current.Signal,
        };
        Host.CallLog.Append(new Auditing.LoggedCall(Pid, report, stepsBefore + 1, Host.Machine.Journal.Steps));
        return report;
    }
}

/// <summary>What a call answered, and why.</summary>
/// <param name="Call">Number of the call on its host, from 1.</param>
/// <param name="What">The call in a few words, for people.</param>
/// <param name="Causes">Why it failed, the root first; empty on success.</param>
/// <param name="Findings">What a real machine would have suffered from in this call.</param>
public sealed record CallReport(ulong Call, string What, SyscallResult Result, IReadOnlyList<Cause> Causes, IReadOnlyList<Finding> Findings)
{
    /// <summary>The signal that the call or the access brought.</summary>
    public Signal? Signal { get; init; }

    public Errno Errno => Result.Errno;

    public long Value => Result.Value;

    public bool Succeeded => Result.Succeeded;
}
