using System.Globalization;

namespace SimKvm.Tests.Model;

/// <summary>
/// A random sequence of calls: all of it follows from the seed. Ranges are small, so that slots, files and attributes meet; now and then an argument is bad, and now
/// and then a variable is one that was closed, so that its number is another's by now.
/// </summary>
internal sealed class Sequence
{
    /// <summary>Guest pages that sequences play with; a few extremes lie outside.</summary>
    public const ulong Gfns = 40;

    private const int Processes = 3;

    private readonly Random _random;
    private readonly List<Call> _calls = [];

    // Variables by what they are meant to hold, and the process that has it.
    private readonly List<(int P, int F)> _kvms = [];
    private readonly List<(int P, int F)> _vms = [];
    private readonly List<(int P, int F)> _vcpus = [];
    private readonly List<(int P, int F)> _gmems = [];
    private readonly List<(int P, int A)> _maps = [];
    private int _variables;

    private Sequence(int seed) => _random = new Random(seed);

    public static IReadOnlyList<Call> Generate(int seed, int length)
    {
        var sequence = new Sequence(seed);
        for (int p = 0; p < 2; p++)
        {
            sequence.StartProcess(p);
        }
        sequence.AddVm();
        while (sequence._calls.Count < length)
        {
            sequence.AddCall();
        }
        return sequence._calls;
    }

    private void AddCall()
    {
        switch (_random.Next(100))
        {
            case < 24: AddSetRegion(); break;
            case < 38: AddSetAttributes(); break;
            case < 50: AddFallocate(); break;
            case < 58: AddGuestMemfd(); break;
            case < 62: AddVm(); break;
            case < 66: AddClose(); break;
            case < 70: AddMmap(); break;
            case < 73: AddMunmap(); break;
            case < 79: AddAccess(write: true); break;
            case < 84: AddAccess(write: false); break;
            case < 92: AddPopulate(); break;
            case < 94: AddVcpu(); break;
            case < 96: AddPass(); break;
            case < 97: _calls.Add(new Stat(AnyProcess(), AnyFd().F)); break;
            case < 99: _calls.Add(new UnknownIoctl(AnyProcess(), AnyFd().F, Pick<uint>(0xAE42, 0x4020AED3, 0x1234, 0))); break;
            default: AddExit(); break;
        }
    }

    private void StartProcess(int p)
    {
        _calls.Add(new StartProcess(p));
        _calls.Add(new OpenKvm(p, Remember(_kvms, p)));
    }

    private void AddExit()
    {
        int p = AnyProcess();
        if (_random.Next(3) == 0)
        {
            _calls.Add(new ExitProcess(p));
        }
        StartProcess(p);
    }

    private void AddVm()
    {
        (int p, int f) = Rarely() ? AnyFd() : Any(_kvms);
        _calls.Add(new CreateVm(p, f, Rarely() ? Pick<ulong>(2, 3, 5, 32, ulong.MaxValue) : Pick<ulong>(0, 1, 1, 4), Remember(_vms, p)));
    }

    private void AddVcpu()
    {
        (int p, int f) = Any(_vms);
        _calls.Add(new CreateVcpu(p, f, Pick<ulong>(0, 1, 2, 4095, 4096, ulong.MaxValue), Remember(_vcpus, p)));
    }

    private void AddGuestMemfd()
    {
        (int p, int f) = Rarely() ? AnyFd() : Any(_vms);
        ulong size = Rarely() ? Pick<ulong>(0, 1, 4097, ulong.MaxValue, 1UL << 63, (1UL << 63) - 4096) : (ulong)_random.Next(1, 24) << 12;
        _calls.Add(new CreateGuestMemfd(p, f, size, Rarely() ? Pick<ulong>(4, ulong.MaxValue) : Pick<ulong>(0, 0, 1, 2, 3, 3), CutShort(), Remember(_gmems, p)));
    }

    private void AddSetAttributes()
    {
        (int p, int f) = Rarely() ? AnyFd() : Any(_vms);
        ulong address = Rarely() ? Pick<ulong>(1, ulong.MaxValue - 4095, 1UL << 52, (1UL << 63) - 4096) : Page(Gfns);
        ulong size = Rarely() ? Pick<ulong>(0, 1, 4097) : Page(16) + 4096;
        _calls.Add(new SetAttributes(p, f, address, size, Rarely() ? Pick<ulong>(1, 9, ulong.MaxValue) : Pick<ulong>(0, 8, 8), Rarely() ? 1u : 0, CutShort()));
    }

    private void AddSetRegion()
    {
        (int p, int f) = Rarely() ? AnyFd() : Any(_vms);
        int version = _random.Next(4) == 0 ? 1 : 2;
        uint slot = (uint)_random.Next(5) | (Rarely() ? 1u << 16 : 0) | (_random.Next(30) == 0 ? Pick<uint>(0x7ffc, 0x7fff, 0x20000) : 0);
        uint flags = Rarely() ? Pick<uint>(5, 6, 7, 8, uint.MaxValue) : Pick<uint>(0, 0, 1, 2, 3, 4, 4, 4, 4, 4);
        ulong gpa = _random.Next(20) == 0 ? Pick<ulong>(1, 1UL << 48, (1UL << 48) - 4096, ulong.MaxValue - 4095, (1UL << 52) - 8192) : Page(Gfns);
        ulong size = _random.Next(20) == 0 ? Pick<ulong>(1, 4097, 1UL << 43, (1UL << 43) - 4096, 1UL << 63) : _random.Next(4) == 0 ? 0 : Page(12) + 4096;
        ulong uaddr = _random.Next(20) == 0 ? Pick<ulong>(1, 0x7fff_ffff_f000, 0x7fff_ffff_e000, 1UL << 63, ulong.MaxValue - 4095) : Pick<ulong>(0, 0, 0x10_0000, 0x20_0000);
        ulong offset = _random.Next(16) == 0 ? Pick<ulong>(1, 0x7fff_ffff_ffff_f000, 1UL << 63, ulong.MaxValue - 4095) : Page(12);
        // A process has no use for the other's descriptors, except to get the number wrong.
        (int P, int F)[] own = [.. _gmems.Where(gmem => gmem.P == p)];
        int gmem = own.Length == 0 || Rarely() ? AnyFd().F : own[_random.Next(own.Length)].F;
        _calls.Add(new SetRegion(p, f, version, slot, flags, gpa, size, uaddr, gmem, offset, CutShort()));
    }

    private void AddFallocate()
    {
        (int p, int f) = Rarely() ? AnyFd() : Any(_gmems);
        uint mode = Rarely() ? Pick<uint>(0, 2, 4, 8, 9, 0x100) : Pick<uint>(1, 1, 3);
        long offset = Rarely() ? Pick<long>(-1, 1, long.MinValue, long.MaxValue - 4095) : (long)Page(20);
        long length = Rarely() ? Pick<long>(-1, 0, 1, 4097) : (long)Page(12) + 4096;
        _calls.Add(new Fallocate(p, f, mode, offset, length));
    }

    private void AddMmap()
    {
        bool anonymous = _random.Next(3) == 0;
        (int p, int f) = Rarely() ? AnyFd() : Any(_gmems);
        uint flags = Rarely() ? Pick<uint>(0, 2, 0x20) : anonymous ? 0x22u : 1;
        ulong length = Rarely() ? Pick<ulong>(0, 1, 4097, ulong.MaxValue, 1UL << 47) : Page(10) + 4096;
        _calls.Add(new Mmap(p, length, Rarely() ? Pick<uint>(0, 1, 5) : 3, flags, f, Rarely() ? 1 : Page(6), ++_variables));
        _maps.Add((p, _variables));
    }

    private void AddMunmap()
    {
        (int p, int a) = AnyMap();
        _calls.Add(new Munmap(p, a, Rarely() ? 1 : Page(8), Rarely() ? Pick<ulong>(0, 1) : Page(6) + 4096));
    }

    private void AddAccess(bool write)
    {
        (int p, int a) = AnyMap();
        ulong skip = (ulong)_random.Next(9 << 12);
        int length = _random.Next(3) == 0 ? _random.Next(9000) : _random.Next(1, 20);
        _calls.Add(write ? new Store(p, a, skip, length, (byte)_random.Next(256)) : new Load(p, a, skip, length));
    }

    private void AddPopulate()
    {
        (int p, int f) = Any(_vms);
        int source = _random.Next(2) == 0 ? 0 : AnyMap().A;
        _calls.Add(new Populate(p, f, (ulong)_random.Next((int)Gfns), source, Rarely() ? 1 : Page(6), Rarely() ? Pick<long>(-1, 0, long.MinValue) : _random.Next(1, 8), _random.Next(8)));
    }

    private void AddPass()
    {
        (int p, int f) = AnyFd();
        int to = AnyProcess();
        List<(int P, int F)> kind = new[] { _kvms, _vms, _vcpus, _gmems }.First(list => list.Contains((p, f)));
        _calls.Add(new PassFd(p, f, to, Remember(kind, to)));
    }

    private void AddClose()
    {
        (int p, int f) = _random.Next(2) == 0 ? Any(_gmems) : AnyFd();
        _calls.Add(new CloseFd(p, f));
    }

    private int Remember(List<(int P, int F)> kind, int p)
    {
        kind.Add((p, ++_variables));
        return _variables;
    }

    // The newest are the ones that most likely are still there.
    private (int P, int F) Any(List<(int P, int F)> kind) => kind.Count == 0 ? AnyFd() : kind[^Math.Min(kind.Count, _random.Next(1, 6))];

    private (int P, int F) AnyFd() => new[] { _kvms, _vms, _vcpus, _gmems }.Where(list => list.Count > 0).ElementAt(_random.Next(_vcpus.Count > 0 && _gmems.Count > 0 ? 4 : 1)) is var list
        ? list[_random.Next(list.Count)]
        : default;

    private (int P, int A) AnyMap() => _maps.Count == 0 ? (0, 0) : _maps[^Math.Min(_maps.Count, _random.Next(1, 5))];

    private int AnyProcess() => _random.Next(Processes);

    private ulong Page(ulong below) => (ulong)_random.NextInt64((long)below) << 12;

    private bool Rarely() => _random.Next(12) == 0;

    private bool CutShort() => _random.Next(50) == 0;

    private T Pick<T>(params ReadOnlySpan<T> choices) => choices[_random.Next(choices.Length)];
}

/// <summary>A sequence by its numbers, as a failing test prints it and <c>VMM_MODEL_RUN</c> takes it: profile:seed:length, and the calls that are left after shrinking.</summary>
internal sealed record SequenceId(string Profile, int Seed, int Length, IReadOnlyList<int>? Kept = null)
{
    public IReadOnlyList<Call> Calls
    {
        get
        {
            IReadOnlyList<Call> all = Sequence.Generate(Seed, Length);
            return Kept is null ? all : [.. Kept.Select(index => all[index])];
        }
    }

    public static SequenceId Parse(string text)
    {
        string[] parts = text.Split(':');
        return new SequenceId(
            parts[0], int.Parse(parts[1], CultureInfo.InvariantCulture), int.Parse(parts[2], CultureInfo.InvariantCulture),
            parts.Length > 3 ? [.. parts[3].Split(',').Select(number => int.Parse(number, CultureInfo.InvariantCulture))] : null);
    }

    public override string ToString() => $"{Profile}:{Seed}:{Length}{(Kept is null ? "" : ":" + string.Join(',', Kept))}";
}
