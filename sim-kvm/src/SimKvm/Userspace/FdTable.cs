using System.Diagnostics.CodeAnalysis;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>The descriptors of a process: small numbers, the lowest free one first. 0, 1 and 2 are taken, as in a process that a shell started.</summary>
public sealed class FdTable
{
    private const int FirstFd = 3;

    public static readonly Rule NotOpen = new(
        "vfs.fd-not-open", "the descriptor is not open", "fdget", "use a descriptor that open, KVM_CREATE_VM, ... gave to this process", "fd#");

    public static readonly Rule TableFull = new(
        "vfs.fd-table-full", "the process has as many descriptors as it may have (RLIMIT_NOFILE)", "alloc_fd", "close some", "open#");

    private readonly SortedDictionary<int, KernelFile> _files = [];
    private readonly int _limit;

    // Lowest descriptor that may be free.
    private int _next = FirstFd;

    internal FdTable(int limit) => _limit = limit;

    public int Count => _files.Count;

    /// <summary>Open descriptors with what they are, in order.</summary>
    public IEnumerable<(int Fd, KernelFile File)> Open => _files.Select(pair => (pair.Key, pair.Value));

    /// <summary>get_unused_fd(): EMFILE when the table is full. The number is not taken until <see cref="Install"/>.</summary>
    internal Errno Reserve(KTask current, out int fd)
    {
        while (_files.ContainsKey(_next))
        {
            _next++;
        }
        fd = _next;
        return _files.Count >= _limit - FirstFd ? current.Fail(Errno.EMFILE, TableFull, (ulong)_files.Count) : Errno.OK;
    }

    /// <summary>fd_install(): the descriptor takes over the caller's reference.</summary>
    internal void Install(int fd, KernelFile file) => _files.Add(fd, file);

    /// <summary>What a descriptor refers to, if it is open.</summary>
    internal bool TryGet(int fd, [NotNullWhen(true)] out KernelFile? file) => _files.TryGetValue(fd, out file);

    /// <summary>fdget(): EBADF when the descriptor is not open.</summary>
    internal Errno Lookup(KTask current, int fd, out KernelFile? file) =>
        _files.TryGetValue(fd, out file) ? Errno.OK : current.Fail(Errno.EBADF, NotOpen, unchecked((uint)fd));

    internal Errno Close(KTask current, int fd)
    {
        Errno errno = Lookup(current, fd, out KernelFile? file);
        if (errno == Errno.OK)
        {
            _files.Remove(fd);
            _next = Math.Min(_next, fd);
            file!.Put(current);
        }
        return errno;
    }

    /// <summary>No free number is below the one where the search begins.</summary>
    internal void CheckInvariants()
    {
        for (int fd = FirstFd; fd < _next; fd++)
        {
            if (!_files.ContainsKey(fd))
            {
                throw new InvalidOperationException($"descriptor {fd} is free, but the search for one begins at {_next}");
            }
        }
    }

    internal void CloseAll(KTask current)
    {
        foreach (int fd in _files.Keys.ToArray())
        {
            Close(current, fd);
        }
    }
}
