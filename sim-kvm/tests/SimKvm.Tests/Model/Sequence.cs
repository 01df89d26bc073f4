namespace SimKvm.Tests.Model;

/// <summary>
/// A random sequence of calls: all of it follows from the seed and the generation. Most calls are meant to succeed, in ranges so small that slots, files and attributes
/// meet; now and then an argument is bad, or a variable is one that was closed, so that its number is another's by now.
/// </summary>
internal sealed class Sequence
{
    /// <summary>Guest pages that sequences play with; a few extremes lie outside.</summary>
    public const ulong Gfns = 40;

    private const int Processes = 3;

    private readonly Behaviours _behaviours;
    private readonly Random _random;
    private readonly List<Call> _calls = [];

    // What the variables are meant to hold; as far as the generator knows.
    private readonly List<Fd> _open = [];
    private readonly List<Fd> _closed = [];
    private readonly List<Area> _areas = [];
    private int _variables;

    private Sequence(int seed, Behaviours behaviours)
    {
        _random = new Random(seed);
        _behaviours = behaviours;
    }

    private enum Is
    {
        Kvm,
        Vm,
        Vcpu,
        Gmem,
    }

    private ulong RandomPage => (ulong)_random.Next((int)Gfns) << 12;

    private bool Rarely => _random.Next(14) == 0;

    private bool CutShort => _random.Next(60) == 0;

    public static IReadOnlyList<Call> Generate(int seed, int length, Behaviours behaviours)
    {
        var sequence = new Sequence(seed, behaviours);
        sequence.StartProcess(0);
        sequence.AddVm();
        sequence.AddGuestMemfd();
        sequence.AddVcpu();
        sequence.StartProcess(1);
        while (sequence._calls.Count < length)
        {
            sequence.AddCall();
        }
        return sequence._calls;
    }

    private void AddCall()
    {
        switch (_random.Next(240))
        {
            case < 56: AddSetRegion(); break;
            case < 86: AddSetAttributes(); break;
            case < 106: AddFallocate(); break;
            case < 118: AddGuestMemfd(); break;
            case < 122: AddVm(); break;
            case < 129: AddClose(); break;
            case < 137: AddMmap(); break;
            case < 142: AddMunmap(); break;
            case < 155: AddAccess(write: true); break;
            case < 165: AddAccess(write: false); break;
            case < 188: AddPopulate(); break;
            case < 191: AddVcpu(); break;
            case < 216: AddGuestTouch(); break;
            case < 228: AddScene(); break;
            case < 231: AddPass(); break;
            case < 233: _calls.Add(new Stat(AnyProcess(), Any().F)); break;
            case < 237: _calls.Add(new UnknownIoctl(AnyProcess(), Any().F, Pick<uint>(0xAE42, 0x4020AED3, 0x1234, 0))); break;
            default: AddExit(); break;
        }
    }

    private void StartProcess(int p)
    {
        _calls.Add(new StartProcess(p));
        _calls.Add(new OpenKvm(p, Remember(new Fd(Is.Kvm, p)).F));
    }

    private void AddExit()
    {
        int p = AnyProcess();
        if (_random.Next(3) == 0)
        {
            _calls.Add(new ExitProcess(p));
            _closed.AddRange(_open.Where(fd => fd.P == p));
            _open.RemoveAll(fd => fd.P == p);
            _areas.RemoveAll(area => area.P == p);
        }
        StartProcess(p);
    }

    private void AddVm()
    {
        Fd kvm = Any(Is.Kvm);
        ulong type = Rarely ? Pick<ulong>(2, 3, 5, 32, ulong.MaxValue) : Pick<ulong>(0, 1, 1, 4);
        _calls.Add(new CreateVm(kvm.P, kvm.F, type, Remember(new Fd(Is.Vm, kvm.P) { Type = type }).F));
    }

    private void AddVcpu()
    {
        Fd vm = Any(Is.Vm);
        _calls.Add(new CreateVcpu(vm.P, vm.F, Rarely ? Pick<ulong>(4095, 4096, ulong.MaxValue) : Pick<ulong>(0, 1, 2), Remember(new Fd(Is.Vcpu, vm.P) { Vm = vm.F }).F));
    }

    // A guest with memory under it, and what may happen to that memory from all sides.
    private void AddScene()
    {
        Fd vm = Any(Is.Vm);
        ulong pages = (ulong)_random.Next(1, 6);
        Fd? file = _random.Next(3) == 0 ? _open.FindLast(fd => fd.Kind == Is.Gmem && fd.P == vm.P && fd.Flags == 3) : null;
        _calls.Add(new Mmap(vm.P, pages << 12, 3, file is null ? 0x22u : 1, file?.F ?? 0, 0, ++_variables));
        var area = new Area(vm.P, _variables, pages);
        _areas.Add(area);
        Fd? gmem = _random.Next(2) == 0 ? _open.FindLast(fd => fd.Kind == Is.Gmem && fd.Vm == vm.F) : null;
        uint slot = (uint)_random.Next(8);
        ulong gpa = RandomPage;
        _calls.Add(new SetRegion(vm.P, vm.F, 1, slot, 0, 0, 0, 0, 0, 0, 0, false));
        _calls.Add(new SetRegion(vm.P, vm.F, 2, slot, gmem is null ? Pick<uint>(0, 0, 1, 2) : 4, gpa, pages << 12, area.A, 0, gmem?.F ?? 0, 0, false));
        Fd vcpu = Remember(new Fd(Is.Vcpu, vm.P) { Vm = vm.F });
        _calls.Add(new CreateVcpu(vm.P, vm.F, (ulong)_random.Next(64), vcpu.F));
        for (int i = _random.Next(4, 14); i > 0; i--)
        {
            ulong within = (ulong)_random.Next((int)pages << 12), page = within & ~4095UL;
            _calls.Add(_random.Next(12) switch
            {
                < 3 => new GuestTouch(vcpu.P, vcpu.F, gpa + within, _random.Next(1, 24), null),
                < 6 => new GuestTouch(vcpu.P, vcpu.F, gpa + within, _random.Next(1, 24), (byte)_random.Next(256)),
                6 => new Store(area.P, area.A, within, _random.Next(1, 24), (byte)_random.Next(256)),
                7 => new Load(area.P, area.A, within, _random.Next(1, 24)),
                8 => new Munmap(area.P, area.A, page, 4096),
                9 => new SetAttributes(vm.P, vm.F, gpa + page, 4096, Pick<ulong>(0, 8), 0, false),
                10 => new Fallocate(vm.P, (file ?? gmem)?.F ?? 0, 3, (long)page, 4096),
                _ => new SetRegion(vm.P, vm.F, 1, slot, 0, gpa, _random.Next(2) == 0 ? 0 : pages << 12, area.A, 0, 0, 0, false),
            });
        }
    }

    private void AddGuestTouch()
    {
        Fd vcpu = Any(Is.Vcpu);
        ulong gpa = Rarely ? Pick<ulong>(0x3ff, ulong.MaxValue >> 1, 1UL << 40) : RandomPage + (ulong)_random.Next(4096);
        SetRegion? slot = _calls.OfType<SetRegion>().LastOrDefault(call => call.F == vcpu.Vm && call.Size > 0 && _random.Next(3) > 0);
        if (slot is not null && !Rarely)
        {
            gpa = slot.Gpa + (ulong)_random.Next(3 * 4096);
        }
        _calls.Add(new GuestTouch(vcpu.P, vcpu.F, gpa, _random.Next(1, 24), _random.Next(2) == 0 ? null : (byte)_random.Next(256)));
    }

    private void AddGuestMemfd()
    {
        Fd vm = Any(Is.Vm);
        ulong pages = (ulong)_random.Next(1, 24);
        ulong size = Rarely ? Pick<ulong>(0, 1, 4097, ulong.MaxValue, 1UL << 63, (1UL << 63) - 4096) : pages << 12;
        ulong known = vm.Type is 1 or 4 ? _behaviours.CreateFlagsPrivate : _behaviours.CreateFlags;
        ulong flags = Rarely ? Pick<ulong>(1, 2, 3, 4, ulong.MaxValue) : (ulong)_random.Next(4) & known;
        _calls.Add(new CreateGuestMemfd(vm.P, vm.F, size, flags, CutShort, Remember(new Fd(Is.Gmem, vm.P) { Vm = vm.F, Pages = pages, Flags = flags }).F));
    }

    private void AddSetAttributes()
    {
        Fd vm = Any(Is.Vm);
        ulong address = Rarely ? Pick<ulong>(1, ulong.MaxValue - 4095, 1UL << 52, (1UL << 63) - 4096) : RandomPage;
        ulong size = Rarely ? Pick<ulong>(0, 1, 4097) : (ulong)_random.Next(1, 16) << 12;
        ulong attributes = Rarely ? Pick<ulong>(1, 9, ulong.MaxValue) : Pick<ulong>(0, 8, 8);
        _calls.Add(new SetAttributes(vm.P, vm.F, address, size, attributes, Rarely ? 1u : 0, CutShort));
    }

    private void AddSetRegion()
    {
        Fd vm = Any(Is.Vm);
        Fd gmem = Rarely ? Any() : _open.FindLast(fd => fd.Kind == Is.Gmem && fd.Vm == vm.F && _random.Next(3) > 0) ?? Any(Is.Gmem);
        bool wantsGmem = _random.Next(2) == 0;
        int version = wantsGmem || _random.Next(2) == 0 ? 2 : 1;
        uint slot = (uint)_random.Next(8) | (Rarely ? 1u << 16 : 0) | (_random.Next(40) == 0 ? Pick<uint>(0x7ffc, 0x7fff, 0x20000) : 0);
        uint flags = Rarely ? Pick<uint>(5, 6, 7, 8, uint.MaxValue) : wantsGmem ? 4 : Pick<uint>(0, 0, 1, 2, 3);
        ulong pgoff = (ulong)_random.Next((int)Math.Max(1, gmem.Pages));
        ulong room = wantsGmem && !Rarely ? Math.Clamp(gmem.Pages - pgoff, 1, 8) : 8;
        ulong size = _random.Next(5) == 0 ? 0 : (ulong)_random.Next(1, (int)room + 1) << 12;
        ulong gpa = RandomPage, uaddr = Pick<ulong>(0, 0, 0x10_0000, 0x20_0000), offset = pgoff << 12;
        switch (_random.Next(50))
        {
            case 0: gpa = Pick<ulong>(1, 1UL << 48, (1UL << 48) - 4096, ulong.MaxValue - 4095, (1UL << 52) - 8192); break;
            case 1: size = Pick<ulong>(1, 4097, 1UL << 43, (1UL << 43) - 4096, 1UL << 63); break;
            case 2: uaddr = Pick<ulong>(1, 0x7fff_ffff_f000, 0x7fff_ffff_e000, 1UL << 63, ulong.MaxValue - 4095); break;
            case 3 or 4: offset = Pick<ulong>(1, 0x7fff_ffff_ffff_f000, 0x7fff_ffff_ffff_f000, 1UL << 63, ulong.MaxValue - 4095); break;
        }
        int area = 0;
        if (_random.Next(3) == 0)
        {
            area = AnyArea().A;
            uaddr = (ulong)_random.Next(3) << 12;
        }
        _calls.Add(new SetRegion(vm.P, vm.F, version, slot, flags, gpa, size, area, uaddr, gmem.F, offset, CutShort));
        if (_random.Next(5) == 0)
        {
            // The same slot once more: unchanged, elsewhere, or with other flags.
            _calls.Add(new SetRegion(
                vm.P, vm.F, version, slot, Pick(flags, flags & 3, flags ^ 1, flags ^ 2), _random.Next(2) == 0 ? gpa : RandomPage, size, area, uaddr, gmem.F, offset, false));
        }
    }

    private void AddFallocate()
    {
        Fd gmem = Any(Is.Gmem);
        uint mode = Rarely ? Pick<uint>(0, 2, 4, 8, 9, 0x13, 0x21, 0x41, 0x48, 0x80, 0x81, 0x100) : Pick<uint>(1, 1, 3);
        ulong start = (ulong)_random.Next((int)Math.Max(1, gmem.Pages));
        long offset = Rarely ? Pick<long>(-1, 1, long.MinValue, long.MaxValue - 4095) : (long)start << 12;
        long length = Rarely ? Pick<long>(-1, 0, 1, 4097) : (long)_random.Next(1, (int)Math.Max(1, gmem.Pages - start) + 2) << 12;
        _calls.Add(new Fallocate(gmem.P, gmem.F, mode, offset, length));
    }

    private void AddMmap()
    {
        bool anonymous = _random.Next(3) == 0;
        // Most wanted are files that can be mapped.
        Fd gmem = _open.FindLast(fd => (fd.Flags & 1) != 0 && _random.Next(3) > 0) ?? Any(Is.Gmem);
        uint flags = Rarely ? Pick<uint>(0, 2, 0x20) : anonymous ? 0x22u : 1;
        ulong pages = (ulong)_random.Next(1, 12);
        ulong length = Rarely ? Pick<ulong>(0, 1, 4097, ulong.MaxValue, 1UL << 47) : pages << 12;
        _calls.Add(new Mmap(gmem.P, length, Rarely ? Pick<uint>(0, 1, 5) : 3, flags, gmem.F, Rarely ? 1 : (ulong)_random.Next(4) << 12, ++_variables));
        _areas.Add(new Area(gmem.P, _variables, pages));
    }

    private void AddMunmap()
    {
        Area area = AnyArea();
        ulong skip = Rarely ? 1 : (ulong)_random.Next((int)area.Pages) << 12;
        _calls.Add(new Munmap(area.P, area.A, skip, Rarely ? Pick<ulong>(0, 1) : (ulong)_random.Next(1, 6) << 12));
    }

    private void AddAccess(bool write)
    {
        Area area = AnyArea();
        ulong skip = (ulong)_random.Next((int)area.Pages << 12);
        int length = _random.Next(3) == 0 ? _random.Next(9000) : _random.Next(1, 20);
        _calls.Add(write ? new Store(area.P, area.A, skip, length, (byte)_random.Next(256)) : new Load(area.P, area.A, skip, length));
    }

    private void AddPopulate()
    {
        Fd vm = Any(Is.Vm);
        Area source = AnyArea();
        // Where a slot was put, if one was.
        SetRegion? slot = _calls.OfType<SetRegion>().LastOrDefault(call => call.F == vm.F && call is { Flags: 4, Size: > 0 } && _random.Next(3) > 0);
        ulong gfn = slot is null ? (ulong)_random.Next((int)Gfns) : (slot.Gpa >> 12) + (ulong)_random.Next(3);
        ulong skip = Rarely ? 1 : (ulong)_random.Next((int)source.Pages) << 12;
        long npages = Rarely ? Pick<long>(-1, 0, long.MinValue) : _random.Next(1, 8);
        if (_random.Next(2) == 0)
        {
            _calls.Add(new SetAttributes(vm.P, vm.F, gfn << 12, 6UL << 12, 8, 0, false));
        }
        _calls.Add(new Populate(vm.P, vm.F, gfn, _random.Next(2) == 0 ? 0 : source.A, skip, npages, _random.Next(8)));
    }

    private void AddPass()
    {
        Fd fd = Any();
        int to = AnyProcess();
        _calls.Add(new PassFd(fd.P, fd.F, to, Remember(fd with { P = to }).F));
    }

    private void AddClose()
    {
        Fd fd = _random.Next(2) == 0 ? Any(Is.Gmem) : Any();
        _calls.Add(new CloseFd(fd.P, fd.F));
        if (_open.Remove(fd))
        {
            _closed.Add(fd);
        }
    }

    private Fd Remember(Fd fd)
    {
        fd = fd with { F = ++_variables };
        _open.Add(fd);
        return fd;
    }

    // The newest of a kind are the ones that most likely are what they are meant to be.
    private Fd Any(Is kind)
    {
        Fd[] all = [.. _open.Where(fd => fd.Kind == kind)];
        return all.Length == 0 || Rarely ? Any() : all[^Math.Min(all.Length, _random.Next(1, 4))];
    }

    private Fd Any()
    {
        List<Fd> from = _closed.Count > 0 && _random.Next(4) == 0 ? _closed : _open;
        return from.Count == 0 ? new Fd(Is.Kvm, 0) : from[_random.Next(from.Count)];
    }

    private Area AnyArea() => _areas.Count == 0 ? new Area(0, 0, 1) : _areas[^Math.Min(_areas.Count, _random.Next(1, 5))];

    private int AnyProcess() => _random.Next(Processes);

    private T Pick<T>(params ReadOnlySpan<T> choices) => choices[_random.Next(choices.Length)];

    // A descriptor variable. Of a VM: its type. Of a guest_memfd: its VM's variable, its size and flags.
    private sealed record Fd(Is Kind, int P)
    {
        public int F { get; init; }

        public int Vm { get; init; }

        public ulong Type { get; init; }

        public ulong Pages { get; init; }

        public ulong Flags { get; init; }
    }

    // An address variable, and the pages that are meant to be mapped there.
    private readonly record struct Area(int P, int A, ulong Pages);
}
