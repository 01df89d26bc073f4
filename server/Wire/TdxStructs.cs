using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Google.Protobuf;
using SimKvm.Abi;
using VmmService.V1;

namespace VmmService.Server.Wire;

/// <summary>Structures of TDX commands that end in CPUID entries.</summary>
internal static class TdxStructs
{
    private const int MeasurementSize = 48;

    private static int CapabilitiesHead => Unsafe.SizeOf<kvm_tdx_capabilities>() - Unsafe.SizeOf<kvm_cpuid2>();

    /// <summary>struct kvm_tdx_capabilities with room for so many entries.</summary>
    public static byte[] CapabilitiesBuffer(int entries) => [.. new byte[CapabilitiesHead], .. VcpuStructs.CpuidBuffer(entries)];

    public static KvmTdxCapabilities ReadCapabilities(byte[] structure)
    {
        kvm_tdx_capabilities capabilities = MemoryMarshal.Read<kvm_tdx_capabilities>(structure);
        var message = new KvmTdxCapabilities
        {
            SupportedAttrs = capabilities.supported_attrs,
            SupportedXfam = capabilities.supported_xfam,
            KernelTdvmcallinfo1R11 = capabilities.kernel_tdvmcallinfo_1_r11,
            UserTdvmcallinfo1R11 = capabilities.user_tdvmcallinfo_1_r11,
            KernelTdvmcallinfo1R12 = capabilities.kernel_tdvmcallinfo_1_r12,
            UserTdvmcallinfo1R12 = capabilities.user_tdvmcallinfo_1_r12,
        };
        message.Cpuid.AddRange(VcpuStructs.ReadCpuid(structure[CapabilitiesHead..]));
        return message;
    }

    /// <summary>struct kvm_tdx_init_vm with its entries.</summary>
    public static unsafe byte[] ToAbi(KvmTdxInitVm? message)
    {
        // More entries than the kernel takes go through, for it to refuse; what would not fit into the scratch pages does not.
        const int most = 400;
        message ??= new KvmTdxInitVm();
        if (message.Cpuid.Count > most)
        {
            throw Refusals.BadField("init.cpuid", $"{message.Cpuid.Count} entries; at most {most} are passed on");
        }
        var init = new kvm_tdx_init_vm { attributes = message.Attributes, xfam = message.Xfam };
        Register("init.mrconfigid", message.Mrconfigid).CopyTo(new Span<byte>(init.mrconfigid, MeasurementSize));
        Register("init.mrowner", message.Mrowner).CopyTo(new Span<byte>(init.mrowner, MeasurementSize));
        Register("init.mrownerconfig", message.Mrownerconfig).CopyTo(new Span<byte>(init.mrownerconfig, MeasurementSize));
        byte[] head = new byte[sizeof(kvm_tdx_init_vm) - sizeof(kvm_cpuid2)];
        MemoryMarshal.AsBytes(new ReadOnlySpan<kvm_tdx_init_vm>(in init))[..head.Length].CopyTo(head);
        return [.. head, .. VcpuStructs.CpuidBuffer(message.Cpuid)];
    }

    private static ReadOnlySpan<byte> Register(string field, ByteString bytes) => bytes.Length is 0 or MeasurementSize
        ? bytes.Span
        : throw Refusals.BadField(field, $"{bytes.Length} bytes were given; it has {MeasurementSize}, or none for zeros");
}
