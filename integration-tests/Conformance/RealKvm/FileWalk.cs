namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>
/// A random walk through calls on files and on mappings of them: memfds on tmpfs and on hugetlbfs (of which neither kernel has pages), pipes, guest_memfd. All of it follows
/// from its seed, and it asks a real kernel for at most 64 pages at a time.
/// </summary>
internal sealed class FileWalk
{
    private const ulong Page = 4096;
    private const int MaxPages = 8;
    private const int NonBlocking = 0x800;

    // Private memory that nothing else is done to. Writes come from there: a file that is written from a mapping of itself grows under its own source, and since 6.16 one
    // that is written from nowhere grows all the same.
    private const int Buffer = 1;
    private const int BufferPages = 16;

    private readonly Random _random;
    private readonly List<Step> _steps = [];
    private readonly List<int> _files = [];
    private readonly List<int> _pipes = [];
    private readonly List<(int A, ulong Pages)> _areas = [];
    private readonly List<(int A, ulong Pages)> _anonymous = [];
    private int _names;

    private FileWalk(int seed) => _random = new Random(seed);

    private bool Rarely => _random.Next(12) == 0;

    public static IReadOnlyList<Step> Generate(int seed, int length)
    {
        var walk = new FileWalk(seed);
        walk._steps.Add(new Mmap(BufferPages * Page, 3, 0x22, 0, 0, ++walk._names));
        walk.AddMemfd();
        walk._steps.Add(new Ftruncate(walk._names, 4 * (long)Page));
        walk.AddMmap();
        while (walk._steps.Count < length)
        {
            walk.AddStep();
        }
        return walk._steps;
    }

    private void AddStep()
    {
        switch (_random.Next(100))
        {
            case < 4: AddMemfd(); break;
            case < 6: AddPipe(); break;
            case < 7: AddGuestMemfd(); break;
            case < 14: AddMmap(); break;
            case < 20: _steps.Add(new Ftruncate(AnyFile(), Rarely ? Pick<long>(-1, 1, 4097, long.MaxValue, long.MinValue, 2 << 20) : Pages() * (long)Page)); break;
            case < 30: AddFallocate(); break;
            case < 45: AddTransfer(); break;
            case < 53: _steps.Add(new Lseek(AnyFile(), Offset(), Rarely ? Pick<uint>(5, uint.MaxValue) : (uint)_random.Next(5))); break;
            case < 58: AddFcntl(); break;
            case < 61: _steps.Add(Named(to => new Reopen(AnyFile(), Pick(0, 1, 2, 2, 0x402, 0x20_0000, 0x1_0000, 0x4000, 0xc0) | NonBlocking, to))); break;
            case < 63: _steps.Add(Named(to => new Dup(AnyFile(), to))); break;
            case < 65: _steps.Add(new Flock(AnyFile(), Pick<uint>(5, 6, 8, 4, 16) | 4)); break;
            case < 66: _steps.Add(new Fadvise(AnyFile(), Pick<long>(0, -1, 4096), Pick<uint>(0, 4, 5, 6))); break;
            case < 67: _steps.Add(new Fsync(AnyFile())); break;
            case < 71: AddSplice(); break;
            case < 84: AddAccess(); break;
            case < 93: AddOnRange(); break;
            case < 95: AddMremap(); break;
            case < 96: _steps.Add(new Munmap(AnyArea().A, Pick(0UL, 1UL), Pick<ulong?>(null, null, 0))); break;
            case < 98: _steps.Add(new Fstat(AnyFile(), true)); break;
            default: _steps.Add(new CloseFd(AnyFile())); break;
        }
    }

    private void AddMemfd() => _steps.Add(Named(to => new Memfd(Rarely ? Pick<uint>(0x8000_0000, 0x20, 6 | (21u << 26), 4, 5 | (30u << 26), 2 | (21u << 26)) : Pick<uint>(0, 1, 2, 2, 2, 6), to)));

    private void AddPipe()
    {
        _steps.Add(new Pipe(Rarely ? Pick<uint>(1, 0x4000_0000) : 0x800, ++_names, ++_names));
        _pipes.AddRange([_names - 1, _names]);
        _files.AddRange([_names - 1, _names]);
    }

    private void AddGuestMemfd()
    {
        _steps.Add(new OpenKvm(++_names));
        _steps.Add(new PlainIoctl(_names, Numbers.CreateVm, 0, ++_names));
        int vm = _names;
        _steps.Add(Named(to => new CreateGuestMemfd(vm, (ulong)Pages() * Page, (ulong)_random.Next(4), 0, to)));
        _files.Add(vm);
    }

    private void AddMmap()
    {
        ulong pages = (ulong)Pages();
        uint flags = Rarely ? Pick<uint>(0, 3, 0x40001, 0x1_0001, 0x4001, 0x8001) : Pick<uint>(1, 1, 2, 0x21, 0x22);
        uint prot = Rarely ? Pick<uint>(0, 4, 7, 8) : Pick<uint>(3, 3, 1);
        _steps.Add(new Mmap(Rarely ? Pick<ulong>(0, 1, 4097, ulong.MaxValue) : pages * Page, prot, flags, (flags & 0x20) != 0 ? 0 : AnyFile(), Rarely ? Pick<ulong>(1, 64 * Page, 1UL << 62) : (ulong)_random.Next(3) * Page, ++_names));
        _areas.Add((_names, pages));
        if ((flags & 0x20) != 0)
        {
            _anonymous.Add((_names, pages));
        }
    }

    private void AddFallocate()
    {
        int mode = Rarely ? Pick(2, 4, 8, 9, 0x10, 0x11, 0x20, 0x40, 0x41, 0x80, 0x100, -1) : Pick(0, 1, 3, 3);
        long offset = Rarely ? Pick<long>(-1, long.MaxValue - 4095, long.MinValue) : Offset(within: true);
        long length = Rarely ? Pick<long>(-1, 0, 1) : _random.Next(1, 3 * (int)Page);
        _steps.Add(new Fallocate(AnyFile(), mode, offset, length));
    }

    private void AddTransfer()
    {
        bool write = _random.Next(2) == 0;
        (int a, ulong pages) = write ? (Buffer, BufferPages) : _anonymous.Count == 0 ? (0, 1) : _anonymous[^Math.Min(_anonymous.Count, _random.Next(1, 4))];
        ulong skip = (ulong)_random.Next((int)(pages * Page));
        ulong count = Rarely ? 0 : Math.Min((ulong)_random.Next(1, 3 * (int)Page), (pages * Page) - skip);
        long? position = _random.Next(2) == 0 ? null : Rarely ? Pick<long>(-1, long.MaxValue, long.MaxValue - 4096) : Offset(within: true);
        ulong? raw = null;
        if (!write && _random.Next(10) == 0)
        {
            (raw, count) = Pick<(ulong, ulong)>(
                (0UL, 1UL), (1UL << 47, 1UL), (0x7fff_ffff_f000UL, 0UL), (0x7fff_ffff_f000UL, 1UL), (ulong.MaxValue - 4095, 8UL),
                (0UL, 1UL << 63), (4096UL, ulong.MaxValue), (1UL << 63, 0UL), (0UL, 0UL));
        }
        _steps.Add(new Transfer(write, AnyFile(), a, skip, count, position, raw));
    }

    private void AddFcntl()
    {
        (uint command, ulong argument) = _random.Next(10) switch
        {
            0 => (1u, 0UL),
            1 => (2u, Pick<ulong>(0, 1)),
            2 or 3 => (3u, 0UL),
            4 => (4u, Pick<ulong>(0x800, 0x4800, 0xc00, 0x402, 0x40800)),
            5 => (1034u, 0UL),
            6 => (Pick<uint>(77, 5000), 0UL),
            _ => (1033u, Rarely ? Pick<ulong>(0x40, 0x80, uint.MaxValue) : 1UL << _random.Next(6)),
        };
        // A pipe that waits would wait for ever.
        bool mayBlock = command == 4 && (argument & 0x800) == 0;
        _steps.Add(new Fcntl(mayBlock ? AnyOf(_files.Except(_pipes)) : AnyFile(), command, argument));
    }

    private void AddSplice()
    {
        int pipe = _pipes.Count == 0 ? AnyFile() : AnyOf(_pipes), file = AnyFile();
        (int from, int to) = _random.Next(2) == 0 ? (pipe, file) : (file, pipe);
        ulong count = (ulong)_random.Next(0, 3 * (int)Page);
        _steps.Add(_random.Next(3) == 0
            ? new Sendfile(to, from, _random.Next(2) == 0 ? null : Offset(within: true), count)
            : new Splice(from, _random.Next(3) == 0 ? Offset(within: true) : null, to, _random.Next(5) == 0 ? Offset(within: true) : null, count));
    }

    private void AddAccess()
    {
        (int a, ulong pages) = AnyArea();
        ulong skip = ((ulong)_random.Next((int)pages) * Page) + (ulong)_random.Next(4000);
        byte[] bytes = new byte[_random.Next(1, 32)];
        _random.NextBytes(bytes);
        _steps.Add(_random.Next(2) == 0 ? new Load(a, skip, bytes.Length) : new Store(a, skip, bytes));
    }

    private void AddOnRange()
    {
        (int a, ulong pages) = AnyArea();
        ulong first = (ulong)_random.Next((int)pages);
        ulong skip = (first * Page) + (Rarely ? 1UL : 0);
        ulong length = Rarely ? Pick<ulong>(0, 1, ulong.MaxValue - 4095, ulong.MaxValue) : (ulong)_random.Next(1, (int)(pages - first) + 1) * Page;
        _steps.Add(_random.Next(5) switch
        {
            0 => new OnRange(RangeCall.Mprotect, a, skip, length, Rarely ? Pick<uint>(8, 0x100, 7, 4) : Pick<uint>(0, 1, 3, 3)),
            // MADV_DONTNEED, MADV_REMOVE, MADV_POPULATE_*, MADV_FREE, and some that only advise.
            1 or 2 => new OnRange(RangeCall.Madvise, a, skip, length, Rarely ? Pick<uint>(5, 7, 11, 13, 24, 26, 99) : Pick<uint>(0, 3, 4, 4, 9, 9, 10, 14, 15, 22, 23)),
            3 => new OnRange(RangeCall.Msync, a, skip, length, Rarely ? Pick<uint>(5, 8, 0) : Pick<uint>(1, 2, 4)),
            _ => new OnRange(Pick(RangeCall.Mlock, RangeCall.Munlock, RangeCall.Munlock), a, skip, length, 0),
        });
    }

    private void AddMremap()
    {
        (int a, ulong pages) = AnyArea();
        ulong target = (ulong)Pages();
        // Whether a mapping can grow where it is depends on its neighbours, which are this process's.
        uint flags = Rarely ? Pick<uint>(2, 8, 4) : target > pages ? 1u : Pick<uint>(0, 1);
        _steps.Add(new Mremap(a, pages * Page, Rarely ? 0 : target * Page, flags));
    }

    private Step Named(Func<int, Step> step)
    {
        Step named = step(++_names);
        _files.Add(_names);
        return named;
    }

    private int Pages() => _random.Next(1, MaxPages + 1);

    private long Offset(bool within = false) => !within && Rarely
        ? Pick<long>(-1, -4096, long.MaxValue, long.MinValue)
        : (_random.Next(MaxPages + 1) * (long)Page) + Pick<long>(0, 0, 1, 4095);

    private int AnyFile() => Rarely ? 0 : _files[^Math.Min(_files.Count, _random.Next(1, 7))];

    private int AnyOf(IEnumerable<int> files)
    {
        int[] all = [.. files, 0];
        return all[_random.Next(all.Length)];
    }

    private (int A, ulong Pages) AnyArea() => _areas[^Math.Min(_areas.Count, _random.Next(1, 5))];

    private T Pick<T>(params ReadOnlySpan<T> choices) => choices[_random.Next(choices.Length)];
}
