using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using Xunit;

namespace SimKvm.Tests;

/// <summary>System calls on descriptors: what guest_memfd refuses, what every file shares, and the files that do have content.</summary>
public sealed class FileCallTests : KvmTest
{
    private const uint ReadWrite = Vmm.ProtRead | Vmm.ProtWrite;
    private const uint KeepSize = 1, PunchHole = 2;

    [Theory]
    [MemberData(nameof(Profiles))]
    public void GuestMemfd_HasNoContentForTheHost(string profile)
    {
        TestHost host = Boot(profile);
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(4);
        Process process = host.Vmm.Process;
        string before = host.Snapshot();
        AssertRefused(process.ReadFile(gmem, new byte[8]), Errno.EINVAL, KernelFile.NoMethod);
        AssertRefused(process.WriteFile(gmem, new byte[8]), Errno.EINVAL, KernelFile.NoMethod);
        AssertRefused(process.ReadFile(gmem, new byte[8], 0), Errno.ESPIPE, Vfs.NotSeekable);
        AssertRefused(process.ReadFile(gmem, new byte[8], -1), Errno.EINVAL, Vfs.NegativePosition);
        AssertRefused(process.Lseek(gmem, 0, 0), Errno.ESPIPE, Vfs.NotSeekable);
        AssertRefused(process.Ftruncate(gmem, 4 * 4096), Errno.EINVAL, GuestMemfd.SetattrRefused);
        AssertRefused(process.Fsync(gmem), Errno.EINVAL, KernelFile.NoMethod);
        Assert.Equal(before, host.Snapshot());
    }

    [Theory]
    [InlineData("K68", 0x0904_1934ul)]
    [InlineData("K618", 0x0904_1934ul)]
    [InlineData("K619", 0x474d_454dul)]
    public void GuestMemfd_IsOnAFileSystemOfItsOwnSince619(string profile, ulong magic)
    {
        TestHost host = Boot(profile);
        int gmem = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM).CreateGmem(4);
        AssertOk(host.Vmm.Process.Fstatfs(gmem, out FileSystemStat stat));
        Assert.Equal(magic, stat.Type);
    }

    [Fact]
    public void OPathDescriptor_KeepsThePages_ButIsNoFile()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(4);
        AssertOk(host.Vmm.Process.Fallocate(gmem, KeepSize, 0, 4 * 4096));
        int path = Vmm.Must(host.Vmm.Process.Open($"/proc/self/fd/{gmem}", OpenFlags.O_PATH));
        long frames = host.Machine.AllocatedPages;

        Vmm.Must(host.Vmm.Close(gmem));
        Assert.Equal(frames, host.Machine.AllocatedPages);
        AssertRefused(host.Vmm.Process.Fallocate(path, KeepSize, 0, 4096), Errno.EBADF, FdTable.IsPath);
        AssertRefused(vm.TrySetRegion2(0, KvmMem.GUEST_MEMFD, 0, 1, gmem: path), Errno.EBADF, FdTable.IsPath);
        AssertOk(host.Vmm.Process.Fstat(path, out FileStat stat));
        Assert.Equal(4 * 4096ul, stat.Size);

        Vmm.Must(host.Vmm.Close(path));
        Assert.Equal(frames - 4, host.Machine.AllocatedPages);
    }

    [Fact]
    public void Dup_SharesTheFile_AndTheLastCloseReleasesIt()
    {
        TestHost host = Boot();
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SW_PROTECTED_VM);
        int gmem = vm.CreateGmem(4);
        int copy = Vmm.Must(host.Vmm.Process.Dup(gmem));
        vm.AddGmemSlot(0, 0, 4, copy);
        Vmm.Must(host.Vmm.Close(gmem));
        Assert.True(vm.Describe().Slots[0].GmemBound);
        Vmm.Must(host.Vmm.Close(copy));
        Assert.False(vm.Describe().Slots[0].GmemBound);
    }

    [Fact]
    public void Flock_IsTheOpenFilesAndNotTheDescriptors()
    {
        const uint exclusive = 2 | 4;
        TestHost host = Boot();
        Process process = host.Vmm.Process;
        int first = Vmm.Must(host.Vmm.TryCreateVm(0));
        int second = Vmm.Must(host.Vmm.TryCreateVm(0));
        int copy = Vmm.Must(process.Dup(first));
        AssertOk(process.Flock(first, exclusive));
        AssertOk(process.Flock(copy, exclusive));
        // VM descriptors share one anonymous inode.
        AssertRefused(process.Flock(second, exclusive), Errno.EAGAIN, VfsInode.WouldBlock);
        Vmm.Must(host.Vmm.Close(first));
        AssertRefused(process.Flock(second, exclusive), Errno.EAGAIN, VfsInode.WouldBlock);
        Vmm.Must(host.Vmm.Close(copy));
        AssertOk(process.Flock(second, exclusive));
    }

    [Fact]
    public void Memfd_WritesAreSeenThroughItsMappings_AndAHoleReadsAsZeros()
    {
        TestHost host = Boot();
        Process process = host.Vmm.Process;
        int memfd = Vmm.Must(process.MemfdCreate("ram", 0));
        AssertOk(process.Ftruncate(memfd, 3 * 4096));
        ulong shared = (ulong)AssertOk(process.Mmap(0, 3 * 4096, ReadWrite, Vmm.MapShared, memfd, 0)).Value;
        ulong own = (ulong)AssertOk(process.Mmap(0, 3 * 4096, ReadWrite, Vmm.MapPrivate, memfd, 0)).Value;

        AssertOk(process.WriteFile(memfd, Vmm.Content(7), 4096));
        Assert.Equal(7, host.Vmm.Load(shared + 4096, 1)[0]);
        Assert.Equal(7, host.Vmm.Load(own + 4096, 1)[0]);
        host.Vmm.Store(own + 4096, new byte[] { 9 });
        Assert.Equal(7, host.Vmm.Load(shared + 4096, 1)[0]);
        AssertOk(process.Fallocate(memfd, KeepSize | PunchHole, 4096, 4096));
        Assert.Equal(0, host.Vmm.Load(shared + 4096, 1)[0]);
        Assert.Equal(9, host.Vmm.Load(own + 4096, 1)[0]);
    }

    [Fact]
    public void Pipe_WithoutReader_IsEpipeWithSigpipe()
    {
        TestHost host = Boot();
        Process process = host.Vmm.Process;
        AssertOk(process.Pipe(0, out int read, out int write));
        AssertOk(process.WriteFile(write, new byte[] { 1, 2, 3 }));
        byte[] back = new byte[8];
        Assert.Equal(3, AssertOk(process.ReadFile(read, back)).Value);
        Assert.Equal([1, 2, 3], back[..3]);
        Vmm.Must(host.Vmm.Close(read));
        CallReport refused = process.WriteFile(write, new byte[1]);
        AssertRefused(refused, Errno.EPIPE, PipeFile.NoReader);
        Assert.Equal(Signo.SIGPIPE, refused.Signal?.Signo);
    }
}
