using System.Globalization;
using Microsoft.Extensions.DependencyInjection;
using SimMachine.Intel;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.Server.Sessions;
using VmmService.V1;
using Xunit;
using TdcallRegisters = VmmService.V1.TdcallRegisters;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>
/// SEAMCALLs, TDCALLs, guest accesses and page traffic at random, over gRPC: the module answers each with a status, its records stay whole, and closing the descriptor leaves
/// nothing behind. A seed that fails repeats.
/// </summary>
public sealed class TdxModuleFuzzTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const int Steps = 400;
    private const ulong Private = 0x20_0000;

    /// <summary>VMM_FUZZ_COUNT raises the number of rounds.</summary>
    public static TheoryData<int> Seeds => [.. Enumerable.Range(1, int.Parse(Environment.GetEnvironmentVariable("VMM_FUZZ_COUNT") ?? "12", CultureInfo.InvariantCulture))];

    [Theory]
    [MemberData(nameof(Seeds))]
    public async Task AnyCalls_AreAnsweredAndLeaveTheModuleWhole(int seed)
    {
        Assert.SkipUnless(daemon.App is not null, "the host's records are looked at, so the daemon has to run in this process");
        var random = new Random(seed);
        await using HandmadeTd td = await HandmadeTd.Build(daemon, vcpus: 2);
        await td.Add(Private, new byte[4096]);
        List<ulong> pages = [td.Tdr, .. td.Vcpus, .. await td.Module.AllocateAsync(24), .. await td.Module.AllocateAsync(1, huge: true)];
        for (int step = 0; step < Steps; step++)
        {
            await Act(td, random, pages);
            if (step % 50 == 0)
            {
                Check(td);
            }
        }
        await td.Module.CloseAsync();
        Check(td);
        Host after = await td.Host.GetStateAsync();
        Assert.InRange(after.AllocatedPages, 0ul, 1ul);
        Assert.Equal(0ul, after.LeakedPages);
    }

    // What there is to be said of a page that nobody wrote to is a status, whichever it is; what a call cannot be is INVALID_ARGUMENT.
    private static async Task Act(HandmadeTd td, Random random, List<ulong> pages)
    {
        switch (random.Next(12))
        {
            case 0:
                await td.Module.TdcallAsync(Pick(random, pages), new TdcallRegisters { Rax = Leaf<TdcallLeaf>(random), Rcx = Operand(random, pages), Rdx = Operand(random, pages), R8 = (ulong)random.Next(2) }).Reply;
                break;
            case 1:
                await td.Module.LoadAsync(Pick(random, pages), Private + ((ulong)random.Next(4) << 12), 16).Reply;
                break;
            case 2:
                await td.Module.KickAsync(Pick(random, pages)).Reply;
                break;
            case 3 when random.Next(4) == 0:
                await td.Module.FreeAsync([Pick(random, pages)]).Reply;
                break;
            case 4:
                await td.Module.WriteAsync(Pick(random, pages), HandmadeTd.Params()).Reply;
                break;
            default:
                var registers = new TdcallRegisters { Rax = Leaf<SeamcallLeaf>(random), Rcx = Operand(random, pages), Rdx = Operand(random, pages), R8 = Operand(random, pages), R9 = Operand(random, pages) };
                SeamcallResponse answer = await td.Module.SeamcallAsync(registers).Reply;
                Assert.True(answer.Outcome.ErrnoName is "" or "EIO" or "EPERM", answer.Outcome.Text);
                Assert.False(answer.StatusName.StartsWith("unknown", StringComparison.Ordinal), answer.StatusName);
                break;
        }
    }

    private static ulong Leaf<T>(Random random)
        where T : struct, Enum => Convert.ToUInt64(Enum.GetValues<T>()[random.Next(Enum.GetValues<T>().Length)], null);

    private static ulong Pick(Random random, List<ulong> pages) => pages[random.Next(pages.Count)];

    // A page of ours, a mapping or an address of private memory, a small number, or anything.
    private static ulong Operand(Random random, List<ulong> pages) => random.Next(10) switch
    {
        < 5 => Pick(random, pages),
        < 8 => (Private + ((ulong)random.Next(3) << (12 + (9 * random.Next(2))))) | (uint)random.Next(4),
        8 => (ulong)random.Next(64),
        _ => (ulong)random.NextInt64(),
    };

    private void Check(HandmadeTd td) => daemon.App!.Services.GetRequiredService<HostRegistry>().Get(td.Host.Id).Run(sim =>
    {
        sim.CheckInvariants();
        return true;
    });
}
