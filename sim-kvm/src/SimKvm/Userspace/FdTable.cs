using System.Diagnostics.CodeAnalysis;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>The descriptors of a process: small numbers, the lowest free one first. 0, 1 and 2 are taken, as in a process that a shell started.</summary>
public sealed class FdTable
{
    private const int FirstFd = 3;

    public static readonly Rule NotOpen = new(
        "vfs.fd-not-open", "the descriptor is not open", "fdget", "use a descriptor that open, KVM_CREATE_VM, ... gave to this process", "fd#");

    public static readonly Rule IsPath = new(
        "vfs.fd-path", "the descriptor was opened with O_PATH: it stands for a name, not for an open file", "fdget", "open it without O_PATH, or use the original descriptor", "fd#");

    public static readonly Rule TableFull = new(
        "vfs.fd-table-full", "the process has as many descriptors as it may have (RLIMIT_NOFILE)", "alloc_fd", "close some", "open#");

    public static readonly Rule LimitTooHigh = new(
        "vfs.rlimit-nofile", "the limit is negative, or above the hard limit that the host set", "do_prlimit", "ask for less", "limit#", "hard_limit#");

    private readonly SortedDictionary<int, Entry> _files = [];

    // Lowest descriptor that may be free.
    private int _next = FirstFd;

    internal FdTable(int limit) => Limit = limit;

    public int Count => _files.Count;

    /// <summary>RLIMIT_NOFILE: no new descriptor is as large. Descriptors that are open stay when it shrinks.</summary>
    public int Limit { get; internal set; }

    /// <summary>Open descriptors with what they are, in order.</summary>
    public IEnumerable<(int Fd, KernelFile File)> Open => _files.Select(pair => (pair.Key, pair.Value.File));

    /// <summary>get_unused_fd(): EMFILE when the table is full. The number is not taken until <see cref="Install"/>.</summary>
    internal Errno Reserve(KTask current, out int fd)
    {
        current.Machine.Writing(this);
        fd = _next = LowestFree(_next);
        return fd >= Limit ? current.Fail(Errno.EMFILE, TableFull, (ulong)_files.Count) : Errno.OK;
    }

    /// <summary>The lowest free descriptor from <paramref name="from"/> on (F_DUPFD).</summary>
    internal Errno ReserveFrom(KTask current, int from, out int fd)
    {
        current.Machine.Writing(this);
        fd = LowestFree(Math.Max(from, _next));
        return fd >= Limit ? current.Fail(Errno.EMFILE, TableFull, (ulong)_files.Count) : Errno.OK;
    }

    /// <summary>fd_install(): the descriptor takes over the caller's reference.</summary>
    internal void Install(int fd, KernelFile file, bool closeOnExec = false) => _files.Add(fd, new Entry(file) { CloseOnExec = closeOnExec });

    /// <summary>What a descriptor refers to, if it is open.</summary>
    internal bool TryGet(int fd, [NotNullWhen(true)] out KernelFile? file)
    {
        file = _files.GetValueOrDefault(fd)?.File;
        return file is not null;
    }

    /// <summary>fdget(): EBADF when the descriptor is not open, or stands for a name only.</summary>
    internal Errno Lookup(KTask current, int fd, out KernelFile? file)
    {
        Errno errno = LookupRaw(current, fd, out file);
        if (errno == Errno.OK && file is PathFile)
        {
            file = null;
            return current.Fail(Errno.EBADF, IsPath, unchecked((uint)fd));
        }
        return errno;
    }

    /// <summary>fdget_raw(): O_PATH descriptors too.</summary>
    internal Errno LookupRaw(KTask current, int fd, out KernelFile? file)
    {
        current.Machine.Reading(this);
        if (!TryGet(fd, out file))
        {
            return current.Fail(Errno.EBADF, NotOpen, unchecked((uint)fd));
        }
        current.Borrow(file);
        return Errno.OK;
    }

    /// <summary>FD_CLOEXEC of an open descriptor.</summary>
    internal bool GetCloseOnExec(int fd) => _files[fd].CloseOnExec;

    internal void SetCloseOnExec(int fd, bool value) => _files[fd].CloseOnExec = value;

    internal Errno Close(KTask current, int fd)
    {
        current.Machine.Writing(this);
        if (!TryGet(fd, out KernelFile? file))
        {
            return current.Fail(Errno.EBADF, NotOpen, unchecked((uint)fd));
        }
        _files.Remove(fd);
        _next = fd >= FirstFd ? Math.Min(_next, fd) : _next;
        file.Put(current);
        return Errno.OK;
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

    /// <summary>dup_fd(): what a forked child starts with. Files are shared, positions and flags with them; FD_CLOEXEC is copied.</summary>
    internal FdTable Fork()
    {
        var child = new FdTable(Limit) { _next = _next };
        foreach ((int fd, Entry entry) in _files)
        {
            entry.File.Get();
            child.Install(fd, entry.File, entry.CloseOnExec);
        }
        return child;
    }

    private int LowestFree(int from)
    {
        while (_files.ContainsKey(from))
        {
            from++;
        }
        return from;
    }

    private sealed class Entry(KernelFile file)
    {
        public KernelFile File { get; } = file;

        public bool CloseOnExec { get; set; }
    }
}
