using System.Globalization;
using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
using SimKvm;
using VmmService.IntegrationTests.Service.Fuzzing;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Service;

/// <summary>
/// Random requests to a daemon of its own: no answer is our bug (UNKNOWN, INTERNAL), none fails to come, the simulated hosts hang together afterwards, nothing is left when
/// they are gone, and a launch still gives the digest that it gave before.
/// </summary>
/// <remarks>VMM_FUZZ_COUNT raises the number of rounds; VMM_FUZZ_SEED runs one round.</remarks>
public sealed class FuzzTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const int CallsOfARound = 300;

    private static readonly int s_count = int.Parse(Environment.GetEnvironmentVariable("VMM_FUZZ_COUNT") ?? "12", CultureInfo.InvariantCulture);

    private static readonly string[] s_profiles = ["K72", "K618", "K616", "IP8", "GM23", "NEXTHOOK", "POP24", "MAP24v1"];

    public static IEnumerable<int> Seeds => Environment.GetEnvironmentVariable("VMM_FUZZ_SEED") is { } seed
        ? [int.Parse(seed, CultureInfo.InvariantCulture)]
        : Enumerable.Range(1, s_count);

    [Fact]
    public async Task EveryRpc_WithRandomMessages_AnswersAndBreaksNothing()
    {
        Assert.SkipWhen(daemon.App is null, "the daemon under test is not to be fuzzed: it may have other clients");
        string digest = await LaunchDigest();
        var rpc = new AnyRpc(daemon.Connection.Stubs.Invoker);
        foreach (int seed in Seeds)
        {
            var dice = new Dice(seed);
            FuzzedHost host = await FuzzedHost.Start(daemon, dice.Pick(s_profiles));
            for (int i = 0; i < CallsOfARound; i++)
            {
                // What exits or deletes what the others are to talk to comes seldom.
                MethodDescriptor method = dice.Pick(AnyRpc.All);
                if (method.Name is "DeleteHost" or "ExitProcess" or "AttachProcess" && !dice.OneIn(20))
                {
                    continue;
                }
                IMessage? last = null;
                Status status = await rpc.Call(method, dice, () => last = RandomMessage.Make(method.InputType, dice, host.Targets));
                Assert.False(IsOurBug(status.StatusCode), $"VMM_FUZZ_SEED={seed}, call {i}: {method.FullName} {last}: {status}");
            }
            await host.CheckAndDelete();
            Assert.Equal(digest, await LaunchDigest());
        }
    }

    [Fact]
    public async Task RawIoctls_WithRandomNumbersAndBytes_AnswerAndBreakNothing()
    {
        Assert.SkipWhen(daemon.App is null, "the daemon under test is not to be fuzzed: it may have other clients");
        string digest = await LaunchDigest();
        foreach (int seed in Seeds)
        {
            var dice = new Dice(seed);
            FuzzedHost host = await FuzzedHost.Start(daemon, dice.Pick(s_profiles));
            for (int i = 0; i < CallsOfARound; i++)
            {
                RawIoctlRequest request = Ioctl(dice, host);
                try
                {
                    RawIoctlResponse response = await daemon.Stubs.Processes.RawIoctlAsync(request, deadline: DateTime.UtcNow.AddSeconds(60));
                    Assert.Equal(request.Data.Length, response.Data.Length);
                    Assert.True(response.Outcome.Errno == 0 || response.Outcome.Causes.Count > 0, $"VMM_FUZZ_SEED={seed}, call {i}: {request}: {response.Outcome.ErrnoName} without a cause");
                }
                catch (RpcException failed)
                {
                    Assert.False(IsOurBug(failed.StatusCode), $"VMM_FUZZ_SEED={seed}, call {i}: {request}: {failed.Status}");
                }
            }
            await host.CheckAndDelete();
            Assert.Equal(digest, await LaunchDigest());
        }
    }

    private static RawIoctlRequest Ioctl(Dice dice, FuzzedHost host)
    {
        IoctlRow row = dice.Pick(IoctlTable.All);
        uint number = dice.OneIn(10) ? unchecked((uint)dice.Number()) : dice.OneIn(10) ? row.Request ^ (1u << dice.Next(32)) : row.Request;
        int size = row.ArgumentSize + (dice.OneIn(3) ? 40 * dice.Next(5) : 0);
        int given = dice.OneIn(8) ? dice.Next(size + 1) : dice.OneIn(8) ? size + dice.Next(64) : size;
        var request = new RawIoctlRequest { Host = host.Targets.Host, Pid = host.Targets.Pid, Fd = dice.Pick(host.Targets.Fds), Request = number };
        if (row.ArgumentSize == 0 || dice.OneIn(6))
        {
            request.Arg = dice.OneIn(2) ? dice.Number() : host.Memory + (ulong)dice.Next(17 << 12);
        }
        else
        {
            request.Data = ByteString.CopyFrom(dice.Struct(given));
        }
        return request;
    }

    private static bool IsOurBug(StatusCode code) =>
        code is StatusCode.Unknown or StatusCode.Internal or StatusCode.DeadlineExceeded or StatusCode.Unavailable or StatusCode.DataLoss or StatusCode.Unimplemented or StatusCode.Aborted;

    // A launch as a client makes it.
    private async Task<string> LaunchDigest()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await process.StartSnpVm();
        Assert.Equal(0, (await vm.Update(0, 8192, SnpPageType.Normal, SnpVm.Page(0x5a, 2))).Outcome.Errno);
        return (await vm.Describe()).Sev.LaunchDigest;
    }
}
