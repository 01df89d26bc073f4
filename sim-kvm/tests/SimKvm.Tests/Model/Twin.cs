using System.Runtime.InteropServices;
using SimKvm.Kvm;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Addressing;

namespace SimKvm.Tests.Model;

/// <summary>The simulated kernel and the model side by side: each call is made on both, then answers and states must agree.</summary>
internal sealed class Twin : IDisposable
{
    // Small enough to run out of.
    private const int FdLimit = 22;

    private readonly SimHost _host;
    private readonly Process?[] _real = new Process?[3];
    private readonly ModelProcess?[] _model = new ModelProcess?[3];
    private readonly Dictionary<int, int> _fds = [];
    private readonly Dictionary<int, ulong> _addresses = [];

    public Twin(KernelProfile profile, Behaviours behaviours)
    {
        _host = new SimHost(profile, new MachineConfig(), seed: 1) { FdLimit = FdLimit };
        _ = _host.ZeroPage;
        Model = new ModelKernel(behaviours, FdLimit);
    }

    public ModelKernel Model { get; }

    /// <summary>What is in a descriptor variable; a number that is never open if nothing is.</summary>
    public int Fd(int variable) => _fds.GetValueOrDefault(variable, -1);

    /// <summary>What is in an address variable; 0 if nothing is.</summary>
    public ulong Address(int variable) => _addresses.GetValueOrDefault(variable);

    public void SetAddress(int variable, ulong address) => _addresses[variable] = address;

    public FdKind? KindOf(int process, int fd) => _model[process]?.Files.GetValueOrDefault(fd)?.Kind;

    public uint? VmTypeOf(int process, int fd) => _model[process]?.Files.GetValueOrDefault(fd)?.Vm?.Type;

    public bool IsOwnVm(int process, int fd) =>
        _model[process] is { } caller && caller.Files.TryGetValue(fd, out ModelFile? file) && file.Kind == FdKind.Vm && file.Vm!.Owner == caller;

    public void Start(int process)
    {
        if (_real[process] is null)
        {
            _real[process] = _host.StartProcess();
            Model.Processes.Add(_model[process] = new ModelProcess());
        }
    }

    public void Exit(int process)
    {
        _real[process]?.Exit();
        Model.Processes.Remove(_model[process]!);
        _real[process] = null;
        _model[process] = null;
    }

    /// <summary>Makes one call of a process on both sides. A process that is not there calls nothing.</summary>
    /// <param name="fd">The variable that takes the descriptor that the call gives; -1 where it gives none.</param>
    public void Compare(int process, Func<Process, KTask, CallReport> real, Func<ModelProcess, SyscallResult> model, int fd = -1)
    {
        if (_real[process] is not { } caller)
        {
            return;
        }
        CallReport actual = real(caller, new KTask(caller, 1000));
        SyscallResult expected = model(_model[process]!);
        Require(
            expected.Errno == actual.Errno && expected.Value == actual.Value,
            $"{actual.What}: the model says {expected.Errno} {expected.Value}, the kernel {actual.Errno} {actual.Value} {string.Join("; ", actual.Causes)}");
        Require(actual.Succeeded || actual.Causes.Count > 0, $"{actual.What}: {actual.Errno} without a cause");
        Require(actual.Findings.Count == 0, $"{actual.What}: {string.Join("; ", actual.Findings.Select(finding => $"{finding.Kind}: {finding.Text}"))}");
        if (fd >= 0)
        {
            _fds[fd] = actual.Succeeded ? (int)actual.Value : -1;
        }
    }

    public void Pass(int from, int fd, int to, int variable)
    {
        if (_real[from] is not { } sender || _real[to] is not { } receiver || !sender.Files.TryGet(fd, out KernelFile? file))
        {
            return;
        }
        SyscallResult expected = Model.Pass(_model[from]!, fd, _model[to]!);
        Errno errno = receiver.Files.Reserve(new KTask(receiver, 1000), out int there);
        Require(expected.Errno == errno && (errno != Errno.OK || expected.Value == there), $"passing {fd}: the model says {expected}, the kernel {errno} {there}");
        if (errno == Errno.OK)
        {
            file.Get();
            receiver.Files.Install(there, file);
        }
        _fds[variable] = errno == Errno.OK ? there : -1;
    }

    /// <summary>After a call: the state agrees with the model's, and all of the kernel hangs together.</summary>
    public void CompareStates()
    {
        Model.ReleaseFiles();
        _host.CheckInvariants();
        Require(_host.Machine.Findings.Count == 0, "a finding was reported outside of a call");
        Require(_host.LiveVms == Model.LiveVms.Count(), $"{_host.LiveVms} VMs live, in the model {Model.LiveVms.Count()}");
        Require(_host.Machine.AllocatedPages == Model.Frames + 1, $"{_host.Machine.AllocatedPages} frames are in use, in the model {Model.Frames} and the zero page");
        Require(_host.Machine.LeakedPages == 0, $"{_host.Machine.LeakedPages} frames are lost");
        for (int i = 0; i < _real.Length; i++)
        {
            if (_real[i] is { } process)
            {
                CompareFiles(process, _model[i]!);
            }
        }
    }

    /// <summary>At the end: when all processes are gone nothing is left, and locks were taken in the declared order.</summary>
    public void Finish()
    {
        for (int i = 0; i < _real.Length; i++)
        {
            Exit(i);
            CompareStates();
        }
        Require(_host.LiveVms == 0 && _host.Machine.AllocatedPages == 1, $"{_host.LiveVms} VMs and {_host.Machine.AllocatedPages - 1} frames are left over");
        foreach ((Locking.LockClass outer, Locking.LockClass inner) in _host.Lockdep.Edges())
        {
            Require(LockEdges.Allowed.Contains((outer, inner)), $"{inner} was taken under {outer}, which section 1.2 does not have");
        }
    }

    public IEnumerable<(Locking.LockClass, Locking.LockClass)> Edges => _host.Lockdep.Edges();

    public void Dispose() => _host.Dispose();

    public static void Require(bool holds, string otherwise)
    {
        if (!holds)
        {
            throw new DisagreementException(otherwise);
        }
    }

    public static SyscallResult Partial(int done, int wanted) => done == wanted ? SyscallResult.Of(done) : new SyscallResult(Errno.EFAULT, done);

    /// <summary>The argument of an ioctl; without its last byte where the copy is to fault.</summary>
    public static byte[] Bytes<T>(T argument, bool cutShort)
        where T : unmanaged =>
        MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in argument))[..^(cutShort ? 1 : 0)].ToArray();

    private static void CompareFiles(Process real, ModelProcess model)
    {
        string expected = string.Join(' ', model.Files.Select(file => $"{file.Key}:{file.Value.Kind}"));
        string actual = string.Join(' ', real.Files.Open.Select(open => $"{open.Fd}:{open.File.Kind}"));
        Require(expected == actual, $"descriptors of pid {real.Pid}: {actual}; in the model {expected}");
        foreach ((int fd, KernelFile file) in real.Files.Open)
        {
            switch (file)
            {
                case VmFile { Vm: var vm }:
                    Compare(vm, model.Files[fd].Vm!);
                    break;
                case GuestMemfd gmem:
                    Compare(gmem, model.Files[fd]);
                    break;
            }
        }
    }

    private static void Compare(Vm real, ModelVm model)
    {
        const uint visible = 0xffff;
        IEnumerable<string> expected = model.Slots.OrderBy(slot => slot.AsId).ThenBy(slot => slot.Gfn).Select(slot =>
            $"{slot.AsId}:{slot.Id} gfn {slot.Gfn}+{slot.Npages} uaddr {slot.Uaddr:x} flags {slot.Flags} {(slot.File is null ? "no file" : $"page {slot.Pgoff}")}");
        IEnumerable<string> actual = real.Memslots.All.Select(slot =>
            $"{slot.AsId}:{slot.Id} gfn {slot.BaseGfn}+{slot.Npages} uaddr {slot.UserspaceAddr:x} flags {slot.Flags & visible} {(slot.GmemFile is null ? "no file" : $"page {slot.GmemPgoff}")}");
        Require(expected.SequenceEqual(actual), $"slots\n    {string.Join("\n    ", actual)}\nin the model\n    {string.Join("\n    ", expected)}");

        ulong[] gfns = [.. real.Attributes.Runs().SelectMany(run => Enumerable.Range(0, (int)run.Count).Select(i => run.Start + (ulong)i))];
        Require(model.Private.SequenceEqual(gfns), $"private are {string.Join(',', gfns)}; in the model {string.Join(',', model.Private)}");
        Require(model.SeqMoves ? real.Mmu.Seq >= model.Seq : real.Mmu.Seq == model.Seq, $"seq is {real.Mmu.Seq}; in the model {model.Seq}");
        Require(model.Vcpus.SequenceEqual(real.Vcpus.Select(vcpu => vcpu.Id)), $"vCPUs are {string.Join(',', real.Vcpus.Select(vcpu => vcpu.Id))}");
        for (ulong gfn = 0; gfn < Sequence.Gfns; gfn++)
        {
            Require(real.Memslots.Find(new Gfn(gfn))?.Id == model.SlotOf(gfn)?.Id, $"gfn {gfn} is found in slot {real.Memslots.Find(new Gfn(gfn))?.Id}");
        }
    }

    private static void Compare(GuestMemfd real, ModelFile model)
    {
        Require(real.Inode.CountPages() == (ulong)model.Pages.Count, $"a guest_memfd has {real.Inode.CountPages()} pages; in the model {model.Pages.Count}");
        foreach ((ulong index, ModelPage page) in model.Pages)
        {
            bool present = real.Inode.TryGet(index, out Folio folio);
            Require(present && folio.Uptodate == page.Uptodate, $"page {index} is {(present ? folio.ToString() : "absent")}; in the model {(page.Uptodate ? "" : "not ")}up to date");
            ulong? slot = (ulong?)real.BoundSlot(index)?.BaseGfn;
            ModelSlot? expected = model.Vm!.Slots.Find(each => each.IsBoundIn(model, index, index + 1));
            Require(slot == expected?.Gfn, $"page {index} is bound to the slot at {slot}; in the model at {expected?.Gfn}");
        }
    }
}

/// <summary>The simulated kernel and the model disagree.</summary>
internal sealed class DisagreementException(string message) : Exception(message);
