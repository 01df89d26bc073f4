using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

// System calls on memory, and fork.
public sealed partial class Process
{
    public static readonly Rule NoSuchProcess = new(
        "mm.process-vm.pid", "there is no process of that pid on the host", "find_get_task_by_vpid", "use the pid of a process of the same host", "pid#");

    public static readonly Rule ProcessVmFlags = new(
        "mm.process-vm.flags", "flags must be 0, and there are at most 1024 vectors on each side", "process_vm_rw", "pass flags 0", "flags", "vectors#");

    /// <summary>mmap(2); the value is the address.</summary>
    public CallReport Mmap(ulong addr, ulong length, uint prot, uint flags, int fd, ulong offset) =>
        Call("mmap", current => Memory.Mmap(current, addr, length, prot, flags, fd, offset));

    /// <summary>munmap(2).</summary>
    public CallReport Munmap(ulong addr, ulong length) => Call("munmap", current => Memory.Munmap(current, addr, length));

    /// <summary>mremap(2); the value is the new address.</summary>
    public CallReport Mremap(ulong addr, ulong oldLength, ulong newLength, uint flags, ulong newAddr) =>
        Call("mremap", current => Memory.Mremap(current, addr, oldLength, newLength, flags, newAddr));

    /// <summary>mprotect(2).</summary>
    public CallReport Mprotect(ulong addr, ulong length, uint prot) => Call("mprotect", current => Memory.Mprotect(current, addr, length, prot));

    /// <summary>madvise(2). MADV_HWPOISON (100) makes the memory behind the range fail.</summary>
    public CallReport Madvise(ulong addr, ulong length, uint advice) => Call($"madvise {advice}", current => Memory.Madvise(current, addr, length, advice));

    /// <summary>msync(2).</summary>
    public CallReport Msync(ulong addr, ulong length, uint flags) => Call("msync", current => Memory.Msync(current, addr, length, flags));

    /// <summary>mlock(2).</summary>
    public CallReport Mlock(ulong addr, ulong length) => Call("mlock", current => Memory.Mlock(current, addr, length, locked: true));

    /// <summary>munlock(2).</summary>
    public CallReport Munlock(ulong addr, ulong length) => Call("munlock", current => Memory.Mlock(current, addr, length, locked: false));

    /// <summary>mbind(2).</summary>
    /// <param name="nodes">The first 64 bits of the node mask.</param>
    public CallReport Mbind(ulong addr, ulong length, uint mode, ulong nodes, uint flags) =>
        Call("mbind", current => Memory.Mbind(current, addr, length, mode, nodes, flags));

    /// <summary>process_vm_readv(2).</summary>
    public CallReport ProcessVmReadv(int pid, IReadOnlyList<IoVec> local, IReadOnlyList<IoVec> remote, ulong flags) =>
        Call("process_vm_readv", current => Exchange(current, pid, local, remote, flags, write: false));

    /// <summary>process_vm_writev(2).</summary>
    public CallReport ProcessVmWritev(int pid, IReadOnlyList<IoVec> local, IReadOnlyList<IoVec> remote, ulong flags) =>
        Call("process_vm_writev", current => Exchange(current, pid, local, remote, flags, write: true));

    /// <summary>fork(2): a child with the same memory and descriptors. The value is the child's pid.</summary>
    public CallReport Fork(out Process? child)
    {
        Process? forked = null;
        CallReport report = Call("fork", current =>
        {
            Errno errno = Memory.Fork(current, out UserMemory? memory);
            if (errno != Errno.OK)
            {
                return errno;
            }
            forked = Host.AddForked(pid => new Process(Host, pid, memory!, Files.Fork()));
            return SyscallResult.Of(forked.Pid);
        });
        child = forked;
        return report;
    }

    /// <summary>The memory behind a page of a file fails, as when hardware reports it. No call of a program; for tests of what follows.</summary>
    public CallReport InjectMemoryFailure(int fd, ulong index) => Call($"memory failure in {fd}", current =>
    {
        Errno errno = Files.Lookup(current, fd, out KernelFile? file);
        if (errno != Errno.OK)
        {
            return errno;
        }
        // No file is as long as that.
        return index < PageTree<ulong>.Limit ? file!.MemoryFailure(current, index) : current.Fail(Errno.ENXIO, Kvm.GuestMemfd.NoPageToFail, index);
    });

    private SyscallResult Exchange(KTask current, int pid, IReadOnlyList<IoVec> local, IReadOnlyList<IoVec> remote, ulong flags, bool write)
    {
        if (flags != 0 || local.Count > Vfs.MaxIoVecs || remote.Count > Vfs.MaxIoVecs)
        {
            return current.Fail(Errno.EINVAL, ProcessVmFlags, flags, (ulong)Math.Max(local.Count, remote.Count));
        }
        return Host.FindProcess(pid) is { } process
            ? Memory.Exchange(current, process.Memory, local, remote, write)
            : current.Fail(Errno.ESRCH, NoSuchProcess, unchecked((uint)pid));
    }
}
