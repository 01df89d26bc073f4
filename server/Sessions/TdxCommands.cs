using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine.Intel;
using VmmService.Server.Wire;
using VmmService.V1;
using TdxStatus = VmmService.V1.TdxStatus;

namespace VmmService.Server.Sessions;

/// <summary>Issues KVM_MEMORY_ENCRYPT_OP of a TD for a process: the command's structure is put into its scratch pages, as a VMM would put it on its stack.</summary>
internal sealed class TdxCommands(HostRegistry hosts, string host, Process process, int fd)
{
    /// <summary>More entries than the kernel ever has would be room that is not looked at.</summary>
    private const uint MostEntries = kvm_cpuid2.MAX_CPUID_ENTRIES;

    /// <summary>Room for CPUID entries.</summary>
    public static int Room(string field, uint nent) => nent <= MostEntries ? (int)nent : throw Refusals.BadField(field, $"{nent} entries; at most {MostEntries} are passed on");

    /// <summary>A command whose structure the kernel may write back to.</summary>
    public (Outcome Outcome, TdxStatus Tdx) Run<T>(TdxCmdId id, uint flags, ref T parameters)
        where T : unmanaged
    {
        byte[] structure = new byte[Marshal.SizeOf<T>()];
        MemoryMarshal.Write(structure, parameters);
        (Outcome Outcome, TdxStatus Tdx) answer = Run(id, flags, structure);
        parameters = MemoryMarshal.Read<T>(structure);
        return answer;
    }

    /// <summary>The same with the structure as bytes.</summary>
    public (Outcome Outcome, TdxStatus Tdx) Run(TdxCmdId id, uint flags, byte[] structure)
    {
        Scratch scratch = hosts.ScratchOf(host, process);
        scratch.Store(0, structure);
        (Outcome Outcome, TdxStatus Tdx) answer = Run(id, flags, scratch.Address);
        scratch.Load(0, structure.Length).CopyTo(structure, 0);
        return answer;
    }

    /// <summary>A command without a structure.</summary>
    public (Outcome Outcome, TdxStatus Tdx) Run(TdxCmdId id, uint flags, ulong data)
    {
        var cmd = new kvm_tdx_cmd { id = (uint)id, flags = flags, data = data };
        CallReport report = Structs.Ioctl(process, fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, ref cmd);
        return (Outcomes.Of(report, $"{id} on fd {fd}"), Of(cmd.hw_error));
    }

    private static TdxStatus Of(ulong hwError) => new() { HwError = hwError, HwErrorName = hwError == 0 ? "" : ((SimMachine.Intel.TdxStatus)hwError).Name() };
}
