using Google.Protobuf;
using Grpc.Core;
using Microsoft.Extensions.DependencyInjection;
using SimKvm;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.Server.Sessions;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Service;

/// <summary>Processes and uploads as clients see them: what stays, what goes, and when.</summary>
public sealed class SessionTests(Daemon daemon) : IClassFixture<Daemon>
{
    [Fact]
    public async Task ClientThatDisappears_LeavesNothingBehind()
    {
        Assert.SkipWhen(daemon.App is null, "looks into the daemon, which runs elsewhere");
        HostRegistry hosts = daemon.App!.Services.GetRequiredService<HostRegistry>();
        string host = (await daemon.Stubs.Hosts.CreateHostAsync(new CreateHostRequest())).Host.Host_;
        SimHost sim = hosts.Get(host).Sim;
        uint pid = (await daemon.Stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = host })).Pid;

        // Another connection holds the attachment and is cut without a word.
        VmmConnection doomed = VmmConnection.Connect(daemon.Address);
        AsyncServerStreamingCall<AttachProcessResponse> attachment = doomed.Stubs.Processes.AttachProcess(new AttachProcessRequest { Host = host, Pid = pid });
        Assert.True(await attachment.ResponseStream.MoveNext(TestContext.Current.CancellationToken));
        int kvm = (int)(await daemon.Stubs.Processes.OpenAsync(new OpenRequest { Host = host, Pid = pid, Path = "/dev/kvm" })).Outcome.Value;
        await daemon.Stubs.Kvm.CreateVmAsync(new CreateVmRequest { Host = host, Pid = pid, Fd = kvm, VmType = VmType.SwProtected });
        Assert.Equal(1, sim.Run(each => each.LiveVms));

        Task gone = hosts.WhenGone(host, (int)pid);
        await doomed.DisposeAsync();
        await gone;

        Assert.Equal((0, 0), sim.Run(each => (each.LiveVms, each.Processes.Count)));
        Assert.Equal(0, sim.Run(each => each.Machine.AllocatedPages));
        await daemon.Stubs.Hosts.DeleteHostAsync(new DeleteHostRequest { Host = host });
    }

    [Fact]
    public async Task CallerThatGivesUp_InterruptsItsCall_AsASignalWould()
    {
        const ulong tebibyte = 1UL << 40;
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.Default);
        MmapResponse memory = await daemon.Stubs.Processes.MmapAsync(new MmapRequest { Host = process.Host, Pid = process.Pid, Length = tebibyte, Prot = 3, Flags = 0x4022 });
        Assert.Equal(0, (await process.SetRegion(vm, new KvmUserspaceMemoryRegion2 { MemorySize = tebibyte, UserspaceAddr = memory.Addr })).Errno);
        Outcome vcpu = (await daemon.Stubs.Vm.CreateVcpuAsync(new CreateVcpuRequest { Host = process.Host, Pid = process.Pid, Fd = vm })).Outcome;
        var range = new PreFaultMemoryRequest { Host = process.Host, Pid = process.Pid, Fd = (int)vcpu.Value, Range = new KvmPreFaultMemory { Size = tebibyte } };

        // DEADLINE_EXCEEDED, or that the reply was cut.
        await Assert.ThrowsAnyAsync<Exception>(async () => await daemon.Stubs.Vcpu.PreFaultMemoryAsync(range, deadline: DateTime.UtcNow.AddSeconds(2)));

        // The host is free again. A call that did a part succeeds, and the caller is to come back with the rest.
        CallEvent call = (await daemon.Stubs.Inspect.ExplainAsync(new ExplainRequest { Host = process.Host, Revision = vcpu.Call + 1 })).Call;
        Assert.Contains(call.Outcome.ErrnoName, new[] { "", "EINTR" });
        Assert.Contains("PRE_FAULT", call.What, StringComparison.Ordinal);
    }

    [Fact]
    public async Task HostMadeToGoWhenEmpty_GoesWithItsLastProcess()
    {
        string host = (await daemon.Stubs.Hosts.CreateHostAsync(new CreateHostRequest { DeleteWhenEmpty = true })).Host.Host_;
        uint pid = (await daemon.Stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = host })).Pid;
        await daemon.Stubs.Processes.ExitProcessAsync(new ExitProcessRequest { Host = host, Pid = pid });
        RpcException thrown = await Assert.ThrowsAsync<RpcException>(async () => await daemon.Stubs.Hosts.GetHostAsync(new GetHostRequest { Host = host }));
        Assert.Equal(StatusCode.NotFound, thrown.StatusCode);
    }

    [Theory]
    [InlineData(0, 1)]
    [InlineData(1, 4096)]
    [InlineData(4095, 2)]
    [InlineData(100, 1_000_000)]
    public async Task Upload_IsReadBackByteForByte(int offset, int length)
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        ulong address = (await daemon.Stubs.Processes.MmapAsync(new MmapRequest { Host = process.Host, Pid = process.Pid, Length = 2 << 20, Prot = 3, Flags = 0x22 })).Addr;
        byte[] content = new byte[length];
        new Random(offset).NextBytes(content);

        Outcome stored = await Upload(process, address + (ulong)offset, content, chunk: 70_000);

        Assert.Equal((0, length), (stored.Errno, (int)stored.Value));
        ReadMemoryResponse read = await daemon.Stubs.Processes.ReadMemoryAsync(new ReadMemoryRequest
        {
            Host = process.Host,
            Pid = process.Pid,
            Addr = address + (ulong)offset,
            Length = (ulong)length,
        });
        Assert.Equal(content, read.Data.ToByteArray());
    }

    [Fact]
    public async Task Upload_ThatRunsOutOfTheMapping_SaysHowFarItCameAndWhy()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        ulong address = (await daemon.Stubs.Processes.MmapAsync(new MmapRequest { Host = process.Host, Pid = process.Pid, Length = 8192, Prot = 3, Flags = 0x22 })).Addr;
        Outcome stored = await Upload(process, address + 4096, new byte[10_000], chunk: 1000);
        Assert.Equal(("EFAULT", 4096L, "mm.not-mapped"), (stored.ErrnoName, stored.Value, stored.Causes[0].Rule));
    }

    [Fact]
    public async Task Upload_WithoutHeader_IsRefused()
    {
        using AsyncClientStreamingCall<UploadMemoryRequest, UploadMemoryResponse> call = daemon.Stubs.Processes.UploadMemory();
        await call.RequestStream.WriteAsync(new UploadMemoryRequest { Chunk = ByteString.CopyFrom(1) });
        await call.RequestStream.CompleteAsync();
        RpcException thrown = await Assert.ThrowsAsync<RpcException>(async () => await call);
        Assert.Equal(StatusCode.InvalidArgument, thrown.StatusCode);
    }

    private async Task<Outcome> Upload(BareProcess process, ulong address, byte[] content, int chunk)
    {
        using AsyncClientStreamingCall<UploadMemoryRequest, UploadMemoryResponse> call = daemon.Stubs.Processes.UploadMemory();
        await call.RequestStream.WriteAsync(new UploadMemoryRequest { Header = new UploadHeader { Host = process.Host, Pid = process.Pid, Addr = address } });
        for (int at = 0; at < content.Length; at += chunk)
        {
            await call.RequestStream.WriteAsync(new UploadMemoryRequest { Chunk = ByteString.CopyFrom(content, at, Math.Min(chunk, content.Length - at)) });
        }
        await call.RequestStream.CompleteAsync();
        return (await call).Outcome;
    }
}
