using VmmService.V1;

namespace VmmService.Client;

// Private files of the designs before guest_memfd.
public sealed partial class RemoteProcess
{
    /// <summary>memfd_restricted(2), in profile RM22; the result is the descriptor's number.</summary>
    public KvmCall<MemfdRestrictedResponse, int> MemfdRestrictedAsync(uint flags = 0, CancellationToken cancellation = default) =>
        new(
            "memfd_restricted",
            Connection.Call(Connection.Stubs.Processes.MemfdRestrictedAsync(
                new MemfdRestrictedRequest { Host = Host.Id, Pid = Pid, Flags = flags }, cancellationToken: cancellation)),
            reply => reply.Outcome,
            reply => (int)reply.Outcome.Value);
}
