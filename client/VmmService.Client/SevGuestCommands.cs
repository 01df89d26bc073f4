using Grpc.Core;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// Commands of KVM_MEMORY_ENCRYPT_OP on a SEV or SEV-ES guest, issued through an open /dev/sev. Each method is one command. Errors carry the firmware's status in
/// <see cref="KvmException.FirmwareStatus"/>.
/// </summary>
public abstract class SevGuestCommands
{
    private readonly Vm _vm;
    private readonly SevDevice _sev;

    private protected SevGuestCommands(Vm vm, SevDevice sev)
    {
        _vm = vm;
        _sev = sev;
    }

    private protected SevLegacyService.SevLegacyServiceClient Stub => _vm.Process.Connection.Stubs.SevLegacy;

    private protected string Host => _vm.Process.Host.Id;

    private protected uint Pid => _vm.Process.Pid;

    private protected int Fd => _vm.Fd;

    private protected int SevFd => _sev.Fd;

    private protected KvmCall<TReply, TResult> Call<TReply, TResult>(
        string operation, AsyncUnaryCall<TReply> call, Func<TReply, Outcome> outcome, Func<TReply, TResult> result, Func<TReply, SevStatus?> status)
        where TReply : class =>
        new(operation, _vm.Process.Connection.Call(call), outcome, result, status);
}
