using System.Buffers.Binary;
using SimMachine.Addressing;

namespace SimKvm.Kvm;

/// <summary>KVM_EXIT_* of x86 as far as the simulated vCPU has them.</summary>
public enum KvmExit : uint
{
    KVM_EXIT_UNKNOWN = 0,
    KVM_EXIT_IO = 2,
    KVM_EXIT_HYPERCALL = 3,
    KVM_EXIT_HLT = 5,
    KVM_EXIT_MMIO = 6,
    KVM_EXIT_SHUTDOWN = 8,
    KVM_EXIT_FAIL_ENTRY = 9,
    KVM_EXIT_INTR = 10,
    KVM_EXIT_INTERNAL_ERROR = 17,
    KVM_EXIT_SYSTEM_EVENT = 24,
    KVM_EXIT_AP_RESET_HOLD = 32,

    /// <summary>KVM_EXIT_MEMORY_ERROR of UPM v4/v5.</summary>
    KVM_EXIT_MEMORY_ERROR = 36,

    /// <summary>KVM_EXIT_MEMORY_FAULT of UPM v8 to v10 and of the 2023 RFC.</summary>
    KVM_EXIT_MEMORY_FAULT_RFC = 38,
    KVM_EXIT_MEMORY_FAULT = 39,
    KVM_EXIT_TDX = 40,
    KVM_EXIT_SNP_REQ_CERTS = 43,
}

/// <summary>KVM_SYSTEM_EVENT_*.</summary>
public enum KvmSystemEvent : uint
{
    KVM_SYSTEM_EVENT_SEV_TERM = 4,
    KVM_SYSTEM_EVENT_TDX_FATAL = 7,
}

/// <summary>
/// The pages that a vCPU shares with user space (struct kvm_run, the PIO page, the coalesced-MMIO ring): real frames of the machine, which the vCPU's fd maps. Kernel and user
/// space read and write the same bytes.
/// </summary>
internal sealed partial class RunPage
{
    public const int Pages = 3;

    // Offsets in struct kvm_run.
    private const int ImmediateExitAt = 1;
    private const int ExitReasonAt = 8;
    private const int UnionAt = 32;
    private const int ValidRegsAt = 288;
    private const int DirtyRegsAt = 296;

    private readonly SimHost _host;
    private readonly Pfn[] _frames = new Pfn[Pages];

    private RunPage(SimHost host) => _host = host;

    /// <summary>Takes the frames; null when the machine has none left.</summary>
    public static RunPage? TryCreate(KTask current, SimHost host)
    {
        var page = new RunPage(host);
        for (int i = 0; i < Pages; i++)
        {
            if (!host.Machine.TryAllocateFrame(out page._frames[i]))
            {
                page.Free(current);
                return null;
            }
        }
        return page;
    }

    public IReadOnlyList<Pfn> Frames => _frames;

    /// <summary>The frame of one of the pages, for a mapping.</summary>
    public Pfn Frame(int index) => _frames[index];

    public bool ImmediateExit => Read(0, ImmediateExitAt, stackalloc byte[1])[0] != 0;

    public uint ExitReason
    {
        get => ReadU32(ExitReasonAt);
        set => WriteU32(ExitReasonAt, value);
    }

    public ulong ValidRegs => ReadU64(ValidRegsAt);

    public ulong DirtyRegs => ReadU64(DirtyRegsAt);

    /// <summary>hypercall.ret, which user space sets before it runs the vCPU again.</summary>
    public ulong HypercallRet => ReadU64(UnionAt + 56);

    /// <summary>KVM_EXIT_MEMORY_FAULT {flags, gpa, size}; size is 4096 always.</summary>
    public void MemoryFault(KTask current, Gfn gfn, bool isPrivate)
    {
        Exit((KvmExit)current.Host.Profile.MemoryFaultExit);
        WriteU64(UnionAt, isPrivate ? current.Host.Profile.MemoryFaultPrivateFlag : 0);
        WriteU64(UnionAt + 8, gfn.ToGpa().Value);
        WriteU64(UnionAt + 16, PageSize.Bytes);
    }

    /// <summary>KVM_EXIT_HYPERCALL {nr, args[6], ret, flags}.</summary>
    public void Hypercall(ulong nr, ReadOnlySpan<ulong> args, bool longMode, bool presetRet)
    {
        Exit(KvmExit.KVM_EXIT_HYPERCALL);
        WriteU64(UnionAt, nr);
        for (int i = 0; i < args.Length; i++)
        {
            WriteU64(UnionAt + 8 + (i * 8), args[i]);
        }
        if (presetRet)
        {
            WriteU64(UnionAt + 56, 0);
        }
        WriteU64(UnionAt + 64, longMode ? 1UL : 0);
    }

    /// <summary>KVM_EXIT_FAIL_ENTRY {hardware_entry_failure_reason, cpu}.</summary>
    public void FailEntry(ulong reason)
    {
        Exit(KvmExit.KVM_EXIT_FAIL_ENTRY);
        WriteU64(UnionAt, reason);
        WriteU32(UnionAt + 8, 0);
    }

    /// <summary>KVM_EXIT_SYSTEM_EVENT {type, ndata, data[16]}.</summary>
    public void SystemEvent(KvmSystemEvent type, params ReadOnlySpan<ulong> data)
    {
        Exit(KvmExit.KVM_EXIT_SYSTEM_EVENT);
        WriteU32(UnionAt, (uint)type);
        WriteData(data);
    }

    /// <summary>KVM_EXIT_SNP_REQ_CERTS {gpa, npages, ret}; ret is 0 until user space stores another.</summary>
    public void SnpReqCerts(ulong gpa, ulong npages)
    {
        Exit(KvmExit.KVM_EXIT_SNP_REQ_CERTS);
        WriteU64(UnionAt, gpa);
        WriteU64(UnionAt + 8, npages);
        WriteU64(UnionAt + 16, 0);
    }

    /// <summary>snp_req_certs.npages: what user space says is needed.</summary>
    public ulong SnpReqCertsNpages => ReadU64(UnionAt + 8);

    /// <summary>snp_req_certs.ret: an errno as a positive number, or 0.</summary>
    public ulong SnpReqCertsRet => ReadU64(UnionAt + 16);

    /// <summary>KVM_EXIT_INTERNAL_ERROR {suberror, ndata, data[16]}.</summary>
    public void InternalError(uint suberror, params ReadOnlySpan<ulong> data)
    {
        Exit(KvmExit.KVM_EXIT_INTERNAL_ERROR);
        WriteU32(UnionAt, suberror);
        WriteData(data);
    }

    /// <summary>KVM_EXIT_IO {direction, size, port, count, data_offset}; the data is in the PIO page.</summary>
    public void Io(bool isOut, int size, ushort port, ReadOnlySpan<byte> data, int count = 1)
    {
        Exit(KvmExit.KVM_EXIT_IO);
        Write(0, UnionAt, [isOut ? (byte)1 : (byte)0, (byte)size, (byte)port, (byte)(port >> 8)]);
        WriteU32(UnionAt + 4, (uint)count);
        WriteU64(UnionAt + 8, PageSize.Bytes);
        if (isOut)
        {
            Write(1, 0, data);
        }
    }

    /// <summary>What user space left in the PIO page.</summary>
    public void ReadPio(Span<byte> data) => Read(1, 0, data);

    /// <summary>KVM_EXIT_MMIO {phys_addr, data[8], len, is_write}.</summary>
    public void Mmio(ulong gpa, ReadOnlySpan<byte> data, int length, bool isWrite)
    {
        Exit(KvmExit.KVM_EXIT_MMIO);
        WriteU64(UnionAt, gpa);
        Span<byte> eight = stackalloc byte[8];
        data.CopyTo(eight);
        Write(0, UnionAt + 8, eight);
        WriteU32(UnionAt + 16, (uint)length);
        Write(0, UnionAt + 20, [isWrite ? (byte)1 : (byte)0]);
    }

    /// <summary>What user space answered to an MMIO load.</summary>
    public void ReadMmio(Span<byte> data) => Read(0, UnionAt + 8, data);

    /// <summary>An exit without data.</summary>
    public void Exit(KvmExit reason) => ExitReason = (uint)reason;

    public void Free(KTask current)
    {
        foreach (Pfn frame in _frames)
        {
            if (frame.Value != 0)
            {
                _host.PagePins.Free(current, frame);
            }
        }
        Array.Clear(_frames);
    }

    /// <summary>The run page and the PIO page as they are, for whoever decodes them.</summary>
    public void CopyTo(Span<byte> pages)
    {
        Read(0, 0, pages[..PageSize.Bytes]);
        Read(1, 0, pages[PageSize.Bytes..]);
    }

    /// <summary>A store by user space, inside one page.</summary>
    public void Store(int offset, ReadOnlySpan<byte> bytes) => Write(offset >> PageSize.Shift, offset & (int)PageSize.OffsetMask, bytes);

    // ndata and data[] of the two.
    private void WriteData(ReadOnlySpan<ulong> data)
    {
        WriteU32(UnionAt + 4, (uint)data.Length);
        for (int i = 0; i < data.Length; i++)
        {
            WriteU64(UnionAt + 8 + (i * sizeof(ulong)), data[i]);
        }
    }

    private uint ReadU32(int at) => BinaryPrimitives.ReadUInt32LittleEndian(Read(0, at, stackalloc byte[4]));

    private ulong ReadU64(int at) => BinaryPrimitives.ReadUInt64LittleEndian(Read(0, at, stackalloc byte[8]));

    private void WriteU32(int at, uint value)
    {
        Span<byte> bytes = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, value);
        Write(0, at, bytes);
    }

    private void WriteU64(int at, ulong value)
    {
        Span<byte> bytes = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        Write(0, at, bytes);
    }

    private Span<byte> Read(int page, int at, Span<byte> bytes)
    {
        _host.Machine.HostRead(_frames[page], at, bytes);
        return bytes;
    }

    private void Write(int page, int at, ReadOnlySpan<byte> bytes) => _host.Machine.HostWriteOwn(_frames[page], at, bytes);
}
