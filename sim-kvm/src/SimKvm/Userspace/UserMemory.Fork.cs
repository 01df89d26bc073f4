using SimMachine.Addressing;

namespace SimKvm.Userspace;

// fork and access to the memory of another process.
public sealed partial class UserMemory
{
    /// <summary>
    /// dup_mmap: what a forked child starts with. Shared mappings are shared. Private pages are copied here and now, where Linux copies at the first store: a
    /// difference that only the count of frames shows.
    /// </summary>
    /// <returns>ENOMEM when the machine has no page left for a copy; then there is no child.</returns>
    internal Errno Fork(KTask current, out UserMemory? child)
    {
        var copy = new UserMemory(_host);
        child = null;
        Errno errno = Errno.OK;
        var copies = new Dictionary<KernelFile, KernelFile>();
        using (MmapLock.Enter(current))
        {
            foreach ((AddressRange range, Vma vma) in Within(0, TaskSize))
            {
                if (vma.DontFork)
                {
                    continue;
                }
                KernelFile? file = vma.File;
                if (file is HugetlbFile { IsPrivate: true } own && !vma.WipeOnFork && !copies.TryGetValue(file, out file))
                {
                    file = own.Copy(current);
                    if (file is null)
                    {
                        errno = current.Fail(Errno.ENOMEM, OutOfMemory, range.Start);
                        break;
                    }
                    copies.Add(own, file);
                }
                file?.Get();
                copy.Insert(range.Start, range.End, vma with { Locked = false, File = file });
                if (!vma.Shared && !vma.WipeOnFork && errno == Errno.OK)
                {
                    // Writable private pages become read-only until one side stores: translations of them are void.
                    using var invalidation = Invalidate(current, range.Start, range.End);
                    errno = CopyPages(current, copy, range);
                }
            }
        }
        foreach (KernelFile file in copies.Values)
        {
            file.Put(current);
        }
        if (errno != Errno.OK)
        {
            copy.Exit(current);
            return errno;
        }
        child = copy;
        return Errno.OK;
    }

    private Errno CopyPages(KTask current, UserMemory copy, AddressRange range)
    {
        foreach (PageRun<ulong> run in _pages.Runs(range.Start >> PageSize.Shift, range.End >> PageSize.Shift))
        {
            if (run.Value is 0 or ZeroPageMapped or PoisonedPage)
            {
                copy._pages.Set(run.Start, run.End, run.Value);
                continue;
            }
            for (ulong page = run.Start; page < run.End; page++)
            {
                if (!_host.Machine.TryAllocateFrame(out Pfn pfn))
                {
                    return current.Fail(Errno.ENOMEM, OutOfMemory, page << PageSize.Shift);
                }
                _host.Machine.HostCopy(current, new Pfn(run.Value), pfn);
                copy._pages.Set(page, pfn.Value);
            }
        }
        return Errno.OK;
    }

    /// <summary>process_vm_readv(2) and process_vm_writev(2): between this process's memory and another's, as far as pages on both sides allow.</summary>
    /// <param name="current">The caller, whose memory this is.</param>
    /// <param name="other">The memory of the other process.</param>
    /// <param name="write">From here to there.</param>
    /// <returns>Bytes moved; EFAULT only where there are none.</returns>
    internal SyscallResult Exchange(KTask current, UserMemory other, IReadOnlyList<IoVec> local, IReadOnlyList<IoVec> remote, bool write)
    {
        long done = 0;
        int causes = current.Causes.Count;
        byte[] page = new byte[PageSize.Bytes];
        var here = new IoVecCursor(local);
        var there = new IoVecCursor(remote);
        while (!here.AtEnd && !there.AtEnd)
        {
            int length = (int)Math.Min(Math.Min(here.Left, there.Left), PageSize.Bytes - (there.Address & PageSize.OffsetMask));
            Span<byte> bytes = page.AsSpan(0, length);
            bool moved = write
                ? TryRead(current, here.Address, bytes) && other.TryWrite(current, there.Address, bytes)
                : other.TryRead(current, there.Address, bytes) && TryWrite(current, here.Address, bytes);
            if (!moved)
            {
                break;
            }
            done += length;
            here.Advance((ulong)length);
            there.Advance((ulong)length);
        }
        if (done == 0 && !here.AtEnd && !there.AtEnd)
        {
            return Errno.EFAULT;
        }
        current.ForgetCausesAfter(causes);
        return SyscallResult.Of(done);
    }

    private struct IoVecCursor
    {
        private readonly IReadOnlyList<IoVec> _vectors;
        private int _index;
        private ulong _offset;

        public IoVecCursor(IReadOnlyList<IoVec> vectors)
        {
            _vectors = vectors;
            Skip();
        }

        public readonly bool AtEnd => _index == _vectors.Count;

        public readonly ulong Address => _vectors[_index].Base + _offset;

        public readonly ulong Left => _vectors[_index].Length - _offset;

        public void Advance(ulong bytes)
        {
            _offset += bytes;
            Skip();
        }

        private void Skip()
        {
            while (_index < _vectors.Count && _vectors[_index].Length == _offset)
            {
                _index++;
                _offset = 0;
            }
        }
    }
}
