using Grpc.Core;
using Grpc.Health.V1;
using VmmService.Server.Wire;
using ServingStatus = Grpc.Health.V1.HealthCheckResponse.Types.ServingStatus;

namespace VmmService.Server.Health;

/// <summary>grpc.health.v1 over <see cref="HealthStatus"/>, which holds all there is to know.</summary>
public sealed class HealthService(HealthStatus health) : Grpc.Health.V1.Health.HealthBase
{
    /// <exception cref="RpcException">NOT_FOUND: no such service.</exception>
    public override Task<HealthCheckResponse> Check(HealthCheckRequest request, ServerCallContext context)
    {
        var status = health.Get(request.Service)
            ?? throw new RpcException(new Status(StatusCode.NotFound, $"No service is named '{Refusals.Bounded(request.Service)}'."));
        return Task.FromResult(new HealthCheckResponse { Status = status });
    }

    public override Task<HealthListResponse> List(HealthListRequest request, ServerCallContext context)
    {
        var response = new HealthListResponse();
        foreach (var (service, status) in health.All()) response.Statuses.Add(service, new HealthCheckResponse { Status = status });
        return Task.FromResult(response);
    }

    /// <summary>
    /// Writes the state and each change of it. Ends with the caller, or with UNAVAILABLE after the last change, when the server shuts down.
    /// </summary>
    public override async Task Watch(HealthCheckRequest request, IServerStreamWriter<HealthCheckResponse> responseStream, ServerCallContext context)
    {
        ServingStatus? written = null;
        while (true)
        {
            var (found, isLast, changed) = health.Observe(request.Service);
            var status = found ?? ServingStatus.ServiceUnknown;
            if (status != written)
            {
                await responseStream.WriteAsync(new HealthCheckResponse { Status = status }, context.CancellationToken);
                written = status;
            }

            if (isLast) throw new RpcException(new Status(StatusCode.Unavailable, "The server is shutting down."));
            try
            {
                await changed.WaitAsync(context.CancellationToken);
            }
            catch (OperationCanceledException) when (context.CancellationToken.IsCancellationRequested)
            {
                // The caller has gone: that is how a watch is meant to end.
                return;
            }
        }
    }
}
