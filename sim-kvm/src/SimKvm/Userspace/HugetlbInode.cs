using SimMachine.Addressing;

namespace SimKvm.Userspace;

/// <summary>The inode of a file on hugetlbfs: its size, its huge pages, and the ones that are promised to it (fs/hugetlbfs, resv_map).</summary>
internal sealed class HugetlbInode
{
    private readonly SortedDictionary<ulong, Pfn> _pages = [];

    // Huge pages that a mapping reserved and nobody touched yet.
    private readonly SortedSet<ulong> _reserved = [];

    public HugetlbInode(HugetlbPool pool, ulong size, MemfdSeals seals)
    {
        Pool = pool;
        Size = size;
        MemfdSeals = seals;
        Vfs = new VfsInode(evict: current => Remove(current, 0, ulong.MaxValue));
    }

    public HugetlbPool Pool { get; }

    /// <summary>Bytes, a multiple of the huge page.</summary>
    public ulong Size { get; set; }

    public MemfdSeals MemfdSeals { get; }

    public VfsInode Vfs { get; }

    /// <summary>Huge pages present, by index.</summary>
    public IReadOnlyDictionary<ulong, Pfn> Pages => _pages;

    public HashSet<ulong> Poisoned { get; } = [];

    /// <summary>hugetlb_reserve_pages: promises what is neither there nor promised in [first, last). All or nothing.</summary>
    public bool TryReserve(ulong first, ulong last)
    {
        ulong there = (ulong)_pages.Keys.Count(index => index >= first && index < last) + (ulong)_reserved.GetViewBetween(first, last - 1).Count;
        if (!Pool.TryReserve(last - first - there))
        {
            return false;
        }
        for (ulong index = first; index < last; index++)
        {
            if (!_pages.ContainsKey(index))
            {
                _reserved.Add(index);
            }
        }
        return true;
    }

    /// <summary>The huge page at an index, made if it is not there. False when the pool has none for it.</summary>
    public bool TryGetOrCreate(ulong index, out Pfn first)
    {
        if (_pages.TryGetValue(index, out first))
        {
            return true;
        }
        if (!Pool.TryTake(_reserved.Contains(index), out first))
        {
            return false;
        }
        _reserved.Remove(index);
        _pages.Add(index, first);
        return true;
    }

    /// <summary>remove_inode_hugepages: pages and promises in [first, last) go back.</summary>
    public void Remove(KTask current, ulong first, ulong last)
    {
        foreach (ulong index in _pages.Keys.Where(index => index >= first && index < last).ToArray())
        {
            Pool.Give(current, _pages[index]);
            _pages.Remove(index);
            Poisoned.Remove(index);
        }
        Pool.Unreserve((ulong)_reserved.RemoveWhere(index => index >= first && index < last));
    }
}
