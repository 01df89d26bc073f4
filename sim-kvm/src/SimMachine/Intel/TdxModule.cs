using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Intel;

/// <summary>
/// The TDX module: it stands between the host and its TDs, owns their pages, keys and translations, and measures how they are built. The host calls it by SEAMCALL leaves, which
/// are the methods here; a TD by TDCALL leaves (<c>TdxModule.Guest.cs</c>). Names, operands, order of checks and completion statuses are those of module 1.5.01 (tdx.md 3).
/// </summary>
/// <remarks>
/// TD life and vCPUs are in <c>TdxModule.Lifecycle.cs</c> and <c>TdxModule.Vcpu.cs</c>, memory in <c>TdxModule.Memory.cs</c>, measurement in <c>TdxModule.Measure.cs</c>,
/// teardown in <c>TdxModule.Teardown.cs</c>. Locks are never waited for. Order in which a leaf takes them: TDR, op state, Secure EPT tree, Secure EPT entry or epoch.
/// Invariants: a page that is not the host's (<see cref="Pamt"/>) has one owner and one role; a TD's child count is the number of its pages; a mapped page of a Secure EPT is REG
/// and owned by that TD.
/// </remarks>
public sealed partial class TdxModule : IDisposable
{
    /// <summary>How often the kernel repeats a leaf that found no entropy (RDRAND_RETRY_LOOPS).</summary>
    public const int EntropyRetries = 10;

    private static readonly StepLabel SeamcallStep = new("seamcall");
    private static readonly StepLabel LockedStep = new("seamcall holds its locks");

    public static readonly Rule Injected = new(
        "tdx.injected", "the status was injected by the test that drives this host", "fault injection", "take the injection away", "leaf#", "status");

    public static readonly Rule NotATdr = new(
        "tdx.tdr.type", "the page is not the TDR of a TD", "check_and_lock_explicit_4k_private_hpa", "use the page given to TDH.MNG.CREATE", "leaf#", "pfn", "page_type#");

    public static readonly Rule Busy = new(
        "tdx.busy", "somebody else is using the operand; the module does not wait", "TDX_OPERAND_BUSY", "call again", "leaf#", "operand#");

    public static readonly Rule KeysMissing = new(
        "tdx.td.keys", "the TD's key is not configured on all packages", "check_state_map_tdcs_and_lock", "TDH.MNG.KEY.CONFIG on each package", "leaf#", "lifecycle#");

    public static readonly Rule TdcsMissing = new(
        "tdx.td.tdcs", "control pages of the TD are missing", "check_state_map_tdcs_and_lock", "TDH.MNG.ADDCX as often as the module needs it", "leaf#", "tdcx#", "needed#");

    public static readonly Rule WrongOpState = new(
        "tdx.td.op-state", "the TD is in a state that does not take this leaf (0 uninitialised, 1 initialised, 2 runnable)", "check_state_map_tdcs_and_lock",
        "build the TD between TDH.MNG.INIT and TDH.MR.FINALIZE, run it afterwards", "leaf#", "op_state#");

    public static readonly Rule PageNotFree = new(
        "tdx.page.not-free", "the page is in the module's use already, or is no page of the host", "check_lock_and_map_explicit_private_4k_hpa", "give a page that is the host's",
        "leaf#", "pfn", "page_type#");

    private readonly Machine _machine;
    private readonly TdxModuleConfig _config;
    private readonly Pamt _pamt;
    private readonly SortedDictionary<ulong, Td> _tds = [];
    private readonly SortedDictionary<ulong, TdVcpu> _vcpus = [];
    private readonly Injections _injections = new();

    internal TdxModule(Machine machine)
    {
        _machine = machine;
        _config = machine.Config.Tdx;
        _pamt = new Pamt(machine);
    }

    public TdxModuleConfig Config => _config;

    /// <summary>See <see cref="Machine.SharedState"/>.</summary>
    internal IEnumerable<object> SharedState => [_pamt, _tds, _vcpus, _hkids, _injections, .. _tds.Values.SelectMany(td => td.SharedState), .. _vcpus.Values];

    /// <summary>For tests: the next calls of a leaf answer a status instead of what they would.</summary>
    /// <param name="skip">Calls that pass first.</param>
    /// <param name="times">Calls that answer the status.</param>
    public void Inject(SeamcallLeaf leaf, TdxStatus status, int skip = 0, int times = 1) => _injections.Add(leaf, status, skip, times);

    /// <summary>The SEAMCALL that has begun and not been looked at yet, or the next one, whichever it is, answers a status and does nothing.</summary>
    public void InjectNext(TdxStatus status)
    {
        _machine.Writing(_injections);
        _injections.Next = status;
    }

    public void Dispose()
    {
        foreach (Td td in _tds.Values)
        {
            td.Mrtd.Dispose();
        }
        _tds.Clear();
    }

    /// <summary>Whether the module has the page, so that the host sees ciphertext in it.</summary>
    internal bool Has(Pfn pfn) => _pamt[pfn].Type != TdxPageType.NDA;

    /// <summary>The host stored into a page that is a TD's. The processor lets it, and the TD finds its memory poisoned.</summary>
    internal void ReportHostStore(SimThread thread, Pfn pfn) => Report(
        thread, "tdx-private-page-poisoned", pfn, "was stored to by the host while the TDX module has it", "a TD that reads it takes a machine check, and is gone", "stored to it");

    internal void ReportFreedWhilePrivate(SimThread thread, Pfn pfn) => Report(
        thread, "page-freed-while-private", pfn, "was freed while the TDX module has it", "its next owner would read ciphertext and poison it; the frame is kept out of use", "freed it");

    internal void CheckInvariants()
    {
        var children = new Dictionary<ulong, long>();
        foreach ((Pfn pfn, PamtEntry entry) in _pamt.Taken((_machine.Config.MemoryBytes >> PageSize.Shift) + 1))
        {
            bool isTdr = entry.Type == TdxPageType.TDR;
            Require(_tds.ContainsKey(isTdr ? pfn.Value : entry.Owner.Value), $"frame {pfn} is a {entry.Type} of no TD");
            // A page that a test did not let the module give back is lost to the host.
            Require(_machine.IsAllocated(pfn) || _machine.Memory.IsLeaked(pfn), $"frame {pfn} is a {entry.Type} and nobody allocated it");
            if (!isTdr)
            {
                children[entry.Owner.Value] = children.GetValueOrDefault(entry.Owner.Value) + 1;
            }
        }
        foreach (Td td in _tds.Values)
        {
            Require(td.Children == children.GetValueOrDefault(td.Tdr.Value), $"the TD at {td.Tdr} counts {td.Children} pages; {children.GetValueOrDefault(td.Tdr.Value)} were found");
            Require(td.Lock.IsFree && td.OpStateLock.IsFree && td.EpochLock.IsFree && td.Sept.Lock.IsFree && td.Sept.LockedEntries.Count == 0, $"a lock of the TD at {td.Tdr} was left taken");
            foreach ((int level, ulong gpa, SeptEntry entry) in td.Sept.Entries())
            {
                PamtEntry page = _pamt[entry.Pfn];
                Require(page.Owner == td.Tdr && page.Type == (entry.IsTable ? TdxPageType.EPT : TdxPageType.REG), $"the Secure EPT has {entry} at 0x{gpa:x}, level {level}; the page is {page}");
                Require(level == td.Sept.Top || td.Sept[level + 1, gpa].IsTable, $"the Secure EPT has {entry} at 0x{gpa:x}, level {level}, and no table above");
            }
        }
    }

    // Every leaf begins here: a step, and what was injected.
    private bool Begin(SimThread thread, SeamcallLeaf leaf, ulong a, ulong b, out TdxStatus status)
    {
        thread.Step(SeamcallStep, (ulong)leaf, a);
        status = TdxStatus.SUCCESS;
        if (_injections.Any)
        {
            _machine.Writing(_injections);
        }
        if (_injections.TryTake(leaf, out TdxStatus injected))
        {
            status = thread.Fail(injected, Injected, (ulong)leaf, (ulong)injected);
            return false;
        }
        return true;
    }

    // The TDR, locked. Its operand is the register that it came in.
    private TdxStatus LockTdr(SimThread thread, SeamcallLeaf leaf, Pfn tdr, TdxOperand operand, bool exclusive, TdxHold hold, out Td td)
    {
        _machine.Reading(_tds, tdr.Value, tdr.Value + 1);
        if (!_tds.TryGetValue(tdr.Value, out td!))
        {
            TdxStatus bad = CheckAddress(thread, leaf, tdr, operand);
            return bad != TdxStatus.SUCCESS ? bad
                : thread.Fail(TdxStatus.PAGE_METADATA_INCORRECT.With(operand), NotATdr, (ulong)leaf, tdr.Value, (ulong)_pamt[tdr].Type);
        }
        return Lock(thread, leaf, td.Lock, exclusive, operand, hold);
    }

    // check_state_map_tdcs_and_lock. The op state is locked for as long as the leaf runs. TD_FATAL would come first: only a machine check makes a TD fatal, and none is modelled.
    private TdxStatus CheckState(SimThread thread, SeamcallLeaf leaf, Td td, bool exclusive, TdOpState from, TdOpState to, TdxHold hold)
    {
        TdxStatus status = CheckBuilt(thread, leaf, td);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        status = Lock(thread, leaf, td.OpStateLock, exclusive, TdxOperand.OP_STATE, hold);
        if (status != TdxStatus.SUCCESS)
        {
            return status;
        }
        return td.OpState < from || td.OpState > to ? thread.Fail(TdxStatus.OP_STATE_INCORRECT, WrongOpState, (ulong)leaf, (ulong)td.OpState) : TdxStatus.SUCCESS;
    }

    private TdxStatus CheckBuilt(SimThread thread, SeamcallLeaf leaf, Td td, bool needsTdcs = true)
    {
        if (td.Lifecycle != TdLifecycle.KeysConfigured)
        {
            return thread.Fail(TdxStatus.TD_KEYS_NOT_CONFIGURED, KeysMissing, (ulong)leaf, (ulong)td.Lifecycle);
        }
        return needsTdcs && td.Tdcx < _config.TdcsPages
            ? thread.Fail(TdxStatus.TDCS_NOT_ALLOCATED, TdcsMissing, (ulong)leaf, (ulong)td.Tdcx, (ulong)_config.TdcsPages)
            : TdxStatus.SUCCESS;
    }

    private static TdxStatus Lock(SimThread thread, SeamcallLeaf leaf, TdxLock which, bool exclusive, TdxOperand operand, TdxHold hold) =>
        hold.Take(thread.Machine, which, exclusive) ? TdxStatus.SUCCESS : thread.Fail(TdxStatus.OPERAND_BUSY.With(operand), Busy, (ulong)leaf, (ulong)operand);

    // A page that the host gives: it must be its own.
    private TdxStatus CheckFree(SimThread thread, SeamcallLeaf leaf, Pfn page, TdxOperand operand)
    {
        TdxStatus bad = CheckAddress(thread, leaf, page, operand);
        if (bad != TdxStatus.SUCCESS)
        {
            return bad;
        }
        PamtEntry entry = _pamt[page];
        return entry.Type != TdxPageType.NDA || !_machine.IsAllocated(page)
            ? thread.Fail(TdxStatus.PAGE_METADATA_INCORRECT.With(operand), PageNotFree, (ulong)leaf, page.Value, (ulong)entry.Type)
            : TdxStatus.SUCCESS;
    }

    // The page is a TD's from here on. Its content is what the TD's key makes of it: zeros, until somebody stores.
    private void Give(SimThread thread, Pfn page, TdxPageType type, Td td, int level = 0, bool zero = true)
    {
        for (ulong i = 0; i < Sept.BytesOf(level) >> PageSize.Shift; i++)
        {
            _pamt[page + i] = new PamtEntry(type, td.Tdr, (byte)level, 0, (uint)thread.Call);
            td.Children++;
            if (zero)
            {
                _machine.Memory.Zero(page + i, td.Key);
            }
        }
    }

    // The page is the host's again. What was in it stays, under a key that the host has not.
    private void TakeAway(Pfn page, Td td, int level = 0)
    {
        for (ulong i = 0; i < Sept.BytesOf(level) >> PageSize.Shift; i++)
        {
            _pamt[page + i] = default;
            td.Children--;
        }
    }

    private void Report(SimThread thread, string kind, Pfn pfn, string what, string so, string deed)
    {
        PamtEntry entry = _pamt[pfn];
        _machine.Findings.Report(
            thread, kind, $"frame 0x{pfn.Value:x} {what} ({entry.Type} of the TD at 0x{entry.Owner.Value:x}): {so}",
            [Operand.Of("pfn", pfn.Value), Operand.Of("page_type#", (ulong)entry.Type), Operand.Of("tdr", entry.Owner.Value)],
            [$"call {entry.WrittenByCall} made it {entry.Type}", $"call {thread.Call}, step {thread.Machine.Journal.Steps}, {deed}"]);
    }

    private static void Require(bool holds, string otherwise)
    {
        if (!holds)
        {
            throw new InvalidOperationException(otherwise);
        }
    }

    // Statuses that a test wants to see.
    private sealed class Injections
    {
        private readonly Dictionary<SeamcallLeaf, Queue<(TdxStatus Status, int Skip, int Times)>> _waiting = [];

        /// <summary>Of the next SEAMCALL; null for none.</summary>
        public TdxStatus? Next { get; set; }

        public bool Any => Next is not null || _waiting.Count > 0;

        public void Add(SeamcallLeaf leaf, TdxStatus status, int skip, int times)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(skip);
            ArgumentOutOfRangeException.ThrowIfNegativeOrZero(times);
            if (!_waiting.TryGetValue(leaf, out var queue))
            {
                _waiting[leaf] = queue = new();
            }
            queue.Enqueue((status, skip, times));
        }

        public bool TryTake(SeamcallLeaf leaf, out TdxStatus status)
        {
            status = TdxStatus.SUCCESS;
            if (Next is { } any)
            {
                (status, Next) = (any, null);
                return true;
            }
            if (_waiting.Count == 0 || !_waiting.TryGetValue(leaf, out var queue))
            {
                return false;
            }
            (TdxStatus next, int skip, int times) = queue.Dequeue();
            bool taken = skip == 0;
            if (!taken || times > 1)
            {
                // What is left of the first goes before the others.
                (TdxStatus, int, int)[] rest = [(next, Math.Max(skip - 1, 0), taken ? times - 1 : times), .. queue];
                queue.Clear();
                foreach (var each in rest)
                {
                    queue.Enqueue(each);
                }
            }
            if (queue.Count == 0)
            {
                _waiting.Remove(leaf);
            }
            status = next;
            return taken;
        }
    }
}
