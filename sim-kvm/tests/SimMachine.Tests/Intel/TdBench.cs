using System.Buffers.Binary;
using SimMachine.Addressing;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimMachine.Tests.Intel;

/// <summary>A host side for tests of the module alone: builds TDs by SEAMCALLs, as a kernel would, and gives pages from the machine.</summary>
internal sealed class TdBench : IDisposable
{
    public const ulong SharedBit48 = 1UL << 47;

    public TdBench(TdxModuleConfig? config = null)
    {
        Config = config ?? new TdxModuleConfig();
        Machine = new Machine(new MachineConfig { Platform = Platform.IntelTdx, MemoryBytes = 0x4000 * 4096, Tdx = Config }, 7);
        Thread = new MachineThread(Machine);
        Thread.BeginCall(1);
    }

    public TdxModuleConfig Config { get; }

    public Machine Machine { get; }

    public MachineThread Thread { get; }

    public TdxModule Module => Machine.Tdx;

    public Pfn Tdr { get; private set; }

    public List<Pfn> Vcpus { get; } = [];

    public Pfn Page() => Machine.TryAllocateFrame(out Pfn page) ? page : throw new InvalidOperationException("the machine is full");

    public Pfn Page(ReadOnlySpan<byte> content)
    {
        Pfn page = Page();
        Machine.HostWrite(Thread, page, 0, content);
        return page;
    }

    /// <summary>TD_PARAMS that the module takes.</summary>
    public static byte[] Params(ulong attributes = 0, bool gpaw52 = false, ushort maxVcpus = 8, ushort tsc = 80, ulong xfam = 3)
    {
        byte[] bytes = new byte[TdParams.Size];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, attributes);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(TdParams.XfamAt), xfam);
        BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(TdParams.MaxVcpusAt), maxVcpus);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(TdParams.EptpControlsAt), gpaw52 ? 0x26UL : 0x1e);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(TdParams.ConfigFlagsAt), gpaw52 ? 5UL : 4);
        BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(TdParams.TscFrequencyAt), tsc);
        return bytes;
    }

    /// <summary>Creates a TD whose keys are configured and whose control pages are there.</summary>
    public Pfn Create(uint? hkid = null)
    {
        Tdr = Page();
        Expect(Module.MngCreate(Thread, Tdr, hkid ?? Config.FirstGuestHkid));
        for (int package = 0; package < Config.Packages; package++)
        {
            Expect(Module.MngKeyConfig(Thread, Tdr, package));
        }
        for (int i = 0; i < Config.TdcsPages; i++)
        {
            Expect(Module.MngAddcx(Thread, Page(), Tdr));
        }
        return Tdr;
    }

    /// <summary>A TD that is being built, with one vCPU unless it says otherwise.</summary>
    public TdBench Initialize(byte[]? tdParams = null, int vcpus = 1)
    {
        Create();
        Expect(Module.MngInit(Thread, Tdr, tdParams ?? Params(), out _));
        for (int i = 0; i < vcpus; i++)
        {
            Vcpus.Add(AddVcpu());
        }
        return this;
    }

    public Pfn AddVcpu()
    {
        Pfn tdvpr = Page();
        Expect(Module.VpCreate(Thread, tdvpr, Tdr));
        for (int i = 1; i < Config.TdvpsPages; i++)
        {
            Expect(Module.VpAddcx(Thread, Page(), tdvpr));
        }
        Expect(Module.VpInit(Thread, tdvpr, 0, 0));
        return tdvpr;
    }

    public TdBench Run()
    {
        Expect(Module.MrFinalize(Thread, Tdr));
        return this;
    }

    /// <summary>Tables down to a level; those that are there stay.</summary>
    public void AddTables(ulong gpa, int top = 3, int downTo = 1)
    {
        for (int level = top; level >= downTo; level--)
        {
            ulong aligned = gpa & ~(Sept.BytesOf(level) - 1);
            Pfn page = Page();
            TdxStatus status = Module.MemSeptAdd(Thread, Tdr, TdxModule.Mapping(aligned, level), page, out SeptInfo info);
            if (status.Class() == TdxStatus.EPT_ENTRY_STATE_INCORRECT && info.State == SeptState.NL_MAPPED)
            {
                Machine.FreeFrame(Thread, page);
                continue;
            }
            Expect(status);
        }
    }

    public Pfn Add(ulong gpa, ReadOnlySpan<byte> content)
    {
        Pfn target = Page();
        Expect(Module.MemPageAdd(Thread, Tdr, gpa, target, Page(content), out _));
        return target;
    }

    public Pfn Aug(ulong gpa)
    {
        Pfn page = Page();
        Expect(Module.MemPageAug(Thread, Tdr, gpa, page, out _));
        return page;
    }

    /// <summary>A TDCALL of a vCPU that is inside.</summary>
    public TdGuestOutcome Tdcall(TdcallLeaf leaf, ref TdcallRegisters registers, int vcpu = 0)
    {
        registers.Rax = (ulong)leaf;
        return Module.Tdcall(Thread, Vcpus[vcpu], ref registers, out _);
    }

    public ulong Accept(ulong gpa, int level = 0)
    {
        var registers = new TdcallRegisters { Rcx = TdxModule.Mapping(gpa, level) };
        TdGuestOutcome outcome = Tdcall(TdcallLeaf.TDG_MEM_PAGE_ACCEPT, ref registers);
        return outcome == TdGuestOutcome.Completed ? registers.Rax : throw new InvalidOperationException($"ACCEPT ended in {outcome}");
    }

    /// <summary>BLOCK, TRACK twice over no vCPU inside, REMOVE.</summary>
    public void Drop(ulong gpa)
    {
        Expect(Module.MemRangeBlock(Thread, Tdr, gpa, out _));
        Expect(Module.MemTrack(Thread, Tdr));
        Expect(Module.MemPageRemove(Thread, Tdr, gpa, out _));
    }

    public SeptState StateOf(ulong gpa) => Module.Look(Tdr, gpa) is { Level: 0 } page ? page.State : SeptState.FREE;

    public static void Expect(TdxStatus status)
    {
        if (status != TdxStatus.SUCCESS)
        {
            throw new InvalidOperationException($"a SEAMCALL that was to succeed answered {status.Name()}");
        }
    }

    public void Dispose()
    {
        Machine.CheckInvariants();
        Machine.Dispose();
    }
}
