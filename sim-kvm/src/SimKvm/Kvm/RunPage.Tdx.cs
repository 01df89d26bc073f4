namespace SimKvm.Kvm;

// KVM_EXIT_TDX.
internal sealed partial class RunPage
{
    private const ulong InfoLeaf = (ulong)TdVmcallLeaf.GetTdVmCallInfo;

    // KVM_EXIT_TDX {flags, nr, then per leaf: ret and what belongs to it}.
    private const int TdxNrAt = UnionAt + 8;
    private const int TdxFieldsAt = UnionAt + 16;

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
}
