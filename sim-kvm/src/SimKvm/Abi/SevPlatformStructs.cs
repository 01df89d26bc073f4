using System.Runtime.InteropServices;

namespace SimKvm.Abi;

// The ioctl of /dev/sev (include/uapi/linux/psp-sev.h). All structures are packed.

/// <summary>Numbers of /dev/sev.</summary>
public static class SevIoctl
{
    public const uint SEV_ISSUE_CMD = 0xC0105300;
}

/// <summary>sev_issue_cmd.cmd</summary>
public enum SevPlatformCommand : uint
{
    SEV_FACTORY_RESET = 0,
    SEV_PLATFORM_STATUS = 1,
    SEV_PEK_GEN = 2,
    SEV_PEK_CSR = 3,
    SEV_PDH_GEN = 4,
    SEV_PDH_CERT_EXPORT = 5,
    SEV_PEK_CERT_IMPORT = 6,
    SEV_GET_ID = 7,
    SEV_GET_ID2 = 8,
    SNP_PLATFORM_STATUS = 9,
    SNP_COMMIT = 10,
    SNP_SET_CONFIG = 11,
    SNP_VLEK_LOAD = 12,
}

/// <summary>Argument of SEV_ISSUE_CMD, 16 bytes.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct sev_issue_cmd
{
    public uint cmd;

    /// <summary>User address of the command's structure.</summary>
    public ulong data;

    /// <summary>Out: firmware status.</summary>
    public uint error;
}

/// <summary>SEV_PLATFORM_STATUS, 12 bytes, out.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct sev_user_data_status
{
    public byte api_major;
    public byte api_minor;

    /// <summary>0 uninitialised, 1 initialised, 2 working.</summary>
    public byte state;

    /// <summary>Bit 0: the platform has an owner; 8: SEV-ES is initialised.</summary>
    public uint flags;
    public byte build;
    public uint guest_count;
}

/// <summary>SEV_PEK_CSR, 12 bytes.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct sev_user_data_pek_csr
{
    public ulong address;

    /// <summary>In: bytes of the buffer; 0 asks. Out: bytes of the request.</summary>
    public uint length;
}

/// <summary>SEV_PEK_CERT_IMPORT, 24 bytes, in.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct sev_user_data_pek_cert_import
{
    public ulong pek_cert_address;
    public uint pek_cert_len;
    public ulong oca_cert_address;
    public uint oca_cert_len;
}

/// <summary>SEV_PDH_CERT_EXPORT, 24 bytes.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct sev_user_data_pdh_cert_export
{
    public ulong pdh_cert_address;

    /// <summary>In: bytes of the buffer; 0 asks. Out: bytes of the certificate.</summary>
    public uint pdh_cert_len;
    public ulong cert_chain_address;

    /// <summary>In: bytes of the buffer. Out: bytes of PEK, OCA and CEK together.</summary>
    public uint cert_chain_len;
}

/// <summary>SEV_GET_ID2, 12 bytes.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct sev_user_data_get_id2
{
    public ulong address;

    /// <summary>In: bytes of the buffer. Out: bytes of the id.</summary>
    public uint length;
}

/// <summary>SNP_PLATFORM_STATUS, 32 bytes, out.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct sev_user_data_snp_status
{
    public byte api_major;
    public byte api_minor;
    public byte state;

    /// <summary>Bit 0: the RMP is initialised.</summary>
    public byte is_rmp_initialized;
    public uint build_id;

    /// <summary>0 mask_chip_id, 1 mask_chip_key, 2 vlek_en, 3 feature_info, 4 rapl_dis, 5 ciphertext_hiding_cap, 6 ciphertext_hiding_en.</summary>
    public uint flags;
    public uint guest_count;
    public ulong current_tcb_version;
    public ulong reported_tcb_version;
}

/// <summary>SNP_SET_CONFIG, 64 bytes, in.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1, Size = 64)]
public struct sev_user_data_snp_config
{
    /// <summary>0 is the current one.</summary>
    public ulong reported_tcb;

    /// <summary>0 mask_chip_id, 1 mask_chip_key; the rest must be 0.</summary>
    public uint mask;
}

/// <summary>SNP_VLEK_LOAD, 16 bytes, in.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct sev_user_data_snp_vlek_load
{
    /// <summary>Of this structure.</summary>
    public uint len;
    public byte vlek_wrapped_version;
    public byte rsvd0;
    public byte rsvd1;
    public byte rsvd2;

    /// <summary>User address of 432 bytes.</summary>
    public ulong vlek_wrapped_address;
}
