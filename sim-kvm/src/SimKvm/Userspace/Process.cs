using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>
/// A VMM process: its memory, its descriptors, its system calls. A client's session is one of these; when it exits, descriptors close and mappings go, and what
/// only they held is freed, because that is what Linux does.
/// </summary>
/// <remarks>
/// Every public method is one system call (or one load or store of the program) and runs under the host's rule of one call at a time: callers go through
/// <see cref="SimHost.Run{T}"/>.
/// </remarks>
public sealed class Process
{
    public static readonly Rule NoSuchDevice = new(
        "vfs.open.no-such-device", "there is no such device on a simulated host", "path_openat", "open /dev/kvm or /dev/sev");

    public static readonly Rule SevDisabled = new(
        "vfs.open.no-sev", "the machine has SEV disabled, so there is no /dev/sev", "sev_misc_init", "boot the host with sev enabled");

    private readonly KTask _task;

    internal Process(SimHost host, int pid, int fdLimit)
    {
        Host = host;
        Pid = pid;
        Memory = new UserMemory(host);
        Files = new FdTable(fdLimit);
        _task = new KTask(this, pid);
    }

    public SimHost Host { get; }

    public int Pid { get; }

    public bool Exited { get; private set; }

    public UserMemory Memory { get; }

    public FdTable Files { get; }

    /// <summary>open(2) of a device node.</summary>
    public CallReport Open(string path) => Call($"open {path}", current =>
    {
        if (path is not ("/dev/kvm" or "/dev/sev"))
        {
            return current.Fail(Errno.ENOENT, NoSuchDevice);
        }
        if (path == "/dev/sev" && !Host.Machine.Config.Sev)
        {
            return current.Fail(Errno.ENOENT, SevDisabled);
        }
        Errno errno = Files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        Files.Install(fd, path == "/dev/kvm" ? new Kvm.KvmDevice(Host) : new Vendors.Amd.SevDevice());
        return SyscallResult.Of(fd);
    });

    /// <summary>close(2).</summary>
    public CallReport Close(int fd) => Call($"close {fd}", current => Files.Close(current, fd));

    /// <summary>mmap(2); the value is the address.</summary>
    public CallReport Mmap(ulong addr, ulong length, uint prot, uint flags, int fd, ulong offset) =>
        Call("mmap", current => Memory.Mmap(current, addr, length, prot, flags, fd, offset));

    /// <summary>munmap(2).</summary>
    public CallReport Munmap(ulong addr, ulong length) => Call("munmap", current => Memory.Munmap(current, addr, length));

    /// <summary>fallocate(2).</summary>
    public CallReport Fallocate(int fd, uint mode, long offset, long len) =>
        Call($"fallocate {fd}", current => Vfs.Fallocate(current, fd, mode, offset, len));

    /// <summary>fstat(2).</summary>
    public CallReport Fstat(int fd, out FileStat stat)
    {
        FileStat found = default;
        CallReport report = Call($"fstat {fd}", current =>
        {
            Errno errno = Files.Lookup(current, fd, out KernelFile? file);
            found = errno == Errno.OK ? file!.Stat() : default;
            return errno;
        });
        stat = found;
        return report;
    }

    /// <summary>ioctl(2) with a number or an address as argument.</summary>
    public CallReport Ioctl(int fd, uint request, ulong arg) =>
        Call(IoctlTable.Describe(this, fd, request), current => IoctlTable.Dispatch(current, fd, request, UserArg.FromValue(arg)));

    /// <summary>ioctl(2) whose argument points to exactly <paramref name="argument"/>; what the call stores goes back into it.</summary>
    public CallReport Ioctl(int fd, uint request, Memory<byte> argument) =>
        Call(IoctlTable.Describe(this, fd, request), current => IoctlTable.Dispatch(current, fd, request, UserArg.FromBytes(argument.Span)));

    /// <summary>Loads of the program. The value is the number of bytes that could be read; EFAULT (a SIGSEGV) if that is not all.</summary>
    public CallReport Read(ulong address, Memory<byte> destination) => Call("load", current =>
    {
        int done = Memory.Read(current, address, destination.Span);
        return done == destination.Length ? SyscallResult.Of(done) : new SyscallResult(Errno.EFAULT, done);
    });

    /// <summary>Stores of the program. The value is the number of bytes that could be stored; EFAULT (a SIGSEGV) if that is not all.</summary>
    public CallReport Write(ulong address, ReadOnlyMemory<byte> source) => Call("store", current =>
    {
        int done = Memory.Write(current, address, source.Span);
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
        vcpu.Guest.Load(program);
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

    private CallReport Call(string what, Func<KTask, SyscallResult> body)
    {
        if (Exited)
        {
            throw new InvalidOperationException($"process {Pid} has exited");
        }
        ulong findingsBefore = Host.Machine.Findings.Count;
        ulong call = Host.NextCall();
        _task.BeginCall(call);
        SyscallResult result = body(_task);
        _task.EndCall();
        _task.DeliverSignal();
        if (_task.Held.Count != 0)
        {
            throw new InvalidOperationException($"{what} returned with {_task.Held.Items[0].Class} held");
        }
        return new CallReport(
            call, what, result,
            result.Succeeded ? [] : _task.Causes.ToArray(),
            Host.Machine.Findings.Count == findingsBefore ? [] : Host.Machine.Findings.All.Skip((int)findingsBefore).ToArray());
    }
}

/// <summary>What a call answered, and why.</summary>
/// <param name="Call">Number of the call on its host, from 1.</param>
/// <param name="What">The call in a few words, for people.</param>
/// <param name="Causes">Why it failed, the root first; empty on success.</param>
/// <param name="Findings">What a real machine would have suffered from in this call.</param>
public sealed record CallReport(ulong Call, string What, SyscallResult Result, IReadOnlyList<Cause> Causes, IReadOnlyList<Finding> Findings)
{
    public Errno Errno => Result.Errno;

    public long Value => Result.Value;

    public bool Succeeded => Result.Succeeded;
}
