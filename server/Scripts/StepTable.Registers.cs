using SimKvm.Abi;
using VmmService.Server.Wire;

namespace VmmService.Server.Scripts;

// A vCPU's registers: what is named is changed, the rest stays as the kernel has it.
internal static partial class StepTable
{
    private static IEnumerable<StepAction> RegisterSteps =>
    [
        new(
            "set_regs", "KVM_GET_REGS and KVM_SET_REGS: the registers that are named", [Need("values", FieldKind.Map, "fields of KvmRegs, as {rdx: 0x600}"), Fd("vcpu", "vCPU")],
            (run, args) => Change<kvm_regs>(run, args, KvmIoctl.KVM_GET_REGS, KvmIoctl.KVM_SET_REGS, regs => VcpuStructs.ToAbi(Named(VcpuStructs.FromAbi(regs), args)))),
        new(
            "set_sregs", "KVM_GET_SREGS and KVM_SET_SREGS: the registers that are named", [Need("values", FieldKind.Map, "fields of KvmSregs, as {tr: {type: 11}}"), Fd("vcpu", "vCPU")],
            (run, args) => Change<kvm_sregs>(run, args, KvmIoctl.KVM_GET_SREGS, KvmIoctl.KVM_SET_SREGS, sregs => VcpuStructs.ToAbi(Named(VcpuStructs.FromAbi(sregs), args)))),
    ];

    private static T Named<T>(T message, StepArguments args)
        where T : Google.Protobuf.IMessage => ScriptDocument.Fill(message, args.Map("values"), args.Scope);

    private static StepResult Change<T>(ScriptRun run, StepArguments args, uint get, uint set, Func<T, T> change)
        where T : unmanaged
    {
        T registers = default;
        StepResult got = Ioctl(run, args.Fd(), get, ref registers);
        return got.Fact("errno")?.Show() == "OK" ? Ioctl(run, args.Fd(), set, change(registers)) : got;
    }
}
