using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>
/// What the VFS keeps of an inode, whatever its file system: who maps its pages (i_mmap), who holds its advisory lock, and how many files and names keep it.
/// </summary>
internal sealed class VfsInode(Action<KTask>? evict = null)
{
    public static readonly Rule WouldBlock = new(
        "vfs.flock.held", "another open file of the inode holds the lock; a simulated host runs one call at a time, so nobody waits for it", "flock_lock_inode",
        "unlock it there first", "shared_holders#");

    private readonly List<(UserMemory Memory, int Mappings)> _mappedBy = [];
    private readonly List<KernelFile> _sharedHolders = [];
    private KernelFile? _exclusiveHolder;
    private int _references = 1;

    public void Get() => _references++;

    /// <summary>iput(): the last one evicts the inode, and with it the pages.</summary>
    public void Put(KTask current)
    {
        if (--_references == 0)
        {
            evict?.Invoke(current);
        }
    }

    /// <summary>A process gained or lost a mapping.</summary>
    public void MappedBy(UserMemory memory, int change)
    {
        int index = _mappedBy.FindIndex(each => each.Memory == memory);
        if (index < 0)
        {
            _mappedBy.Add((memory, change));
            return;
        }
        int mappings = _mappedBy[index].Mappings + change;
        _mappedBy[index] = (memory, mappings);
        if (mappings == 0)
        {
            _mappedBy.RemoveAt(index);
        }
    }

    /// <summary>unmap_mapping_range: pages [first, last) are taken out of every process that maps them.</summary>
    /// <param name="current">Who asks.</param>
    /// <param name="first">The first page of the file.</param>
    /// <param name="last">One past the last.</param>
    /// <param name="evenCows">Also the copies that private mappings made: behind a new end of the file there is nothing.</param>
    public void UnmapMappingRange(KTask current, ulong first, ulong last, bool evenCows = false)
    {
        foreach ((UserMemory memory, _) in _mappedBy.ToArray())
        {
            memory.UnmapFilePages(current, this, first, last, evenCows);
        }
    }

    /// <summary>Processes that map pages of the inode.</summary>
    public IEnumerable<UserMemory> Mappers => _mappedBy.Select(each => each.Memory);

    /// <summary>flock_lock_inode: one exclusive holder, or any number of shared ones; an open file may change its kind of lock.</summary>
    public Errno Lock(KTask current, KernelFile file, bool exclusive)
    {
        bool othersShare = _sharedHolders.Exists(holder => holder != file);
        if ((_exclusiveHolder is not null && _exclusiveHolder != file) || (exclusive && othersShare))
        {
            return current.Fail(Errno.EAGAIN, WouldBlock, (ulong)_sharedHolders.Count);
        }
        ReleaseLock(file);
        file.HoldsLock = true;
        if (exclusive)
        {
            _exclusiveHolder = file;
        }
        else
        {
            _sharedHolders.Add(file);
        }
        return Errno.OK;
    }

    public void ReleaseLock(KernelFile file)
    {
        file.HoldsLock = false;
        _sharedHolders.Remove(file);
        _exclusiveHolder = _exclusiveHolder == file ? null : _exclusiveHolder;
    }
}
