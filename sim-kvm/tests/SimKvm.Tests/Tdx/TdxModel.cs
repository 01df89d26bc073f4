using System.Security.Cryptography;
using SimKvm.Profiles;

namespace SimKvm.Tests.Tdx;

/// <summary>What a call is to answer: the errno, and the numbers that come back with it.</summary>
/// <param name="HwError">kvm_tdx_cmd.hw_error of commands on the VM fd.</param>
/// <param name="Left">Pages of a region that are left, where it is written back.</param>
/// <param name="Rax">After a guest's ACCEPT.</param>
internal readonly record struct TdxAnswer(Errno Errno, ulong HwError = 0, ulong? Left = null, ulong? Rax = null)
{
    public static implicit operator TdxAnswer(Errno errno) => new(errno);
}

/// <summary>
/// The state machine of a TD as tdx.md tells it (1.3 and 2), without locks, tables, SEAMCALLs or frames: flags for each page, flags for each vCPU, and three ages of kernels. What
/// it answers is written down from the page, not from the simulator.
/// </summary>
internal sealed class TdxModel(KernelProfile profile)
{
    public const int PagesWithSlot = 8;
    private const int Pages = 10;
    private const int PresentCpus = 8;
    private const ulong NoVcpus = 0xc000_0609_0000_0000;
    private const ulong AlreadyAccepted = 0x0000_0b0a_0000_0000;
    private const ulong Entries = 12;

    private readonly bool _guards = profile.TdxGuardsVmState;
    private readonly bool _pinsFirst = profile.Populate == PopulateDesign.PerPage;
    private readonly Page[] _pages = new Page[Pages];
    private readonly SortedDictionary<int, Vcpu> _vcpus = [];
    private readonly List<Vcpu> _order = [];
    private readonly List<byte> _measured = [];
    private Age _age;
    private bool _dead, _irqchip, _veDisabled;
    private ulong _sharedBit;

    private enum Age
    {
        Uninitialized,
        Initialized,
        Runnable,
    }

    public int VcpuCount => _order.Count;

    public bool Dead => _dead;

    public bool IsInitialized => _age != Age.Uninitialized;

    /// <summary>MRTD of what was added so far.</summary>
    public string Mrtd => Convert.ToHexStringLower(SHA384.HashData([.. _measured]));

    /// <summary>What the call answers; the state moves on.</summary>
    /// <param name="content">The page that a region's page takes its content from, by its place in the region.</param>
    public TdxAnswer Do(TdxOp op, Func<int, byte[]> content)
    {
        if (op.Do == TdxDo.PunchHole)
        {
            _pages[op.Page] = _pages[op.Page] with { InSept = false, Accepted = false, Uptodate = false };
            return Errno.OK;
        }
        if (_dead)
        {
            return Errno.EIO;
        }
        return op.Do switch
        {
            TdxDo.SplitIrqchip => SplitIrqchip(),
            TdxDo.Capabilities => op.HwError != 0 || op.Flags != 0 ? Errno.EINVAL : op.BadData ? Errno.EFAULT : op.Count < Entries ? Errno.E2BIG : Errno.OK,
            TdxDo.InitVm => InitVm(op),
            TdxDo.UnknownOnVm => Errno.EINVAL,
            TdxDo.CreateVcpu => CreateVcpu(op),
            TdxDo.SetAttribute => SetAttribute(op),
            TdxDo.FinalizeVm => FinalizeVm(op),
            _ => OnVcpu(op, _order[op.Vcpu], content),
        };
    }

    private TdxAnswer OnVcpu(TdxOp op, Vcpu vcpu, Func<int, byte[]> content)
    {
        switch (op.Do)
        {
            case TdxDo.SetCpuid:
                vcpu.X2apic = op.IsOn;
                return Errno.OK;
            case TdxDo.PreFault:
                return PreFault(op);
            case TdxDo.GuestAccept or TdxDo.GuestRead:
                return _age != Age.Runnable || !vcpu.Initialized ? Errno.EINVAL : Guest(op);
            case TdxDo.BadPointerOnVcpu:
                return _age == Age.Runnable && !_guards ? Errno.EINVAL : Errno.EFAULT;
        }
        if (_age == Age.Runnable || op.HwError != 0)
        {
            return Errno.EINVAL;
        }
        return op.Do switch
        {
            TdxDo.InitVcpu => InitVcpu(op, vcpu),
            TdxDo.InitMemRegion => InitMemRegion(op, vcpu, content),
            TdxDo.GetCpuid => op.BadData ? Errno.EFAULT : op.Count < Entries ? Errno.E2BIG : Errno.OK,
            _ => Errno.EINVAL,
        };
    }

    private TdxAnswer SplitIrqchip()
    {
        if (_irqchip)
        {
            return Errno.EEXIST;
        }
        if (_order.Count > 0)
        {
            return Errno.EINVAL;
        }
        _irqchip = true;
        return Errno.OK;
    }

    private TdxAnswer InitVm(TdxOp op)
    {
        if (op.HwError != 0)
        {
            return new(Errno.EINVAL, op.HwError);
        }
        if (_age != Age.Uninitialized || op.Flags != 0)
        {
            return Errno.EINVAL;
        }
        if (op.BadData)
        {
            return Errno.EFAULT;
        }
        bool attributes = (op.Attributes & ~(1UL << 28)) == 0, xfam = (op.Xfam & ~0x6_02e7UL) == 0, cpuid = op.Cpuid is TdxCpuidList.Width48 or TdxCpuidList.Width52;
        if (op.Padding != 0 || !attributes || !xfam || !cpuid)
        {
            return Errno.EINVAL;
        }
        _age = Age.Initialized;
        _veDisabled = op.Attributes != 0;
        _sharedBit = op.Cpuid == TdxCpuidList.Width52 ? 1UL << 51 : 1UL << 47;
        return Errno.OK;
    }

    private TdxAnswer CreateVcpu(TdxOp op)
    {
        if (op.Vcpu >= 4096 || _order.Count >= PresentCpus)
        {
            return Errno.EINVAL;
        }
        if (_age != Age.Initialized)
        {
            return Errno.EIO;
        }
        if (!_irqchip)
        {
            return Errno.EINVAL;
        }
        if (_vcpus.ContainsKey(op.Vcpu))
        {
            return Errno.EEXIST;
        }
        _order.Add(_vcpus[op.Vcpu] = new Vcpu());
        return Errno.OK;
    }

    private static TdxAnswer InitVcpu(TdxOp op, Vcpu vcpu)
    {
        if (op.Flags != 0 || vcpu.Initialized || !vcpu.X2apic)
        {
            return Errno.EINVAL;
        }
        vcpu.Initialized = true;
        return Errno.OK;
    }

    private TdxAnswer InitMemRegion(TdxOp op, Vcpu vcpu, Func<int, byte[]> content)
    {
        if (!vcpu.Initialized || (op.Flags & ~1u) != 0)
        {
            return Errno.EINVAL;
        }
        if (op.BadData)
        {
            return Errno.EFAULT;
        }
        bool gpaIsShared = (op.GpaBits & _sharedBit) != 0, aligned = op.GpaBits != 0x800 && op.Source != TdxSource.Unaligned;
        if (op.Count == 0 || gpaIsShared || !aligned)
        {
            return Errno.EINVAL;
        }
        for (int i = 0; i < (int)op.Count; i++)
        {
            // With the wide layout bit 47 is an address bit like others, and nothing is there.
            int page = op.GpaBits != 0 ? Pages : op.Page + i;
            Errno errno = AddPage(op, page, i);
            if (errno != Errno.OK)
            {
                return new(errno, Left: op.Count - (ulong)i);
            }
            Measure("MEM.PAGE.ADD", TdxRun.GpaOf(page));
            byte[] bytes = content(i);
            for (int chunk = 0; (op.Flags & 1) != 0 && chunk < bytes.Length; chunk += 256)
            {
                Measure("MR.EXTEND", TdxRun.GpaOf(page) + (ulong)chunk);
                _measured.AddRange(bytes.AsSpan(chunk, 256));
            }
        }
        return new(Errno.OK, Left: 0);
    }

    private Errno AddPage(TdxOp op, int page, int place)
    {
        if (page >= PagesWithSlot)
        {
            return Errno.EINVAL;
        }
        bool isNull = op.Source == TdxSource.Null && place == 0;
        bool readable = op.Source == TdxSource.Mapped || (op.Source == TdxSource.MappedThenNot && place == 0);
        ref Page state = ref _pages[page];
        if (_pinsFirst)
        {
            if (!readable && !isNull)
            {
                return Errno.EFAULT;
            }
            if (!state.Private)
            {
                return Errno.EINVAL;
            }
            if (isNull)
            {
                return Errno.EOPNOTSUPP;
            }
            if (state.InSept)
            {
                return Errno.EIO;
            }
        }
        else
        {
            if (state.Uptodate)
            {
                return Errno.EEXIST;
            }
            if (!state.Private)
            {
                return Errno.EINVAL;
            }
            if (!readable)
            {
                return Errno.EFAULT;
            }
        }
        state = state with { InSept = true, Accepted = true, Uptodate = true };
        return Errno.OK;
    }

    private TdxAnswer FinalizeVm(TdxOp op)
    {
        if (op.HwError != 0)
        {
            return new(Errno.EINVAL, op.HwError);
        }
        if (_age != Age.Initialized)
        {
            return Errno.EINVAL;
        }
        if (!_order.Exists(vcpu => vcpu.Initialized))
        {
            _dead = true;
            return new(Errno.EIO, NoVcpus);
        }
        _age = Age.Runnable;
        return Errno.OK;
    }

    private TdxAnswer SetAttribute(TdxOp op)
    {
        ref Page page = ref _pages[op.Page];
        page = op.IsOn ? page with { Private = true } : page with { Private = false, InSept = false, Accepted = false };
        return Errno.OK;
    }

    private TdxAnswer PreFault(TdxOp op)
    {
        if (_age != Age.Runnable)
        {
            return Errno.EOPNOTSUPP;
        }
        ref Page page = ref _pages[op.Page];
        if (op.Page >= PagesWithSlot)
        {
            return page.Private ? Errno.EFAULT : Errno.ENOENT;
        }
        page = page with { InSept = page.InSept || page.Private };
        return Errno.OK;
    }

    // A private access: what is not mapped is faulted in, and waits to be accepted.
    private TdxAnswer Guest(TdxOp op)
    {
        ref Page page = ref _pages[op.Page];
        if (!page.InSept && (!page.Private || op.Page >= PagesWithSlot))
        {
            return Errno.EFAULT;
        }
        bool was = page.Accepted;
        page = page with { InSept = true };
        if (op.Do == TdxDo.GuestAccept)
        {
            page = page with { Accepted = true };
            return new(Errno.OK, Rax: was ? AlreadyAccepted : 0);
        }
        if (!was && _veDisabled)
        {
            _dead = true;
            return Errno.EIO;
        }
        return Errno.OK;
    }

    private void Measure(string name, ulong gpa)
    {
        byte[] record = new byte[128];
        System.Text.Encoding.ASCII.GetBytes(name).CopyTo(record, 0);
        BitConverter.GetBytes(gpa).CopyTo(record, 16);
        _measured.AddRange(record);
    }

    private record struct Page(bool Private, bool InSept, bool Accepted, bool Uptodate);

    private sealed class Vcpu
    {
        public bool X2apic { get; set; }

        public bool Initialized { get; set; }
    }
}
