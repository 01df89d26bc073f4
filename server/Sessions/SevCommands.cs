using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Sessions;

/// <summary>Issues KVM_MEMORY_ENCRYPT_OP for a process: the command's structure and blobs are put into its scratch pages, as a VMM would put them on its stack.</summary>
internal sealed class SevCommands(HostRegistry hosts, string host, Process process, int fd, int sevFd, int thread = 0)
{
    private const int StructureOffset = 0;

    /// <summary>Where blobs go in the scratch pages.</summary>
    public const int FirstBlobOffset = 4096;

    /// <summary>The largest blob that fits: firmware takes none longer than 16 KiB, and KVM must be able to refuse one that is.</summary>
    public const int MaxBlob = 5 * 4096;

    public const int SecondBlobOffset = FirstBlobOffset + MaxBlob;

    public const int ThirdBlobOffset = SecondBlobOffset + MaxBlob;

    public Scratch Scratch => hosts.ScratchOf(host, process, thread);

    /// <summary>A command whose structure the kernel may write back to.</summary>
    public (Outcome Outcome, SevStatus Sev) Run<T>(SevCmdId id, ref T parameters)
        where T : unmanaged
    {
        byte[] structure = new byte[Marshal.SizeOf<T>()];
        MemoryMarshal.Write(structure, parameters);
        Scratch.Store(StructureOffset, structure);
        (Outcome Outcome, SevStatus Sev) answer = Run(id, Scratch.Address + StructureOffset);
        parameters = MemoryMarshal.Read<T>(Scratch.Load(StructureOffset, structure.Length));
        return answer;
    }

    /// <summary>A command without a structure.</summary>
    public (Outcome Outcome, SevStatus Sev) Run(SevCmdId id, ulong data = 0)
    {
        // The dispatch takes the structure of the command itself from user memory, and a null argument for a probe.
        var cmd = new kvm_sev_cmd { id = (uint)id, data = data, sev_fd = (uint)sevFd };
        CallReport report = Structs.Ioctl(process, fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, ref cmd);
        return (Outcomes.Of(report, $"{id} on fd {fd}"), Outcomes.OfSev(cmd.error));
    }

    /// <summary>Puts a blob into the scratch pages; gives its address, 0 for none.</summary>
    public ulong Store(string field, Google.Protobuf.ByteString blob, int offset) => Store(Scratch, field, blob, offset);

    public static ulong Store(Scratch scratch, string field, Google.Protobuf.ByteString blob, int offset)
    {
        if (blob.Length > MaxBlob)
        {
            throw Refusals.BadField(field, $"{blob.Length} bytes; at most {MaxBlob} are passed on");
        }
        if (blob.IsEmpty)
        {
            return 0;
        }
        scratch.Store(offset, blob.Memory);
        return scratch.Address + (ulong)offset;
    }
}
