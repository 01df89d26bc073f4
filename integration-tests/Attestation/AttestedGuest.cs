using Google.Protobuf;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>A launched SNP guest of one page, and the questions that these tests ask about it, as bare messages.</summary>
internal sealed class AttestedGuest(BareProcess process, int fd, string launchDigest) : IAsyncDisposable
{
    private const ulong PageSize = 4096;

    public static byte[] Nonce { get; } = [.. Enumerable.Range(1, 64).Select(each => (byte)each)];

    public BareProcess Process { get; } = process;

    public int Fd { get; } = fd;

    /// <summary>As LAUNCH_FINISH answered it.</summary>
    public string LaunchDigest { get; } = launchDigest;

    /// <summary>Launches one.</summary>
    /// <param name="content">What its page is filled with; decides the launch digest.</param>
    public static async Task<AttestedGuest> Launch(VmmStubs stubs, MachineConfig? machine = null, byte content = 0x5A)
    {
        BareProcess process = await BareProcess.Start(stubs, machine: machine);
        SnpVm vm = await process.StartSnpVm();
        await vm.Update(0, PageSize, SnpPageType.Normal, SnpVm.Page(content));
        SnpLaunchFinishResponse finished = await stubs.Sev.SnpLaunchFinishAsync(new SnpLaunchFinishRequest
        {
            Host = process.Host,
            Pid = process.Pid,
            Fd = vm.Fd,
            SevFd = vm.SevFd,
            Finish = new KvmSevSnpLaunchFinish { HostData = ByteString.CopyFrom(Nonce.AsSpan(0, 32)) },
        });
        return new AttestedGuest(process, vm.Fd, finished.LaunchDigest);
    }

    public GetReportRequest Request(uint vmpl = 0, uint vmpck = 0, KeySelection key = KeySelection.Unspecified) => new()
    {
        Host = Process.Host,
        Pid = Process.Pid,
        Fd = Fd,
        ReportData = ByteString.CopyFrom(Nonce),
        Vmpl = vmpl,
        Vmpck = vmpck,
        KeySelection = key,
    };

    public async Task<GetReportResponse> Report(GetReportRequest? request = null) => await Process.Stubs.Attestation.GetReportAsync(request ?? Request());

    public async Task<MakeEvidenceResponse> Evidence(EvidenceKind kind) =>
        await Process.Stubs.Attestation.MakeEvidenceAsync(new MakeEvidenceRequest { Kind = kind, Report = Request() });

    public ValueTask DisposeAsync() => Process.DisposeAsync();

    /// <summary>What the independent verifier says of evidence.</summary>
    public static IReadOnlyList<Refusal> Verify(MakeEvidenceResponse evidence)
    {
        EvidenceExpectation expected = evidence.Expected;
        TcbVersion tcb = expected.MinTcb;
        return SnpVerifier.Verify(
            evidence.Report.ToByteArray(), evidence.Endorsement.ToByteArray(), evidence.Intermediate.ToByteArray(), evidence.Ark.ToByteArray(), evidence.Crl.ToByteArray(),
            new Demands(
                expected.Ark.ToByteArray(),
                expected.ReportData.ToByteArray(),
                Convert.FromHexString(expected.Measurement),
                expected.Vmpl,
                [(byte)tcb.BootLoader, (byte)tcb.Tee, (byte)tcb.Snp, (byte)tcb.Microcode, (byte)tcb.Fmc],
                expected.AllowDebug,
                new DateTime(2030, 6, 1, 0, 0, 0, DateTimeKind.Utc)));
    }
}
