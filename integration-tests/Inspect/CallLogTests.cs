using Grpc.Core;
using SimKvm.Auditing;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Inspect;

/// <summary>Watch and Explain: the calls of a host as they come, and afterwards.</summary>
public sealed class CallLogTests(Daemon daemon) : IClassFixture<Daemon>
{
    [Fact]
    public async Task Watch_GivesEveryCallInOrderWithItsOutcome()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.SwProtected);
        Outcome refused = await process.SetAttributes(vm, 1, 4096, 8);

        List<CallEvent> calls = await Calls(process, new WatchRequest { Host = process.Host });

        Assert.Equal([1ul, 2, 3], calls.Select(call => call.Revision));
        Assert.Equal(["open /dev/kvm", "KVM_CREATE_VM on fd 3", "KVM_SET_MEMORY_ATTRIBUTES on fd 4"], calls.Select(call => call.What));
        Assert.All(calls, call => Assert.Equal(process.Pid, call.Pid));
        Assert.Equal(refused, calls[2].Outcome);
        Assert.All(calls, call => Assert.Empty(call.Steps));
    }

    [Fact]
    public async Task Watch_FromARevision_BeginsThere()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        await process.CreateVm(VmType.Default);
        Assert.Equal([2ul], (await Calls(process, new WatchRequest { Host = process.Host, FromRevision = 2 })).Select(call => call.Revision));
        Assert.Empty(await Calls(process, new WatchRequest { Host = process.Host, FromRevision = 99 }));
    }

    [Fact]
    public async Task Watch_WithSteps_HasThoseOfTheCall()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(VmType.SwProtected);
        await process.SetAttributes(vm, 0, 8192, 8);

        CallEvent call = (await Calls(process, new WatchRequest { Host = process.Host, FromRevision = 3, Steps = true })).Single();

        Assert.Equal(("ioctl enter", "ioctl exit"), (call.Steps[0].Label, call.Steps[^1].Label));
        JournalStep stored = Assert.Single(call.Steps, step => step.Label == "attributes stored");
        Assert.Equal((0ul, 2ul), (stored.A, stored.B));
        Assert.Equal(Enumerable.Range(0, call.Steps.Count).Select(i => call.Steps[0].Step + (ulong)i), call.Steps.Select(step => step.Step));
        Assert.False(call.StepsDropped);
    }

    [Fact]
    public async Task Watch_Following_GetsCallsAsTheyAreMadeAndEndsWithTheHost()
    {
        BareProcess process = await BareProcess.Start(daemon.Stubs);
        using AsyncServerStreamingCall<WatchResponse> watch = daemon.Stubs.Inspect.Watch(new WatchRequest { Host = process.Host, FromRevision = 2, Follow = true });
        for (ulong revision = 2; revision < 40; revision++)
        {
            Task<bool> next = watch.ResponseStream.MoveNext(CancellationToken.None);
            await process.Open(revision % 2 == 0 ? "/dev/kvm" : "/dev/null");
            Assert.True(await next);
            Assert.Equal(revision, watch.ResponseStream.Current.Call.Revision);
        }
        await process.DisposeAsync();
        while (await watch.ResponseStream.MoveNext(CancellationToken.None))
        {
            Assert.Equal("exit", watch.ResponseStream.Current.Call.What);
        }
    }

    [Fact]
    public async Task Watch_ClientThatCancels_GetsCancelledAndTheHostGoesOn()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        using var cancellation = new CancellationTokenSource();
        using AsyncServerStreamingCall<WatchResponse> watch = daemon.Stubs.Inspect.Watch(new WatchRequest { Host = process.Host, Follow = true }, cancellationToken: cancellation.Token);
        Assert.True(await watch.ResponseStream.MoveNext(CancellationToken.None));
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<Exception>(() => watch.ResponseStream.MoveNext(CancellationToken.None));
        Assert.Equal(0, (await process.Open("/dev/kvm")).Errno);
    }

    [Fact]
    public async Task Watch_OfWhatIsNoLongerKept_SaysWhereItGoesOn()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        await using RemoteScript script = await daemon.Connection.StartScriptAsync(new ScriptHeader { Host = process.Host });
        await script.SendStepAsync($"repeat: {{times: {CallLog.Kept + 9}, steps: [{{munmap: {{addr: 0, length: 4KiB}}}}]}}");
        await script.CompleteAsync();
        await Scripts.ScriptOutcome.ReadAll(script);

        using AsyncServerStreamingCall<WatchResponse> watch = daemon.Stubs.Inspect.Watch(new WatchRequest { Host = process.Host, FromRevision = 1 });
        Assert.True(await watch.ResponseStream.MoveNext(CancellationToken.None));
        CallsDropped dropped = watch.ResponseStream.Current.Dropped;
        ulong next = dropped.FirstAvailable;
        while (await watch.ResponseStream.MoveNext(CancellationToken.None))
        {
            Assert.Equal(next++, watch.ResponseStream.Current.Call.Revision);
        }
        Assert.Equal(1ul, dropped.First);
        Assert.Equal((ulong)CallLog.Kept, next - dropped.FirstAvailable);

        RpcException gone = await Assert.ThrowsAsync<RpcException>(async () => await daemon.Stubs.Inspect.ExplainAsync(new ExplainRequest { Host = process.Host, Revision = 1 }));
        Assert.Equal(StatusCode.NotFound, gone.StatusCode);
        Assert.Contains($"{dropped.FirstAvailable} to {next - 1}", gone.Status.Detail, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Explain_GivesTheOutcomeOfThenWithItsCauses()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await process.StartSnpVm();
        SnpLaunchUpdateResponse refused = await vm.Update(0x300, 4096, SnpPageType.Normal, SnpVm.Page(1));
        await process.Open("/dev/kvm");

        CallEvent call = (await daemon.Stubs.Inspect.ExplainAsync(new ExplainRequest { Host = process.Host, Revision = refused.Outcome.Call })).Call;

        Assert.Equal(refused.Outcome, call.Outcome);
        Assert.Contains(call.Steps, step => step.Step == refused.Outcome.Causes[0].Step || step.Step == refused.Outcome.Causes[0].Step + 1);
    }

    [Theory]
    [InlineData(0ul)]
    [InlineData(2ul)]
    [InlineData(ulong.MaxValue)]
    public async Task Explain_OfARevisionThatNeverWas_IsNotFound(ulong revision)
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        RpcException unknown = await Assert.ThrowsAsync<RpcException>(async () => await daemon.Stubs.Inspect.ExplainAsync(new ExplainRequest { Host = process.Host, Revision = revision }));
        Assert.Equal(StatusCode.NotFound, unknown.StatusCode);
        Assert.Contains("revisions 1 to 1 are kept", unknown.Status.Detail, StringComparison.Ordinal);
    }

    private static async Task<List<CallEvent>> Calls(BareProcess process, WatchRequest request)
    {
        var calls = new List<CallEvent>();
        using AsyncServerStreamingCall<WatchResponse> watch = process.Stubs.Inspect.Watch(request);
        while (await watch.ResponseStream.MoveNext(CancellationToken.None))
        {
            calls.Add(watch.ResponseStream.Current.Call);
        }
        return calls;
    }
}
