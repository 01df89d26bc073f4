using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Intel;
using SimMachine.Stepping;

namespace SimKvm.Faults;

/// <summary>
/// The faults that are to strike on a host, and how often each of their places was come to. A fault strikes once. What it brings about is answered by the code that would meet a
/// real one, with this as the cause.
/// </summary>
internal sealed class FaultPlan(SimHost host)
{
    /// <summary>Faults that a host takes.</summary>
    public const int MaxFaults = 256;

    public static readonly Rule InjectedErrno = new(
        "fault.errno", "a fault was scripted here", "fault plan of the host", "the script or scenario asked for it (inject_fault)", "errno#", "occurrence#");

    public static readonly Rule InjectedStatus = new(
        "fault.firmware-status", "firmware was scripted to refuse this command", "fault plan of the host", "the script or scenario asked for it (inject_fault)", "command", "status");

    private readonly List<Planned> _faults = [];
    private bool _noMemory;
    private bool _firmwareTimesOut;
    private uint _status;

    /// <summary>Faults that have not struck yet.</summary>
    public int Waiting => _faults.Count;

    public void Add(ScriptedFault fault) => _faults.Add(new Planned(fault));

    /// <summary>A call begins; gives what it fails with at once.</summary>
    public Errno AtCall(KTask current, string what) =>
        Strike(current, fault => fault.Call.Length > 0 && what.StartsWith(fault.Call, StringComparison.Ordinal));

    /// <summary>The page at a gfn is looked up.</summary>
    public Errno AtGfn(KTask current, Gfn gfn) => Strike(current, fault => fault.Gpa >> PageSize.Shift == gfn.Value);

    public void AtStep(KTask current, StepLabel label) => Strike(current, fault => fault.Step == label.Name);

    /// <summary>A page is asked for: it is not there.</summary>
    public bool TakesMemory()
    {
        bool takes = _noMemory;
        _noMemory = false;
        return takes;
    }

    /// <summary>A firmware command is issued: null where firmware is to be asked.</summary>
    public SevStatus? TakesCommand(KTask current, PspCommand command)
    {
        if (_status == 0)
        {
            return null;
        }
        var status = (SevStatus)_status;
        _status = 0;
        current.Refuse(InjectedStatus, $"{status} 0x{(uint)status:x}", (ulong)command, (ulong)status);
        return status;
    }

    private Errno Strike(KTask current, Func<ScriptedFault, bool> isHere)
    {
        Errno errno = Errno.OK;
        for (int i = 0; i < _faults.Count; i++)
        {
            Planned planned = _faults[i];
            if (!isHere(planned.Fault))
            {
                continue;
            }
            // Who comes first decides whom it strikes.
            host.Machine.Writing(this);
            if (++planned.Met < planned.Fault.Occurrence)
            {
                continue;
            }
            _faults.RemoveAt(i--);
            _noMemory |= planned.Fault.NoMemory;
            _firmwareTimesOut |= planned.Fault.FirmwareTimeout;
            _status = planned.Fault.FirmwareStatus != 0 ? planned.Fault.FirmwareStatus : _status;
            if (planned.Fault.ModuleStatus != 0)
            {
                host.Machine.Tdx.InjectNext((TdxStatus)planned.Fault.ModuleStatus);
            }
            if (planned.Fault.Signal)
            {
                current.SignalPending = true;
            }
            if (planned.Fault.Errno != Errno.OK)
            {
                errno = current.Fail(planned.Fault.Errno, InjectedErrno, (ulong)planned.Fault.Errno, (ulong)planned.Fault.Occurrence);
            }
        }
        return errno;
    }

    /// <summary>A firmware command is issued: firmware does not answer.</summary>
    public bool TakesAnswer()
    {
        bool takes = _firmwareTimesOut;
        _firmwareTimesOut = false;
        return takes;
    }

    private sealed class Planned(ScriptedFault fault)
    {
        public ScriptedFault Fault { get; } = fault;

        /// <summary>How often its place was come to.</summary>
        public int Met { get; set; }
    }
}
