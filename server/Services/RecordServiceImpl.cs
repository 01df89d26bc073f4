using Grpc.Core;
using VmmService.Server.Sessions;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.RecordService. Recordings are kept with their hosts (<see cref="CallRecording"/>).</summary>
internal sealed class RecordServiceImpl(HostRegistry hosts) : RecordService.RecordServiceBase
{
    public override async Task GetRecording(GetRecordingRequest request, IServerStreamWriter<GetRecordingResponse> responseStream, ServerCallContext context)
    {
        ServedHost host = hosts.Get(request.Host);
        (IReadOnlyList<RecordedCall> calls, ulong lost) = host.Recording.Read();
        var header = new RecordingHeader { Profile = host.Sim.Profile.Id, Seed = host.Sim.Machine.Seed, Calls = (ulong)calls.Count, Lost = lost };
        await responseStream.WriteAsync(new GetRecordingResponse { Header = header }, context.CancellationToken);
        foreach (RecordedCall call in calls)
        {
            await responseStream.WriteAsync(new GetRecordingResponse { Call = call }, context.CancellationToken);
        }
    }
}
