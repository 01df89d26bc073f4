// Raw native pages for the contents of simulated memory, shared by all machines of the process: one mapping for each guest would
// use up the address space, and a recycled page costs a quarter of the first touch of a fresh one. It recycles memory and knows
// nothing of frames: no simulated state lives here, and what a page holds when it is handed out is undefined. Thread safe.

using System.Runtime.InteropServices;
using SimMachine.Addressing;

namespace SimMachine;

internal sealed unsafe partial class PageArena
{
    private const nuint HugePage = 2u << 20;
    private const nuint ChunkBytes = 8 * HugePage;
    private const int MADV_HUGEPAGE = 14;

    private readonly Lock _lock = new();
    private byte* _free; // recycled pages; the first eight bytes of each point to the next
    private byte* _fresh;
    private byte* _freshEnd;
    private long _rented;

    /// <summary>The arena of the process. Its chunks are kept for reuse until the process ends.</summary>
    public static PageArena Shared { get; } = new();

    /// <summary>Pages handed out and not yet returned.</summary>
    public long RentedPages
    {
        get
        {
            lock (_lock)
                return _rented;
        }
    }

    /// <summary>A 4 KiB page with undefined contents: the caller writes or clears all of it before anybody can read it.</summary>
    /// <exception cref="OutOfMemoryException">The system gives no more memory.</exception>
    public byte* Rent()
    {
        lock (_lock)
        {
            var page = _free;
            if (page != null)
            {
                _free = *(byte**)page;
            }
            else
            {
                if (_fresh == _freshEnd)
                    AddChunk();
                page = _fresh;
                _fresh += PageSize.Bytes;
            }
            _rented++;
            return page;
        }
    }

    public void Return(byte* page) => ReturnChain(page, page, 1);

    /// <summary>Takes back many pages under one lock: each points to the next, as <see cref="Link"/> made them.</summary>
    public void ReturnChain(byte* first, byte* last, long count)
    {
        lock (_lock)
        {
            Link(last, _free);
            _free = first;
            _rented -= count;
        }
    }

    public static void Link(byte* page, byte* next) => *(byte**)page = next;

    private void AddChunk()
    {
        _fresh = (byte*)NativeMemory.AlignedAlloc(ChunkBytes, HugePage);
        _freshEnd = _fresh + ChunkBytes;
        // Advice only: without it, or where the system has no huge pages, everything works with more page faults.
        if (OperatingSystem.IsLinux())
            _ = madvise(_fresh, ChunkBytes, MADV_HUGEPAGE);
    }

    [LibraryImport("libc")]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    private static partial int madvise(void* address, nuint length, int advice);
}
