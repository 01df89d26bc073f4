using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>Commands of KVM_MEMORY_ENCRYPT_OP as a VMM issues them: the structure on its stack, which the scratch pages stand for, contents in memory of their own.</summary>
internal static class SevCommands
{
    // Places in the scratch pages: the command's structure, and the two blocks of LAUNCH_FINISH.
    public const int StructureOffset = 0;
    public const int IdBlockOffset = 4096;
    public const int IdAuthOffset = 2 * 4096;

    /// <summary>One command. Call it from inside <see cref="HostRegistry.RunOn{T}"/>.</summary>
    public static (Outcome Outcome, SevStatus Sev) Run<T>(HostRegistry hosts, string host, Process process, int fd, int sevFd, SevCmdId id, ref T parameters)
        where T : unmanaged
    {
        Scratch scratch = hosts.ScratchOf(host, process);
        byte[] structure = new byte[Marshal.SizeOf<T>()];
        MemoryMarshal.Write(structure, parameters);
        scratch.Store(StructureOffset, structure);
        var cmd = new kvm_sev_cmd { id = (uint)id, data = scratch.Address + StructureOffset, sev_fd = (uint)sevFd };
        CallReport report = Structs.Ioctl(process, fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, ref cmd);
        parameters = MemoryMarshal.Read<T>(scratch.Load(StructureOffset, structure.Length));
        return (Outcomes.Of(report, $"{id} on fd {fd}"), Outcomes.OfSev(cmd.error));
    }

    /// <summary>Maps memory for a content and stores it there; the address.</summary>
    public static ulong Stage(Process process, byte[] content)
    {
        const uint readWrite = 3, privateAnonymous = 0x22;
        CallReport mapped = process.Mmap(0, (ulong)content.Length, readWrite, privateAnonymous, -1, 0);
        if (!mapped.Succeeded || !process.Write((ulong)mapped.Value, content).Succeeded)
        {
            throw Refusals.OverQuota("content", $"the process has no room for {content.Length} bytes; give the host more memory_bytes");
        }
        return (ulong)mapped.Value;
    }
}
