using Grpc.Core;
using Grpc.Health.V1;
using Xunit;
using ServingStatus = Grpc.Health.V1.HealthCheckResponse.Types.ServingStatus;

namespace VmmService.IntegrationTests.Contracts;

/// <summary>grpc.health.v1 through the generated client.</summary>
public sealed class HealthTests
{
    [Theory]
    [InlineData("")]
    [InlineData("contracts.Echo")]
    public async Task Check_KnownService_IsServing(string service)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect("unix");
        var answer = await new Health.HealthClient(channel).CheckAsync(new HealthCheckRequest { Service = service });
        Assert.Equal(ServingStatus.Serving, answer.Status);
    }

    [Fact]
    public async Task Check_UnknownService_IsNotFound()
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect("unix");
        var error = await Assert.ThrowsAsync<RpcException>(
            async () => await new Health.HealthClient(channel).CheckAsync(new HealthCheckRequest { Service = "none.Such" }));
        Assert.Equal(StatusCode.NotFound, error.StatusCode);
        Assert.Contains("none.Such", error.Status.Detail, StringComparison.Ordinal);
    }

    [Fact]
    public async Task List_HasEveryServiceAndTheServer()
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect("unix");
        server.Health.Set("contracts.Echo", ServingStatus.NotServing);
        var answer = await new Health.HealthClient(channel).ListAsync(new HealthListRequest());
        Assert.Equal(
            [("", ServingStatus.Serving), ("contracts.Echo", ServingStatus.NotServing)],
            answer.Statuses.OrderBy(pair => pair.Key, StringComparer.Ordinal).Select(pair => (pair.Key, pair.Value.Status)));
    }

    [Fact]
    public async Task Watch_TellsTheStateAndEachChange()
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect("unix");
        using var watch = new Health.HealthClient(channel).Watch(new HealthCheckRequest { Service = "late.Service" });
        Assert.Equal(ServingStatus.ServiceUnknown, await Next(watch));
        server.Health.Set("late.Service", ServingStatus.Serving);
        Assert.Equal(ServingStatus.Serving, await Next(watch));
        // Another service's change is not this one's: the next message must be the one after it.
        server.Health.Set("contracts.Echo", ServingStatus.NotServing);
        server.Health.Set("late.Service", ServingStatus.NotServing);
        Assert.Equal(ServingStatus.NotServing, await Next(watch));
    }

    [Fact]
    public async Task Watch_AtShutdown_TellsNotServingAndEnds()
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect("unix");
        using var watch = new Health.HealthClient(channel).Watch(new HealthCheckRequest());
        Assert.Equal(ServingStatus.Serving, await Next(watch));
        server.Health.Shutdown();
        Assert.Equal(ServingStatus.NotServing, await Next(watch));
        var error = await Assert.ThrowsAsync<RpcException>(() => watch.ResponseStream.MoveNext());
        Assert.Equal(StatusCode.Unavailable, error.StatusCode);
    }

    [Fact]
    public async Task Set_AfterShutdown_ChangesNothing()
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect("unix");
        server.Health.Shutdown();
        server.Health.Set("", ServingStatus.Serving);
        var answer = await new Health.HealthClient(channel).CheckAsync(new HealthCheckRequest());
        Assert.Equal(ServingStatus.NotServing, answer.Status);
    }

    private static async Task<ServingStatus> Next(AsyncServerStreamingCall<HealthCheckResponse> watch)
    {
        Assert.True(await watch.ResponseStream.MoveNext());
        return watch.ResponseStream.Current.Status;
    }
}
