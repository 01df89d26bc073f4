namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>
/// A random walk of calls; all of it follows from its seed. It asks a real kernel for nothing that costs memory worth mentioning: slots of at most 1 GiB, at most 64 pages
/// allocated or mapped at a time.
/// </summary>
internal sealed class Walk
{
    private const ulong Page = 4096;

    private readonly Random _random;
    private readonly uint _vmTypes;
    private readonly List<Step> _steps = [];
    private readonly List<int> _kvms = [];
    private readonly List<int> _vms = [];
    private readonly List<int> _vcpus = [];
    private readonly List<(int F, int Vm, ulong Pages, ulong Flags)> _gmems = [];
    private readonly List<(int A, ulong Pages)> _areas = [];
    private int _names;

    private Walk(int seed, uint vmTypes)
    {
        _random = new Random(seed);
        _vmTypes = vmTypes;
    }

    private bool Rarely => _random.Next(12) == 0;

    /// <param name="vmTypes">Mask of types that both kernels have.</param>
    public static IReadOnlyList<Step> Generate(int seed, int length, uint vmTypes)
    {
        var walk = new Walk(seed, vmTypes);
        walk._steps.Add(new OpenKvm(walk.Name(walk._kvms)));
        walk.AddVm();
        walk.AddGuestMemfd();
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
            case < 36: AddSetRegion(); break;
            case < 46: AddGuestMemfd(); break;
            case < 60: AddFallocate(); break;
            case < 64: AddVm(); break;
            case < 70: AddMmap(); break;
            case < 82: AddAccess(); break;
            case < 85: AddMunmap(); break;
            case < 88: AddClose(); break;
            case < 90: _steps.Add(new Fstat(Any(_gmems).F, true)); break;
            case < 91: _steps.Add(new Fstat(AnyFd(), false)); break;
            case < 93: _steps.Add(new PlainIoctl(AnyFd(), Numbers.CheckExtension, Pick(Numbers.Capabilities))); break;
            case < 95: _steps.Add(new PlainIoctl(Any(_vms), Numbers.CreateVcpu, Pick<ulong>(0, 1, 2, 255, 4095, 4096, 1UL << 32, ulong.MaxValue), Name(_vcpus))); break;
            case < 96: _steps.Add(new EnableCap(Any(_vms), Pick<uint>(201, 201, 234, Numbers.CapVmTypes, Numbers.CapMemoryAttributes), Pick<uint>(0, 0, 1), Pick<ulong>(0, 0x1000, 1, 0x2000))); break;
            case < 97 when _vcpus.Count > 0 && _random.Next(2) == 0:
                _steps.Add(new PreFault(Any(_vcpus), Pick<ulong>(0, Page, 1, ulong.MaxValue - 4095), Pick<ulong>(0, Page, 1, 1UL << 63), Pick<ulong>(0, 0, 1), Cut()));
                break;
            case < 97: _steps.Add(new SetAttributes(Any(_vms), Pick<ulong>(0, Page, 1), Pick<ulong>(0, Page, 1), Pick<ulong>(0, 8, 1), Pick<ulong>(0, 0, 1))); break;
            case < 98: _steps.Add(new PlainIoctl(AnyFd(), Pick(Numbers.GetApiVersion, Numbers.GetVcpuMmapSize), Pick<ulong>(0, 1))); break;
            default: _steps.Add(new PlainIoctl(AnyFd(), Pick<uint>(0xAE46, 0x8020AE46, 0x40A8AE49, 0xC040AED3, 0x1234, 0, 0x4020AE50), Pick<ulong>(0, 1))); break;
        }
    }

    private void AddVm()
    {
        int kvm = Any(_kvms);
        if (_random.Next(3) == 0)
        {
            uint type = Pick<uint>(0, 1, 2, 3, 4, 5, 6, 31);
            ulong wide = Pick<ulong>(type, type, 32, 1UL << 32, ulong.MaxValue);
            bool known = wide > 31 || type > 5 || (_vmTypes & (1u << (int)type)) != 0;
            _steps.Add(new PlainIoctl(kvm, Numbers.CreateVm, known ? wide : 0, Name(_vms)));
            return;
        }
        _steps.Add(new PlainIoctl(kvm, Numbers.CreateVm, 0, Name(_vms)));
    }

    private void AddGuestMemfd()
    {
        ulong pages = (ulong)_random.Next(1, 24);
        ulong size = Rarely ? Pick<ulong>(0, 1, 4097, ulong.MaxValue, 1UL << 63, (1UL << 63) - Page, ulong.MaxValue - 4095) : pages * Page;
        ulong flags = Rarely ? Pick<ulong>(4, 7, 1UL << 63, ulong.MaxValue) : (ulong)_random.Next(4);
        int vm = Rarely ? AnyFd() : Any(_vms);
        _steps.Add(new CreateGuestMemfd(vm, size, flags, Cut(), ++_names));
        _gmems.Add((_names, vm, pages, flags));
    }

    private void AddSetRegion()
    {
        int vm = Rarely ? AnyFd() : Any(_vms);
        (int F, int Vm, ulong Pages, ulong Flags) gmem = _gmems.FindLast(each => each.Vm == vm && _random.Next(3) > 0);
        gmem = gmem.F == 0 || Rarely ? Any(_gmems) : gmem;
        bool wantsGmem = _random.Next(2) == 0;
        uint slot = (uint)_random.Next(6) | (_random.Next(40) == 0 ? Pick<uint>(0x10000, 0x20000, 0x7ffb, 0x7ffc, 0x7fff, 0xffff) : 0);
        uint flags = Rarely ? Pick<uint>(5, 6, 7, 8, 1u << 16, 1u << 17, uint.MaxValue) : wantsGmem ? 4 : Pick<uint>(0, 0, 1, 2, 3);
        ulong pgoff = (ulong)_random.Next((int)Math.Max(1, gmem.Pages));
        ulong room = wantsGmem && !Rarely ? Math.Clamp(gmem.Pages - pgoff, 1, 8) : 8;
        ulong size = _random.Next(5) == 0 ? 0 : (ulong)_random.Next(1, (int)room + 1) * Page;
        ulong gpa = (ulong)_random.Next(40) * Page, uaddr = Pick<ulong>(0, 0, 0x10_0000, 0x20_0000), offset = pgoff * Page;
        switch (_random.Next(30))
        {
            case 0: gpa = Pick<ulong>(1, 1UL << 63, ulong.MaxValue - 4095, 1UL << 52, (1UL << 52) - Page, (1UL << 52) - (2 * Page)); break;
            case 1: size = Pick<ulong>(1, 4097, 1UL << 43, 1UL << 63, 1UL << 30, 2UL << 20); break;
            case 2: uaddr = Pick<ulong>(1, 0x7fff_ffff_f000, 0x7fff_ffff_e000, 0x8000_0000_0000, 1UL << 63, ulong.MaxValue - 4095); break;
            case 3 or 4: offset = Pick<ulong>(1, 0x7fff_ffff_ffff_f000, 1UL << 63, ulong.MaxValue - 4095); break;
        }
        _steps.Add(new SetRegion(vm, wantsGmem || _random.Next(2) == 0 ? 2 : 1, slot, flags, gpa, size, uaddr, offset, Rarely ? AnyFd() : gmem.F, Cut()));
        if (_random.Next(4) == 0)
        {
            // The same slot once more: unchanged, elsewhere, or with other flags.
            var last = (SetRegion)_steps[^1];
            _steps.Add(last with { Flags = Pick(flags, flags & 3, flags ^ 1, flags ^ 2), Gpa = _random.Next(2) == 0 ? gpa : (ulong)_random.Next(40) * Page, Cut = 0 });
        }
    }

    private void AddFallocate()
    {
        (int f, _, ulong pages, _) = Any(_gmems);
        int mode = Rarely ? Pick(0, 2, 4, 8, 9, 0x10, 0x11, 0x20, 0x21, 0x40, 0x41, 0x80, 0x81, 0x83, 0x100, 0x101, -1, int.MinValue) : Pick(1, 1, 3);
        ulong start = (ulong)_random.Next((int)Math.Max(1, pages));
        long offset = Rarely ? Pick<long>(-1, 1, long.MinValue, long.MaxValue - 4095, long.MaxValue) : (long)(start * Page);
        // A long hole costs nothing; a long allocation may.
        long length = Rarely
            ? (mode & 2) != 0 ? Pick<long>(-1, 0, 1, 4097, long.MaxValue - 4095, long.MaxValue) : Pick<long>(-1, 0, 1, 4097)
            : (long)_random.Next(1, (int)Math.Max(1, pages - start) + 2) * (long)Page;
        _steps.Add(new Fallocate(Rarely ? AnyFd() : f, mode, offset, length));
    }

    private void AddMmap()
    {
        (int F, int Vm, ulong Pages, ulong Flags) gmem = _gmems.FindLast(each => (each.Flags & 1) != 0 && _random.Next(3) > 0);
        gmem = gmem.F == 0 ? Any(_gmems) : gmem;
        ulong pages = (ulong)_random.Next(1, 32);
        uint flags = Rarely ? Pick<uint>(0, 2, 3, 0x100003, 0x1000003) : 1;
        ulong length = Rarely ? Pick<ulong>(0, 1, 4097, ulong.MaxValue, 1UL << 47) : pages * Page;
        uint prot = Rarely ? Pick<uint>(0, 1, 5, 7) : 3;
        ulong offset = Rarely ? Pick<ulong>(1, 64 * Page, 1UL << 62) : (ulong)_random.Next(4) * Page;
        int f = Rarely ? Pick([.. _kvms, .. _vms, .. _vcpus, .. _vcpus, gmem.F]) : gmem.F;
        _steps.Add(new Mmap(length, prot, flags, f, offset, ++_names));
        _areas.Add((_names, length is 0 or 1 ? 1 : length == 4097 ? 2 : pages));
    }

    private void AddMunmap()
    {
        (int a, _) = AnyArea();
        _steps.Add(_random.Next(3) == 0 ? new Munmap(a, 1, Page) : _random.Next(4) == 0 ? new Munmap(a, 0, 0) : new Munmap(a, 0, null));
    }

    private void AddAccess()
    {
        (int a, ulong pages) = AnyArea();
        int within = _random.Next(4000);
        ulong skip = ((ulong)_random.Next((int)pages) * Page) + (ulong)within;
        byte[] bytes = new byte[_random.Next(1, 32)];
        _random.NextBytes(bytes);
        _steps.Add(_random.Next(2) == 0 ? new Load(a, skip, bytes.Length) : new Store(a, skip, bytes));
    }

    private void AddClose()
    {
        int f = _random.Next(2) == 0 ? Any(_gmems).F : AnyFd();
        _steps.Add(new CloseFd(f));
    }

    private int Name(List<int> kind)
    {
        kind.Add(++_names);
        return _names;
    }

    private int Cut() => _random.Next(50) == 0 ? Pick(1, 8, 31) : 0;

    private T Any<T>(List<T> all) => all[^Math.Min(all.Count, _random.Next(1, 4))];

    private (int A, ulong Pages) AnyArea() => _areas.Count == 0 ? (0, 1) : Any(_areas);

    private int AnyFd()
    {
        int[] all = [.. _kvms, .. _vms, .. _vcpus, .. _gmems.Select(gmem => gmem.F), 0];
        return all[_random.Next(all.Length)];
    }

    private T Pick<T>(params ReadOnlySpan<T> choices) => choices[_random.Next(choices.Length)];
}
