using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Arm;
using SimMachine.Intel;
using SimMachine.Intel.Attestation;
using SimMachine.Stepping;

namespace SimMachine;

/// <summary>
/// A simulated computer without its operating system: physical memory, and the parts of a processor that confidential guests need. An operating system
/// uses it as it would use hardware: loads and stores of the host, instructions (<see cref="Amd.Rmp"/>), firmware commands (<see cref="Amd.Psp"/>), SEAMCALLs
/// (<see cref="TdxModule"/>).
/// </summary>
/// <remarks>
/// The journal's count of steps is the only clock and the seed the only source of randomness. Nothing here is shared between machines.
/// </remarks>
public sealed class Machine : IDisposable
{
    /// <summary>The host's own accesses use no memory encryption key.</summary>
    public const uint HostKey = 0;

    // Stands for the free list.
    private readonly object _allocation = new();

    // Frames that are lost to the host but still in somebody's hands; they are taken out of use when they are given back.
    private readonly HashSet<ulong> _lost = [];

    public Machine(MachineConfig config, ulong seed)
    {
        if (config.Problem() is { } problem)
        {
            throw new ArgumentException(problem, nameof(config));
        }
        Config = config;
        Seed = seed;
        Entropy = new Entropy(seed);
        Memory = new HostMemory(config.MemoryBytes >> PageSize.Shift, seed) { Machine = this };
        Cpuid = config.Platform == Platform.IntelTdx ? XeonCpuid.For(config.Tdx) : PlatformCpuid.For(config.Product, config.MaxAsid, config.MinSevAsid);
        Rmp = new Rmp(this);
        Psp = new Psp(this);
        El2 = new El2(this);
        TdxIdentity = new TdxIdentity(config.Tdx, seed, Entropy);
        Tdx = new TdxModule(this);
        Identity = new PlatformIdentity(config, Entropy);
    }

    public MachineConfig Config { get; }

    public ulong Seed { get; }

    public Journal Journal { get; } = new();

    public FindingLog Findings { get; } = new();

    public Entropy Entropy { get; }

    public PlatformCpuid Cpuid { get; }

    public Rmp Rmp { get; }

    public Psp Psp { get; }

    /// <summary>The hypervisor of protected KVM; it has nothing to do on other platforms.</summary>
    public El2 El2 { get; }

    /// <summary>The TDX module; it is there on Intel machines that have it switched on, and has nothing to do on others.</summary>
    public TdxModule Tdx { get; }

    /// <summary>Chip id, keys and certificates of attestation.</summary>
    public PlatformIdentity Identity { get; }

    /// <summary>The same for TDX: MAC of reports, quoting enclave, keys and certificates.</summary>
    public TdxIdentity TdxIdentity { get; }

    /// <summary>Told of each step; null where nobody wants to know.</summary>
    public Action<SimThread, StepLabel>? StepWatcher { get; set; }

    /// <summary>Asked before a frame is handed out: true says that there is none.</summary>
    public Func<bool>? MemoryIsOut { get; set; }

    /// <summary>Decides who runs next; null in live service.</summary>
    public Baton? Baton { get; set; }

    /// <summary>What threads may touch at the same time (see <see cref="Baton.Touch"/>), in an order that is the same whenever the same calls were made.</summary>
    public IEnumerable<object> SharedState => [_allocation, Memory, Rmp, .. El2.SharedState, .. Tdx.SharedState];

    /// <summary>See <see cref="Baton.Touch"/>: state that is reached without a lock that would keep others out says so here. Costs a test in live service.</summary>
    public void Reading(object state, ulong start = 0, ulong end = ulong.MaxValue) => Baton?.Touch(state, start, end, write: false);

    /// <summary>See <see cref="Baton.Touch"/>.</summary>
    public void Writing(object state, ulong start = 0, ulong end = ulong.MaxValue) => Baton?.Touch(state, start, end, write: true);

    public long AllocatedPages => Memory.AllocatedPages;

    /// <summary>Pages taken out of use for ever (<see cref="LeakFrame"/>).</summary>
    public long LeakedPages => Memory.LeakedPages + _lost.Count;

    /// <summary>Real memory behind the written pages of all machines in this program, in bytes. For admission only: no simulated result depends on it.</summary>
    public static long BackedBytesOfAllMachines => PageArena.Shared.RentedPages << PageSize.Shift;

    internal HostMemory Memory { get; }

    /// <summary>Takes a free frame; its content reads as zeros. False when memory is exhausted.</summary>
    public bool TryAllocateFrame(out Pfn pfn)
    {
        Writing(_allocation);
        pfn = default;
        return MemoryIsOut?.Invoke() != true && Memory.TryAllocate(out pfn);
    }

    /// <summary>Takes the frames of a huge page, aligned to its size. False when there is no such run.</summary>
    public bool TryAllocateHugeFrame(PageLevel level, out Pfn pfn)
    {
        Writing(_allocation);
        pfn = default;
        return MemoryIsOut?.Invoke() != true && Memory.TryAllocateRun(level.PagesPerLevel(), out pfn);
    }

    /// <summary>
    /// Gives a frame back. A frame that the RMP still assigns to a guest or to firmware is a finding and stays out of use: on a real machine its next owner
    /// would take an RMP fault.
    /// </summary>
    public void FreeFrame(SimThread thread, Pfn pfn)
    {
        Writing(_allocation);
        Writing(Memory, pfn.Value, pfn.Value + 1);
        if (_lost.Remove(pfn.Value))
        {
            Memory.Leak(pfn);
        }
        else if (Rmp.Entry(pfn).Assigned)
        {
            Rmp.ReportFreedWhilePrivate(thread, pfn);
            Memory.Leak(pfn);
        }
        else if (Tdx.Has(pfn))
        {
            Tdx.ReportFreedWhilePrivate(thread, pfn);
            Memory.Leak(pfn);
        }
        else
        {
            Memory.Free(pfn);
        }
    }

    /// <summary>Takes a frame out of use for ever, as snp_leak_pages does with a page that cannot be made shared again.</summary>
    public void LeakFrame(Pfn pfn)
    {
        Writing(_allocation);
        _lost.Add(pfn.Value);
    }

    /// <summary>A load by the host. A page that is encrypted for a guest reads as ciphertext, the same each time.</summary>
    public void HostRead(Pfn pfn, int offset, Span<byte> destination)
    {
        Memory.Read(pfn, offset, destination, HostKey);
    }

    /// <summary>The page as the host sees it, without a copy where the host's view is plain.</summary>
    public bool TryHostView(Pfn pfn, out ReadOnlySpan<byte> page)
    {
        return Memory.TryGetPlainSpan(pfn, HostKey, out page);
    }

    /// <summary>
    /// A store by the host (APM vol. 2, 15.36.10). Into a page that is assigned in the RMP it faults: nothing is stored, the finding host-rmp-fault names who
    /// assigned the page, and the answer is false. A store into a page of the TDX module passes, and the finding tdx-private-page-poisoned says so.
    /// </summary>
    public bool HostWrite(SimThread thread, Pfn pfn, int offset, ReadOnlySpan<byte> source)
    {
        Writing(Memory, pfn.Value, pfn.Value + 1);
        if (Rmp.Entry(pfn).Assigned)
        {
            Rmp.ReportHostFault(thread, pfn);
            return false;
        }
        NoteStore(thread, pfn);
        Memory.Write(pfn, offset, source, HostKey);
        return true;
    }

    /// <summary>The plaintext of a page, whoever owns it; for audits.</summary>
    public void ReadAsOwner(Pfn pfn, Span<byte> destination)
    {
        uint key = Memory.KeyOf(pfn);
        Memory.Read(pfn, 0, destination, key == HostMemory.Mixed ? HostKey : key);
    }

    /// <summary>A load by a guest, behind nested paging and the RMP.</summary>
    /// <param name="asid">The key that the access uses: the guest's ASID for an encrypted access, else 0.</param>
    public void GuestRead(uint asid, Pfn pfn, int offset, Span<byte> destination)
    {
        Memory.Read(pfn, offset, destination, asid);
    }

    /// <summary>A store by a guest, behind nested paging and the RMP.</summary>
    public void GuestWrite(uint asid, Pfn pfn, int offset, ReadOnlySpan<byte> source)
    {
        Memory.Write(pfn, offset, source, asid);
    }

    /// <summary>A store by the host into a frame that it shares with its own processes only, such as a vCPU's run page; not checked against the RMP.</summary>
    public void HostWriteOwn(Pfn pfn, int offset, ReadOnlySpan<byte> source) => Memory.Write(pfn, offset, source, HostKey);

    /// <summary>The host clears a page. Faults as <see cref="HostWrite"/> does.</summary>
    public bool HostZero(SimThread thread, Pfn pfn)
    {
        Writing(Memory, pfn.Value, pfn.Value + 1);
        if (Rmp.Entry(pfn).Assigned)
        {
            Rmp.ReportHostFault(thread, pfn);
            return false;
        }
        NoteStore(thread, pfn);
        Memory.Zero(pfn, HostKey);
        return true;
    }

    /// <summary>The host copies a page, both sides as it sees them. Faults as <see cref="HostWrite"/> does.</summary>
    public bool HostCopy(SimThread thread, Pfn source, Pfn destination)
    {
        Reading(Memory, source.Value, source.Value + 1);
        Writing(Memory, destination.Value, destination.Value + 1);
        if (Rmp.Entry(destination).Assigned)
        {
            Rmp.ReportHostFault(thread, destination);
            return false;
        }
        NoteStore(thread, destination);
        Memory.CopyPage(source, HostKey, destination, HostKey);
        return true;
    }

    /// <summary>Whether somebody has the frame.</summary>
    public bool IsAllocated(Pfn pfn) => Memory.IsAllocated(pfn);

    /// <summary>Checks the frame table and the RMP whole. For audits: it walks everything.</summary>
    /// <exception cref="InvalidOperationException">Something is inconsistent: a bug of ours.</exception>
    public void CheckInvariants()
    {
        Memory.CheckInvariants();
        Rmp.CheckInvariants();
        Tdx.CheckInvariants();
    }

    public void Dispose()
    {
        Tdx.Dispose();
        Memory.Dispose();
    }

    private void NoteStore(SimThread thread, Pfn pfn)
    {
        if (Tdx.Has(pfn))
        {
            Tdx.ReportHostStore(thread, pfn);
        }
    }
}
