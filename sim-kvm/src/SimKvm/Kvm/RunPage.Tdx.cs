using System.Buffers.Binary;

namespace SimKvm.Kvm;

// Exits of TDs: KVM_EXIT_TDX, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_INTERNAL_ERROR.
internal sealed partial class RunPage
{
    private const uint UnexpectedExitReason = 4;
    private const ulong InfoLeaf = (ulong)TdVmcallLeaf.GetTdVmCallInfo;

    // KVM_EXIT_TDX {flags, nr, then per leaf: ret and what belongs to it}.
    private const int TdxNrAt = UnionAt + 8;
    private const int TdxFieldsAt = UnionAt + 16;

    // KVM_EXIT_SYSTEM_EVENT {u32 type, u32 ndata, data} and KVM_EXIT_INTERNAL_ERROR {u32 suberror, u32 ndata, data}.
    private const int CountAt = UnionAt + 4;
    private const int DataAt = UnionAt + 8;

    /// <summary>What user space answered.</summary>
    public ulong TdxRet => TdxField(0);

    /// <summary>A field of the leaf's structure: 0 is ret.</summary>
    public ulong TdxField(int index) => ReadU64(TdxFieldsAt + (index * sizeof(ulong)));

    /// <summary>KVM_EXIT_TDX of a leaf with its answer preset.</summary>
    public void Tdx(ulong nr, ulong ret, params ReadOnlySpan<ulong> fields)
    {
        Exit(KvmExit.KVM_EXIT_TDX);
        WriteU64(UnionAt, 0);
        WriteU64(TdxNrAt, nr);
        WriteU64(TdxFieldsAt, ret);
        for (int i = 0; i < fields.Length; i++)
        {
            WriteU64(TdxFieldsAt + ((i + 1) * sizeof(ulong)), fields[i]);
        }
    }

    /// <summary>KVM_EXIT_TDX of GetTdVmCallInfo: leaf, then R11 to R14.</summary>
    public void TdVmCallInfo(ulong leaf) => Tdx(InfoLeaf, TdVmcallStatus.SUCCESS, leaf, 0, 0, 0, 0);

    /// <summary>KVM_EXIT_SYSTEM_EVENT.</summary>
    public void SystemEvent(uint type, ReadOnlySpan<ulong> data)
    {
        Exit(KvmExit.KVM_EXIT_SYSTEM_EVENT);
        WriteU32(UnionAt, type);
        WriteData(data);
    }

    /// <summary>KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: what the processor returned, and on which it was.</summary>
    public void UnexpectedExit(ulong reason)
    {
        Exit(KvmExit.KVM_EXIT_INTERNAL_ERROR);
        WriteU32(UnionAt, UnexpectedExitReason);
        WriteData([reason, 0]);
    }

    private void WriteData(ReadOnlySpan<ulong> data)
    {
        WriteU32(CountAt, (uint)data.Length);
        Span<byte> bytes = stackalloc byte[data.Length * sizeof(ulong)];
        for (int i = 0; i < data.Length; i++)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(bytes[(i * sizeof(ulong))..], data[i]);
        }
        Write(0, DataAt, bytes);
    }
}
