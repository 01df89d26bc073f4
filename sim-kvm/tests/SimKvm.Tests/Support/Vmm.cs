using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;

namespace SimKvm.Tests.Support;

/// <summary>A process that acts as a VMM: /dev/kvm open as fd 3, /dev/sev as fd 4 where there is one, and the calls that tests make most.</summary>
internal sealed class Vmm
{
    public const uint ProtRead = 1;
    public const uint ProtWrite = 2;
    public const uint ProtExec = 4;
    public const uint MapShared = 1;
    public const uint MapPrivate = 2;
    public const uint MapAnonymous = 0x20;

    /// <summary>Where nothing is mapped unless a test does.</summary>
    public const ulong Unmapped = 0x1234_5000;

    public const ulong Page = 4096;

    public Vmm(TestHost host)
    {
        Host = host;
        Process = host.Host.StartProcess();
        Kvm = Must(Process.Open("/dev/kvm"));
        Sev = host.Machine.Config.Sev ? Must(Process.Open("/dev/sev")) : -1;
    }

    public TestHost Host { get; }

    public Process Process { get; }

    public int Kvm { get; }

    public int Sev { get; }

    public CallReport Ioctl(int fd, uint request, ulong arg) => Process.Ioctl(fd, request, arg);

    /// <summary>An ioctl whose argument is a structure; what the kernel stored in it comes back.</summary>
    public CallReport Ioctl<T>(int fd, uint request, ref T argument)
        where T : unmanaged
    {
        byte[] bytes = MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in argument)).ToArray();
        CallReport report = Process.Ioctl(fd, request, bytes);
        argument = MemoryMarshal.Read<T>(bytes);
        return report;
    }

    /// <summary>The same with the last byte of the argument missing: the copy faults.</summary>
    public CallReport IoctlCutShort<T>(int fd, uint request, T argument)
        where T : unmanaged =>
        Process.Ioctl(fd, request, MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in argument))[..^1].ToArray());

    public TestVm CreateVm(VmType type)
    {
        var vm = new TestVm(this, Must(TryCreateVm((uint)type)));
        Host.Vms.Add(vm);
        return vm;
    }

    public CallReport TryCreateVm(ulong type) => Ioctl(Kvm, KvmIoctl.KVM_CREATE_VM, type);

    public long CheckExtension(ulong cap) => Must(Ioctl(Kvm, KvmIoctl.KVM_CHECK_EXTENSION, cap));

    /// <summary>Anonymous private memory.</summary>
    public ulong Map(ulong pages, uint prot = ProtRead | ProtWrite) =>
        (ulong)MustValue(Process.Mmap(0, pages * Page, prot, MapPrivate | MapAnonymous, -1, 0));

    /// <summary>Anonymous memory whose pages are full of the bytes first, first + 1, ...</summary>
    public ulong MapFilled(ulong pages, byte first = 1)
    {
        ulong address = Map(pages);
        for (ulong i = 0; i < pages; i++)
        {
            Store(address + (i * Page), Content((byte)(first + i)));
        }
        return address;
    }

    /// <summary>A page that has content and cannot be stored to.</summary>
    public ulong MapReadOnly(ReadOnlySpan<byte> content)
    {
        KTask current = TestHost.NewThread(this);
        Process.Files.Reserve(current, out int fd);
        Process.Files.Install(fd, new PageFile(Host.Host, current, content));
        long address = MustValue(Process.Mmap(0, Page, ProtRead, MapShared, fd, 0));
        Must(Close(fd));
        return (ulong)address;
    }

    public static byte[] Content(byte value)
    {
        byte[] page = new byte[Page];
        Array.Fill(page, value);
        return page;
    }

    public void Store(ulong address, ReadOnlyMemory<byte> bytes) => MustValue(Process.Write(address, bytes));

    public void Store<T>(ulong address, T value)
        where T : unmanaged =>
        Store(address, MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in value)).ToArray());

    public byte[] Load(ulong address, int length)
    {
        byte[] bytes = new byte[length];
        MustValue(Process.Read(address, bytes));
        return bytes;
    }

    public T Load<T>(ulong address)
        where T : unmanaged =>
        MemoryMarshal.Read<T>(Load(address, Marshal.SizeOf<T>()));

    public CallReport Close(int fd) => Process.Close(fd);

    /// <summary>Passes a descriptor to another process, as a Unix socket does (SCM_RIGHTS); gives its number there.</summary>
    public int PassTo(Vmm other, int fd)
    {
        KTask current = TestHost.NewThread(other);
        Process.Files.TryGet(fd, out KernelFile? file);
        other.Process.Files.Reserve(current, out int there);
        file!.Get();
        other.Process.Files.Install(there, file);
        return there;
    }

    /// <summary>Opens descriptors until the table is full.</summary>
    public void ExhaustDescriptors()
    {
        while (Process.Open("/dev/kvm").Succeeded)
        {
        }
    }

    public GuestMemfd Gmem(int fd) => Process.Files.TryGet(fd, out KernelFile? file) && file is GuestMemfd gmem
        ? gmem
        : throw new InvalidOperationException($"fd {fd} is no guest_memfd");

    public static int Must(CallReport report) => (int)MustValue(report);

    private static long MustValue(CallReport report) => report.Succeeded
        ? report.Value
        : throw new InvalidOperationException($"{report.What}: {report.Errno} ({string.Join("; ", report.Causes)})");
}
