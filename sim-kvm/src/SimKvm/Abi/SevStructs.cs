using System.Runtime.InteropServices;

namespace SimKvm.Abi;

// Structures of KVM_MEMORY_ENCRYPT_OP (arch/x86/include/uapi/asm/kvm.h). Padding is never checked by KVM.

/// <summary>Argument of KVM_MEMORY_ENCRYPT_OP, 24 bytes. <c>error</c> is written only when firmware was asked.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_cmd
{
    public uint id;
    public uint pad0;

    /// <summary>User address of the command's structure.</summary>
    public ulong data;

    /// <summary>Out: firmware status.</summary>
    public uint error;
    public uint sev_fd;
}

/// <summary>kvm_sev_cmd.id</summary>
public enum SevCmdId : uint
{
    KVM_SEV_INIT = 0,
    KVM_SEV_ES_INIT = 1,
    KVM_SEV_LAUNCH_START = 2,
    KVM_SEV_LAUNCH_UPDATE_DATA = 3,
    KVM_SEV_LAUNCH_UPDATE_VMSA = 4,
    KVM_SEV_LAUNCH_SECRET = 5,
    KVM_SEV_LAUNCH_MEASURE = 6,
    KVM_SEV_LAUNCH_FINISH = 7,
    KVM_SEV_SEND_START = 8,
    KVM_SEV_SEND_UPDATE_DATA = 9,
    KVM_SEV_SEND_FINISH = 11,
    KVM_SEV_RECEIVE_START = 12,
    KVM_SEV_RECEIVE_UPDATE_DATA = 13,
    KVM_SEV_RECEIVE_FINISH = 15,
    KVM_SEV_GUEST_STATUS = 16,
    KVM_SEV_DBG_DECRYPT = 17,
    KVM_SEV_DBG_ENCRYPT = 18,
    KVM_SEV_GET_ATTESTATION_REPORT = 20,
    KVM_SEV_SEND_CANCEL = 21,
    KVM_SEV_INIT2 = 22,
    KVM_SEV_SNP_LAUNCH_START = 100,
    KVM_SEV_SNP_LAUNCH_UPDATE = 101,
    KVM_SEV_SNP_LAUNCH_FINISH = 102,
    KVM_SEV_SNP_ENABLE_REQ_CERTS = 103,
}

/// <summary>KVM_SEV_INIT2, 48 bytes.</summary>
[StructLayout(LayoutKind.Sequential, Size = 48)]
public struct kvm_sev_init
{
    public ulong vmsa_features;
    public uint flags;
    public ushort ghcb_version;
    public ushort pad1;
}

/// <summary>KVM_SEV_LAUNCH_START, 40 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_launch_start
{
    /// <summary>In: 0, or the guest whose key to share. Out: the new guest.</summary>
    public uint handle;
    public uint policy;
    public ulong dh_uaddr;
    public uint dh_len;
    public uint pad0;
    public ulong session_uaddr;
    public uint session_len;
    public uint pad1;
}

/// <summary>KVM_SEV_LAUNCH_UPDATE_DATA, 16 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_launch_update_data
{
    public ulong uaddr;
    public uint len;
    public uint pad0;
}

/// <summary>KVM_SEV_LAUNCH_SECRET, 48 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_launch_secret
{
    public ulong hdr_uaddr;
    public uint hdr_len;
    public uint pad0;
    public ulong guest_uaddr;
    public uint guest_len;
    public uint pad1;
    public ulong trans_uaddr;
    public uint trans_len;
    public uint pad2;
}

/// <summary>KVM_SEV_LAUNCH_MEASURE, 16 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_launch_measure
{
    public ulong uaddr;

    /// <summary>In: bytes of the buffer. Out: bytes of the measurement.</summary>
    public uint len;
    public uint pad0;
}

/// <summary>KVM_SEV_GUEST_STATUS, 12 bytes, out.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_guest_status
{
    public uint handle;
    public uint policy;
    public uint state;
}

/// <summary>KVM_SEV_DBG_DECRYPT and KVM_SEV_DBG_ENCRYPT, 24 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_dbg
{
    public ulong src_uaddr;
    public ulong dst_uaddr;
    public uint len;
    public uint pad0;
}

/// <summary>KVM_SEV_GET_ATTESTATION_REPORT, 32 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public unsafe struct kvm_sev_attestation_report
{
    public fixed byte mnonce[16];
    public ulong uaddr;

    /// <summary>In: bytes of the buffer. Out: bytes of the report.</summary>
    public uint len;
    public uint pad0;
}

/// <summary>KVM_SEV_SEND_START, 72 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_send_start
{
    /// <summary>Out: of the guest.</summary>
    public uint policy;
    public uint pad0;
    public ulong pdh_cert_uaddr;
    public uint pdh_cert_len;
    public uint pad1;
    public ulong plat_certs_uaddr;
    public uint plat_certs_len;
    public uint pad2;
    public ulong amd_certs_uaddr;
    public uint amd_certs_len;
    public uint pad3;
    public ulong session_uaddr;

    /// <summary>In: bytes of the buffer; 0 asks. Out: bytes of the session.</summary>
    public uint session_len;
    public uint pad4;
}

/// <summary>KVM_SEV_SEND_UPDATE_DATA, 48 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_send_update_data
{
    public ulong hdr_uaddr;

    /// <summary>In: bytes of the buffer; 0 asks. Out then: bytes of the header.</summary>
    public uint hdr_len;
    public uint pad0;
    public ulong guest_uaddr;
    public uint guest_len;
    public uint pad1;
    public ulong trans_uaddr;

    /// <summary>As hdr_len, of the packet.</summary>
    public uint trans_len;
    public uint pad2;
}

/// <summary>KVM_SEV_RECEIVE_UPDATE_DATA, 48 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_receive_update_data
{
    public ulong hdr_uaddr;
    public uint hdr_len;
    public uint pad0;
    public ulong guest_uaddr;
    public uint guest_len;
    public uint pad1;
    public ulong trans_uaddr;
    public uint trans_len;
    public uint pad2;
}

/// <summary>KVM_SEV_RECEIVE_START, 40 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sev_receive_start
{
    /// <summary>In: 0, or the guest whose key to share. Out: the new guest.</summary>
    public uint handle;
    public uint policy;
    public ulong pdh_uaddr;
    public uint pdh_len;
    public uint pad0;
    public ulong session_uaddr;
    public uint session_len;
    public uint pad1;
}

/// <summary>Argument of KVM_MEMORY_ENCRYPT_REG_REGION and UNREG_REGION, 16 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_enc_region
{
    public ulong addr;

    /// <summary>Bytes.</summary>
    public ulong size;
}

/// <summary>KVM_SEV_SNP_LAUNCH_START, 64 bytes.</summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
public unsafe struct kvm_sev_snp_launch_start
{
    public ulong policy;
    public fixed byte gosvw[16];
    public ushort flags;
}

/// <summary>KVM_SEV_SNP_LAUNCH_UPDATE, 64 bytes; written back with what is left to do.</summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
public struct kvm_sev_snp_launch_update
{
    public ulong gfn_start;
    public ulong uaddr;

    /// <summary>Bytes.</summary>
    public ulong len;
    public byte type;
    public byte pad0;
    public ushort flags;
}

/// <summary>KVM_SEV_SNP_LAUNCH_FINISH, 88 bytes.</summary>
[StructLayout(LayoutKind.Explicit, Size = 88)]
public unsafe struct kvm_sev_snp_launch_finish
{
    [FieldOffset(0)] public ulong id_block_uaddr;
    [FieldOffset(8)] public ulong id_auth_uaddr;
    [FieldOffset(16)] public byte id_block_en;
    [FieldOffset(17)] public byte auth_key_en;
    [FieldOffset(18)] public byte vcek_disabled;
    [FieldOffset(19)] public fixed byte host_data[32];
    [FieldOffset(54)] public ushort flags;
}
