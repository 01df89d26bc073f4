using System.Runtime.InteropServices;
using System.Security.Cryptography;
using BenchmarkDotNet.Attributes;
using SimKvm.Abi;
using SimKvm.Profiles;
using SimKvm.Userspace;
using SimMachine;

namespace SimKvm.Bench;

/// <summary>
/// 2 MiB of measured launch memory through SNP_LAUNCH_UPDATE, next to what no measurement can avoid: SHA-384 of the same 512 pages and of the 512 PAGE_INFOs,
/// one after the other, by the platform's library.
/// </summary>
public class MeasuredLaunchBench
{
    /// <summary>Bytes of one operation.</summary>
    public const ulong Size = Pages * PageBytes;

    private const int Pages = 512;
    private const int PageBytes = 4096;

    private readonly byte[] _content = new byte[Pages * PageBytes];
    private SimHost _host = null!;
    private Process _process = null!;
    private int _vm;
    private int _sev;
    private int _memfd;
    private ulong _source;

    [GlobalSetup]
    public void Setup()
    {
        for (int i = 0; i < _content.Length; i++)
        {
            _content[i] = (byte)(i * 31 + (i >> 12));
        }
        _host = new SimHost(KernelProfiles.K72, new MachineConfig(), seed: 1);
        _process = _host.StartProcess();
        int kvm = (int)_process.Open("/dev/kvm").Value;
        _sev = (int)_process.Open("/dev/sev").Value;
        _vm = (int)_process.Ioctl(kvm, KvmIoctl.KVM_CREATE_VM, (ulong)VmType.KVM_X86_SNP_VM).Value;
        _source = (ulong)_process.Mmap(0, Size + PageBytes, 3, 0x22, -1, 0).Value;
        _process.Write(_source, _content);
        Sev(SevCmdId.KVM_SEV_INIT2, new kvm_sev_init());
        _memfd = (int)Ioctl(KvmIoctl.KVM_CREATE_GUEST_MEMFD, new kvm_create_guest_memfd { size = Size });
        Ioctl(KvmIoctl.KVM_SET_USER_MEMORY_REGION2, new kvm_userspace_memory_region2 { flags = KvmMem.GUEST_MEMFD, memory_size = Size, guest_memfd = (uint)_memfd });
        Ioctl(KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES, new kvm_memory_attributes { size = Size, attributes = kvm_memory_attributes.PRIVATE });
        Sev(SevCmdId.KVM_SEV_SNP_LAUNCH_START, new kvm_sev_snp_launch_start { policy = 0x30000 });
    }

    [GlobalCleanup]
    public void Cleanup() => _host.Dispose();

    [Benchmark(Baseline = true, Description = "SHA384.HashData of 512 pages and 512 PAGE_INFOs")]
    public void PlatformSha384()
    {
        Span<byte> hash = stackalloc byte[48];
        Span<byte> info = stackalloc byte[112];
        for (int page = 0; page < Pages; page++)
        {
            SHA384.HashData(_content.AsSpan(page * PageBytes, PageBytes), hash);
            hash.CopyTo(info[48..]);
            SHA384.HashData(info, info[..48]);
        }
    }

    // The hole makes room for the next round: a page can be launched once.
    [Benchmark(Description = "SNP_LAUNCH_UPDATE of 512 NORMAL pages, and a hole over them")]
    public void LaunchUpdate()
    {
        Sev(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, new kvm_sev_snp_launch_update { uaddr = _source, len = Size, type = 1 });
        _process.Fallocate(_memfd, 3, 0, (long)Size);
    }

    private long Ioctl<T>(uint request, T argument)
        where T : unmanaged
    {
        byte[] bytes = new byte[Marshal.SizeOf<T>()];
        MemoryMarshal.Write(bytes, argument);
        CallReport report = _process.Ioctl(_vm, request, bytes);
        return report.Succeeded ? report.Value : throw new InvalidOperationException($"{report.What}: {report.Errno} {string.Join("; ", report.Causes)}");
    }

    private void Sev<T>(SevCmdId id, T parameters)
        where T : unmanaged
    {
        byte[] bytes = new byte[Marshal.SizeOf<T>()];
        MemoryMarshal.Write(bytes, parameters);
        _process.Write(_source + Size, bytes);
        Ioctl(KvmIoctl.KVM_MEMORY_ENCRYPT_OP, new kvm_sev_cmd { id = (uint)id, data = _source + Size, sev_fd = (uint)_sev });
    }
}
