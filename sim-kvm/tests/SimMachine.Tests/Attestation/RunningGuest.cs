using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Measurement;
using SimMachine.Stepping;
using SimMachine.Tests.Amd;

namespace SimMachine.Tests.Attestation;

/// <summary>A machine with one SNP guest on it, launched by firmware commands alone: a page, a secrets page, then LAUNCH_FINISH.</summary>
internal sealed class RunningGuest : IDisposable
{
    private const uint Asid = 1;

    private readonly MachineThread _thread;
    private readonly Pfn _secrets;

    public RunningGuest(MachineConfig? config = null, ulong seed = 1, ulong policy = 0x30000, bool vcekDisabled = false, bool finish = true)
    {
        Machine = new Machine(config ?? new MachineConfig(), seed);
        _thread = new MachineThread(Machine);
        Context = Frame();
        Require(Machine.Psp.SnpInit(_thread));
        Machine.Rmp.Set(Context, RmpStates.Entry(RmpPageState.Firmware, 0, 0));
        Require(Machine.Psp.SnpGctxCreate(_thread, Context));
        Require(Machine.Psp.SnpLaunchStart(_thread, Context, policy, new byte[16]));
        Require(Machine.Psp.SnpActivate(_thread, Context, Asid));
        Add(0x1000, SnpPageType.NORMAL);
        _secrets = Add(0x2000, SnpPageType.SECRETS);
        if (finish)
            Require(Machine.Psp.SnpLaunchFinish(_thread, Context, [], [], false, vcekDisabled, HostData));
    }

    public static byte[] HostData { get; } = [.. Enumerable.Range(1, 32).Select(each => (byte)each)];

    public Machine Machine { get; }

    public Pfn Context { get; }

    public IReadOnlyList<SimMachine.Stepping.Cause> Causes => _thread.Causes;

    public byte[] Measurement => Machine.Psp.GuestStatus(Context)!.LaunchDigest;

    /// <summary>A VMPCK as the guest finds it in its secrets page.</summary>
    public byte[] Vmpck(int index)
    {
        byte[] key = new byte[32];
        Machine.GuestRead(Asid, _secrets, 0x20 + (32 * index), key);
        return key;
    }

    public void SetMessageCount(int vmpck, ulong count) => Machine.Psp.MessageCounts(Context)[vmpck] = count;

    public SevStatus Request(ReadOnlySpan<byte> request, Span<byte> response) => Machine.Psp.SnpGuestRequest(_thread, Context, request, response);

    public byte[] Ask(GuestMessageType type, byte[] payload, byte vmpck = 0)
    {
        Require(Machine.Psp.AskAsGuest(_thread, Context, vmpck, type, payload, out byte[] answer));
        return answer;
    }

    /// <summary>The response to MSG_REPORT_REQ: status, size, report.</summary>
    public byte[] AskReport(byte[] reportData, uint vmpl = 0, uint keySelection = 0, byte vmpck = 0) => Ask(
        GuestMessageType.REPORT_REQ, [.. reportData, .. BitConverter.GetBytes(vmpl), .. BitConverter.GetBytes(keySelection), .. new byte[24]], vmpck);

    public AttestationReport Report(byte[]? reportData = null, uint vmpl = 0, uint keySelection = 0) =>
        AttestationReport.Read(AskReport(reportData ?? Nonce, vmpl, keySelection).AsSpan(0x20));

    public static byte[] Nonce { get; } = [.. Enumerable.Range(100, 64).Select(each => (byte)each)];

    public void Dispose() => Machine.Dispose();

    private Pfn Add(ulong gpa, SnpPageType type)
    {
        Pfn page = Frame();
        Machine.HostWrite(_thread, page, 0, "firmware"u8);
        Machine.Rmp.Set(page, RmpStates.Entry(RmpPageState.PreGuest, Asid, gpa));
        Require(Machine.Psp.SnpLaunchUpdate(_thread, Context, page, PageLevel.Page4K, type));
        return page;
    }

    private Pfn Frame() => Machine.TryAllocateFrame(out Pfn pfn) ? pfn : throw new InvalidOperationException("no frame left");

    private static void Require(SevStatus status)
    {
        if (status != SevStatus.SUCCESS)
            throw new InvalidOperationException($"firmware answered {status}");
    }
}
