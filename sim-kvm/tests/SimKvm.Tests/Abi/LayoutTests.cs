using System.Globalization;
using System.Runtime.InteropServices;
using SimKvm.Abi;
using Xunit;

namespace SimKvm.Tests;

/// <summary>Sizes and offsets of the structures of guest memory, SEV and TDX, typed in again from include/uapi/linux/kvm.h, psp-sev.h and arch/x86/include/uapi/asm/kvm.h.</summary>
public sealed class LayoutTests
{
    // Bytes of the structure, and of what comes before each field.
    public static TheoryData<string, int, string> Structures => new()
    {
        { "kvm_userspace_memory_region", 32, "slot 0, flags 4, guest_phys_addr 8, memory_size 16, userspace_addr 24" },
        { "kvm_userspace_memory_region2", 160, "slot 0, flags 4, guest_phys_addr 8, memory_size 16, userspace_addr 24, guest_memfd_offset 32, guest_memfd 40, pad1 44" },
        { "kvm_memory_attributes", 32, "address 0, size 8, attributes 16, flags 24" },
        { "kvm_memory_attributes2", 128, "offset 0, size 8, attributes 16, flags 24, error_offset 32, reserved 40" },
        { "kvm_pre_fault_memory", 64, "gpa 0, size 8, flags 16, padding 24" },
        { "kvm_create_guest_memfd", 64, "size 0, flags 8" },
        { "kvm_enable_cap", 104, "cap 0, flags 4, args0 8, args1 16, args2 24, args3 32" },
        { "kvm_device_attr", 24, "flags 0, group 4, attr 8, addr 16" },
        { "kvm_dirty_log", 16, "slot 0, dirty_bitmap 8" },
        { "kvm_clear_dirty_log", 24, "slot 0, num_pages 4, first_page 8, dirty_bitmap 16" },
        { "kvm_enc_region", 16, "addr 0, size 8" },

        { "kvm_sev_cmd", 24, "id 0, data 8, error 16, sev_fd 20" },
        { "kvm_sev_init", 48, "vmsa_features 0, flags 8, ghcb_version 12" },
        { "kvm_sev_launch_start", 40, "handle 0, policy 4, dh_uaddr 8, dh_len 16, session_uaddr 24, session_len 32" },
        { "kvm_sev_launch_update_data", 16, "uaddr 0, len 8" },
        { "kvm_sev_launch_secret", 48, "hdr_uaddr 0, hdr_len 8, guest_uaddr 16, guest_len 24, trans_uaddr 32, trans_len 40" },
        { "kvm_sev_launch_measure", 16, "uaddr 0, len 8" },
        { "kvm_sev_guest_status", 12, "handle 0, policy 4, state 8" },
        { "kvm_sev_dbg", 24, "src_uaddr 0, dst_uaddr 8, len 16" },
        { "kvm_sev_attestation_report", 32, "mnonce 0, uaddr 16, len 24" },
        {
            "kvm_sev_send_start", 72,
            "policy 0, pdh_cert_uaddr 8, pdh_cert_len 16, plat_certs_uaddr 24, plat_certs_len 32, amd_certs_uaddr 40, amd_certs_len 48, session_uaddr 56, session_len 64"
        },
        { "kvm_sev_send_update_data", 48, "hdr_uaddr 0, hdr_len 8, guest_uaddr 16, guest_len 24, trans_uaddr 32, trans_len 40" },
        { "kvm_sev_receive_start", 40, "handle 0, policy 4, pdh_uaddr 8, pdh_len 16, session_uaddr 24, session_len 32" },
        { "kvm_sev_receive_update_data", 48, "hdr_uaddr 0, hdr_len 8, guest_uaddr 16, guest_len 24, trans_uaddr 32, trans_len 40" },
        { "kvm_sev_snp_launch_start", 64, "policy 0, gosvw 8, flags 24" },
        { "kvm_sev_snp_launch_update", 64, "gfn_start 0, uaddr 8, len 16, type 24, pad0 25, flags 26" },
        {
            "kvm_sev_snp_launch_finish", 88,
            "id_block_uaddr 0, id_auth_uaddr 8, id_block_en 16, auth_key_en 17, vcek_disabled 18, host_data 19, flags 54"
        },

        { "sev_issue_cmd", 16, "cmd 0, data 4, error 12" },
        { "sev_user_data_status", 12, "api_major 0, api_minor 1, state 2, flags 3, build 7, guest_count 8" },
        { "sev_user_data_pek_csr", 12, "address 0, length 8" },
        { "sev_user_data_pek_cert_import", 24, "pek_cert_address 0, pek_cert_len 8, oca_cert_address 12, oca_cert_len 20" },
        { "sev_user_data_pdh_cert_export", 24, "pdh_cert_address 0, pdh_cert_len 8, cert_chain_address 12, cert_chain_len 20" },
        { "sev_user_data_get_id2", 12, "address 0, length 8" },
        {
            "sev_user_data_snp_status", 32,
            "api_major 0, api_minor 1, state 2, is_rmp_initialized 3, build_id 4, flags 8, guest_count 12, current_tcb_version 16, reported_tcb_version 24"
        },
        { "sev_user_data_snp_config", 64, "reported_tcb 0, mask 8" },
        { "sev_user_data_snp_vlek_load", 16, "len 0, vlek_wrapped_version 4, vlek_wrapped_address 8" },

        { "kvm_tdx_cmd", 24, "id 0, flags 4, data 8, hw_error 16" },
        {
            "kvm_tdx_capabilities", 2056,
            "supported_attrs 0, supported_xfam 8, kernel_tdvmcallinfo_1_r11 16, user_tdvmcallinfo_1_r11 24, kernel_tdvmcallinfo_1_r12 32, user_tdvmcallinfo_1_r12 40, reserved 48, cpuid 2048"
        },
        { "kvm_tdx_init_vm", 264, "attributes 0, xfam 8, mrconfigid 16, mrowner 64, mrownerconfig 112, reserved 160, cpuid 256" },
        { "kvm_tdx_init_mem_region", 24, "source_addr 0, gpa 8, nr_pages 16" },
    };

    [Theory]
    [MemberData(nameof(Structures))]
    public void Structure_IsTheKernels(string name, int size, string fields)
    {
        Type structure = typeof(kvm_sev_cmd).Assembly.GetType($"{typeof(kvm_sev_cmd).Namespace}.{name}", throwOnError: true)!;
        Assert.Equal(size, Marshal.SizeOf(structure));
        foreach (string[] field in fields.Split(", ").Select(each => each.Split(' ')))
        {
            Assert.Equal((field[0], int.Parse(field[1], CultureInfo.InvariantCulture)), (field[0], (int)Marshal.OffsetOf(structure, field[0])));
        }
    }
}
