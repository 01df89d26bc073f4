using SimKvm.Abi;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>What calls on files and memory refuse, and with what; the answers are those that Linux 6.18 gave to the same calls.</summary>
public sealed class BadFileCallTests : KvmTest
{
    private const uint ReadWrite = Vmm.ProtRead | Vmm.ProtWrite;
    private const uint ORdonly = 0, ORdwr = 2, OCreat = 0x40, OExcl = 0x80, OAppend = 0x400, ODirect = 0x4000, ODirectory = 0x1_0000;
    private const uint SetFlags = 4, AddSeals = 1033;
    private const uint SeekSet = 0, SeekData = 3, SeekHole = 4;
    private const uint MfdHugetlb = 4, MapHugetlb = 0x4_0000;

    private static readonly BadCall[] s_calls =
    [
        new("memfd: seek to a negative position", w => w.P.Lseek(w.Memfd, -1, SeekSet), Errno.EINVAL, ShmemFile.NoSuchPosition),
        new("memfd: no data in a hole", w => w.P.Lseek(w.Memfd, 2 * 4096, SeekData), Errno.ENXIO, ShmemFile.NoSuchPosition),
        new("memfd: no data behind the end", w => w.P.Lseek(w.Memfd, 3 * 4096, SeekData), Errno.ENXIO, ShmemFile.NoSuchPosition),
        new("memfd: no data before the start", w => w.P.Lseek(w.Memfd, -1, SeekData), Errno.ENXIO, ShmemFile.NoSuchPosition),
        new("memfd: FALLOC_FL_ZERO_RANGE", w => w.P.Fallocate(w.Memfd, 0x10, 0, 4096), Errno.EOPNOTSUPP, ShmemFile.UnsupportedMode),
        new("memfd: a seal that is not known", w => w.P.Fcntl(w.Memfd, AddSeals, 0x40), Errno.EINVAL, MemfdSeals.UnknownSeals),
        new("memfd: F_SEAL_WRITE while it is mapped writable", w => w.P.Fcntl(w.Memfd, AddSeals, 8), Errno.EBUSY, MemfdSeals.BusyForSeal),
        new("memfd: a seal through a descriptor that cannot write", w => w.P.Fcntl(w.ReadOnly, AddSeals, 2), Errno.EPERM, MemfdSeals.NotWritable),
        new("pipe: a seal", w => w.P.Fcntl(w.FilledPipeWrites, AddSeals, 2), Errno.EINVAL, MemfdSeals.NoSeals),
        new("memfd: O_DIRECT", w => w.P.Fcntl(w.Memfd, SetFlags, ODirect), Errno.EINVAL, Vfs.NoDirectIo),
        new("memfd: a count that leaves the address space", w => w.P.ReadFile(w.Memfd, w.Memory, 1UL << 63, 0), Errno.EFAULT, Vfs.BufferOutside),
        new("memfd: position and count overflow", w => w.P.ReadFile(w.Memfd, w.Memory, 16, long.MaxValue - 8), Errno.EINVAL, Vfs.CountTooLarge),
        new("memfd: 1025 vectors", w => w.P.ReadVector(w.Memfd, new IoVec[1025]), Errno.EINVAL, Vfs.TooManyVectors),
        new("memfd: a vector of negative length", w => w.P.ReadVector(w.Memfd, [new IoVec(w.Memory, 1UL << 63)]), Errno.EINVAL, Vfs.TooManyVectors),
        new("memfd: a vector outside user space", w => w.P.ReadVector(w.Memfd, [new IoVec(UserMemory.TaskSize, 1)]), Errno.EFAULT, Vfs.BufferOutside),
        new("memfd: preadv2 with flags", w => w.P.ReadVector(w.Memfd, [new IoVec(w.Memory, 1)], 0, 0x80), Errno.EOPNOTSUPP, Vfs.BadReadWriteFlags),
        new("memfd: more than the machine has", w => w.P.Fallocate(w.Memfd, 1, 0, 1L << 40), Errno.ENOSPC, ShmemFile.NoMemory),

        new("hugetlb: write", w => w.P.WriteFile(w.Huge, new byte[1]), Errno.EINVAL, KernelFile.NoMethod),
        new("hugetlb: pwrite", w => w.P.WriteFile(w.Huge, new byte[1], 0), Errno.EINVAL, KernelFile.NoMethod),
        new("hugetlb: seek to a negative position", w => w.P.Lseek(w.Huge, -1, SeekSet), Errno.EINVAL, ShmemFile.NoSuchPosition),
        new("hugetlb: no data before the start", w => w.P.Lseek(w.Huge, -1, SeekData), Errno.EINVAL, ShmemFile.NoSuchPosition),
        new("hugetlb: no data behind the end", w => w.P.Lseek(w.Huge, 5 << 20, SeekData), Errno.ENXIO, ShmemFile.NoSuchPosition),
        new("hugetlb: no hole behind the end", w => w.P.Lseek(w.Huge, 5 << 20, SeekHole), Errno.ENXIO, ShmemFile.NoSuchPosition),
        new("hugetlb: FALLOC_FL_ZERO_RANGE", w => w.P.Fallocate(w.Huge, 0x10, 0, 4096), Errno.EOPNOTSUPP, ShmemFile.UnsupportedMode),
        new("hugetlb: O_DIRECT", w => w.P.Fcntl(w.Huge, SetFlags, ODirect), Errno.EINVAL, Vfs.NoDirectIo),
        new("hugetlb: from a pipe", w => w.P.Splice(w.FilledPipe, null, w.Huge, null, 1), Errno.EINVAL, Vfs.NoSplice),

        new("guest_memfd: opened by its name", w => w.P.Open($"/proc/self/fd/{w.Gmem}", ORdwr), Errno.ENXIO, KernelFile.NotReopenable),
        new("pipe: fchmod", w => w.P.Fchmod(w.FilledPipe), Errno.EPERM, KernelFile.NoSetattr),
        new("guest_memfd: mapped executable", w => w.P.Mmap(0, 4096, Vmm.ProtRead | Vmm.ProtExec, Vmm.MapShared, w.Gmem, 0), Errno.EPERM, UserMemory.NoExec),

        new("pipe: read of an empty one", w => w.P.ReadFile(w.EmptyPipe, new byte[1]), Errno.EAGAIN, PipeFile.WouldBlock),
        new("pipe: posix_fadvise", w => w.P.Fadvise(w.EmptyPipe, 0, 0), Errno.ESPIPE, Vfs.FadviseOnPipe),
        new("splice between two that are no pipes", w => w.P.Splice(w.Memfd, null, w.Huge, null, 1), Errno.EINVAL, Vfs.SpliceNeedsPipe),
        new("splice into a file that is appended to", w => w.Appending().P.Splice(w.FilledPipe, null, w.Memfd, null, 1), Errno.EINVAL, Vfs.AppendOnly),
        new("splice at a position into a file that is appended to", w => w.Appending().P.Splice(w.FilledPipe, null, w.Memfd, 0, 1), Errno.EINVAL, Vfs.AppendOnly),
        new("sendfile into a file that is appended to", w => w.Appending().P.Sendfile(w.Memfd, w.ReadOnly, null, 1), Errno.EINVAL, Vfs.AppendOnly),

        new("open: O_CREAT with O_EXCL", w => w.P.Open("/dev/kvm", ORdwr | OCreat | OExcl), Errno.EEXIST, Vfs.Exclusive),
        new("open: O_DIRECTORY", w => w.P.Open("/dev/kvm", ORdwr | ODirectory), Errno.ENOTDIR, Vfs.NotADirectory),
        new("open: O_DIRECTORY of a descriptor's name", w => w.P.Open($"/proc/self/fd/{w.Memfd}", ORdonly | ODirectory), Errno.ENOTDIR, Vfs.NotADirectory),
        new("open: a device as a folder", w => w.P.Open("/dev/kvm/x", ORdwr), Errno.ENOTDIR, Vfs.NotADirectory),
        new("open: a slash behind a device", w => w.P.Open("/dev/kvm/", ORdwr), Errno.ENOTDIR, Vfs.NotADirectory),
        new("open: below a device that is not there", w => w.P.Open("/dev/sev/x", ORdwr), Errno.ENOENT, Vfs.NoSuchFile),
        new("open: 4096 characters", w => w.P.Open("/" + new string('a', 4095), ORdwr), Errno.ENAMETOOLONG, Vfs.PathTooLong),
        new("dup3 onto itself", w => w.P.DupTo(w.Memfd, w.Memfd, strict: true), Errno.EINVAL, Vfs.SameDescriptor),

        new("mmap: writable, shared, of what is open for reading", w => w.P.Mmap(0, 4096, ReadWrite, Vmm.MapShared, w.ReadOnly, 0), Errno.EACCES, UserMemory.NotOpenFor),
        new("mmap: longer than any gap", w => w.P.Mmap(0, UserMemory.TaskSize - 4096, ReadWrite, Vmm.MapPrivate | Vmm.MapAnonymous, -1, 0), Errno.ENOMEM, UserMemory.NoGap),
        new("mlock: behind the end of the file", w => w.P.Mlock(w.Memory + (3 * 4096), 4096), Errno.ENOMEM, ShmemFile.BeyondEnd),
        new("msync: MS_INVALIDATE of what is locked", w => w.Locked().P.Msync(w.Memory, 4096, 2), Errno.EBUSY, UserMemory.LockedInvalidate),
        new("lseek: a whence that is not known", w => w.P.Lseek(w.Memfd, 0, 5), Errno.EINVAL, Vfs.BadWhence),
        new("write through what is open for reading", w => w.P.WriteFile(w.ReadOnly, new byte[1]), Errno.EBADF, Vfs.NotOpenFor),
        new("ftruncate: a negative length", w => w.P.Ftruncate(w.Memfd, -1), Errno.EINVAL, Vfs.NegativeLength),
        new("ftruncate of a pipe", w => w.P.Ftruncate(w.FilledPipeWrites, 0), Errno.EINVAL, Vfs.NotRegular),
        new("ftruncate of what is open for reading", w => w.P.Ftruncate(w.ReadOnly, 0), Errno.EINVAL, Vfs.NotRegular),
        new("fcntl: a command that is not known", w => w.P.Fcntl(w.Memfd, 4096, 0), Errno.EINVAL, Vfs.UnknownFcntl),
        new("fcntl: F_DUPFD from beyond the limit", w => w.P.Fcntl(w.Memfd, 0, 1 << 20), Errno.EINVAL, Vfs.BadDupTarget),
        new("dup3 to a negative descriptor", w => w.P.DupTo(w.Memfd, -1, strict: true), Errno.EBADF, Vfs.BadDupTarget),
        new("flock: shared and exclusive", w => w.P.Flock(w.Memfd, 3), Errno.EINVAL, Vfs.BadFlock),
        new("posix_fadvise: an advice that is not known", w => w.P.Fadvise(w.Memfd, 0, 6), Errno.EINVAL, Vfs.BadAdvice),
        new("RLIMIT_NOFILE above the hard limit", w => w.P.SetFdLimit(1 << 20), Errno.EPERM, FdTable.LimitTooHigh),
        new("readlink of a device", w => w.P.Readlink("/dev/kvm", out _), Errno.EINVAL, Vfs.NotALink),
        new("memfd_create: both of MFD_EXEC and MFD_NOEXEC_SEAL", w => w.P.MemfdCreate("m", 0x18), Errno.EINVAL, Vfs.MemfdFlags),
        new("memfd_create: a name of 250 characters", w => w.P.MemfdCreate(new string('m', 250), 0), Errno.EINVAL, Vfs.MemfdFlags),
        new("memfd_create: huge pages of 4 MiB", w => w.P.MemfdCreate("m", MfdHugetlb | (22u << 26)), Errno.ENODEV, Vfs.NoSuchHugePage),
        new("pipe2: a flag that is not known", w => w.P.Pipe(1, out _, out _), Errno.EINVAL, Vfs.PipeFlags),
        new("splice within one pipe", w => w.P.Splice(w.FilledPipe, null, w.FilledPipeWrites, null, 1), Errno.EINVAL, Vfs.SamePipe),
        new("vmsplice into a memfd", w => w.P.Vmsplice(w.Memfd, [new IoVec(w.Memory, 1)]), Errno.EBADF, Vfs.NotAPipe),

        new("mmap: a file beyond any file's size", w => w.P.Mmap(0, 8192, Vmm.ProtRead, Vmm.MapShared, w.Memfd, long.MaxValue & ~4095UL), Errno.EOVERFLOW, UserMemory.FileTooSmall),
        new("mmap: MAP_SHARED_VALIDATE with a flag that is not known", w => w.P.Mmap(0, 4096, Vmm.ProtRead, 3 | 0x40_0000, w.Memfd, 0), Errno.EOPNOTSUPP, UserMemory.UnknownFlagBits),
        new("mmap: MAP_HUGETLB of a file without huge pages", w => w.P.Mmap(0, 4096, Vmm.ProtRead, Vmm.MapShared | MapHugetlb, w.Memfd, 0), Errno.EINVAL, UserMemory.NotHugetlb),
        new("mmap: MAP_HUGETLB of 4 MiB", w => w.P.Mmap(0, 4096, Vmm.ProtRead, Vmm.MapPrivate | Vmm.MapAnonymous | MapHugetlb | (22u << 26), -1, 0), Errno.EINVAL, UserMemory.HugePagesFlags),
        new("mmap: private, of huge pages", w => w.P.Mmap(0, 2 << 20, Vmm.ProtRead, Vmm.MapPrivate, w.Huge, 0), Errno.EINVAL, HugetlbFile.PrivateOfFile),
        new("mprotect: a protection that is not known", w => w.P.Mprotect(w.Memory, 4096, 0x10), Errno.EINVAL, UserMemory.BadProtection),
        new("mprotect: inside a page", w => w.P.Mprotect(w.Memory + 1, 4096, ReadWrite), Errno.EINVAL, UserMemory.RangeUnaligned),
        new("mprotect: over a gap", w => w.P.Mprotect(Vmm.Unmapped, 4096, ReadWrite), Errno.ENOMEM, UserMemory.RangeNotMapped),
        new("msync: MS_ASYNC with MS_SYNC", w => w.P.Msync(w.Memory, 4096, 5), Errno.EINVAL, UserMemory.BadMsyncFlags),
        new("msync: over a gap", w => w.P.Msync(Vmm.Unmapped, 4096, 4), Errno.ENOMEM, UserMemory.RangeNotMapped),
        new("mbind: to a node that is not there", w => w.P.Mbind(w.Memory, 4096, 2, 2, 0), Errno.EINVAL, UserMemory.BadPolicy),
        new("mbind: a policy that is not known", w => w.P.Mbind(w.Memory, 4096, 9, 1, 0), Errno.EINVAL, UserMemory.BadPolicy),
        new("mremap: to length 0", w => w.P.Mremap(w.Memory, 4096, 0, 1, 0), Errno.EINVAL, UserMemory.BadMremap),
        new("mremap: of what is not mapped", w => w.P.Mremap(Vmm.Unmapped, 4096, 8192, 1, 0), Errno.EFAULT, UserMemory.MremapRange),
        new("madvise: an advice that is not known", w => w.P.Madvise(w.Memory, 4096, 99), Errno.EINVAL, UserMemory.UnknownAdvice),
        new("madvise: MADV_FREE of a file", w => w.P.Madvise(w.Memory, 4096, 8), Errno.EINVAL, UserMemory.AdviceNotForMapping),
        new("madvise: MADV_DONTNEED of what is locked", w => w.Locked().P.Madvise(w.Memory, 4096, 4), Errno.EINVAL, UserMemory.AdviceNotForMapping),
        new("pin: of part of a page", w => w.P.PinPages(w.Memory, 100, write: false), Errno.EINVAL, UserMemory.PinUnaligned),
        new("unpin: of what is not pinned", w => w.P.UnpinPages(77), Errno.EINVAL, UserMemory.NoSuchPin),
        new("process_vm_readv: flags", w => w.P.ProcessVmReadv(w.P.Pid, [], [], 1), Errno.EINVAL, Process.ProcessVmFlags),
        new("process_vm_readv: no such process", w => w.P.ProcessVmReadv(99_999, [new IoVec(w.Memory, 1)], [new IoVec(w.Memory, 1)], 0), Errno.ESRCH, Process.NoSuchProcess),
    ];

    public static TheoryData<string> Calls => [.. s_calls.Select(call => call.Name)];

    [Theory]
    [MemberData(nameof(Calls))]
    public void BadCall_AnswersAsLinuxDoes_AndLeavesTheFilesAsTheyWere(string name)
    {
        BadCall bad = s_calls.Single(call => call.Name == name);
        var world = new World(Boot(machine: new() { Sev = false }, kernel: new KernelConfig { Hugepages2M = 4 }));
        FileStat[] before = world.Stats();
        long frames = world.Host.Machine.AllocatedPages;
        AssertRefused(bad.Call(world), bad.Errno, bad.Rule);
        Assert.Equal(before, world.Stats());
        Assert.Equal(frames, world.Host.Machine.AllocatedPages);
    }

    // Whence, offset, where that is: in the memfd, and in two huge pages of which none is there.
    [Theory]
    [InlineData(SeekData, 0, 0, 0)]
    [InlineData(SeekData, 10, 10, 10)]
    [InlineData(SeekHole, 0, 8192, 4 << 20)]
    [InlineData(SeekHole, 9000, 9000, 4 << 20)]
    [InlineData(SeekSet, long.MaxValue, long.MaxValue, long.MaxValue)]
    public void Lseek_FindsDataAndHoles(uint whence, long offset, long inMemfd, long inHuge)
    {
        var world = new World(Boot(kernel: new KernelConfig { Hugepages2M = 4 }));
        Assert.Equal(inMemfd, AssertOk(world.P.Lseek(world.Memfd, offset, whence)).Value);
        Assert.Equal(inHuge, AssertOk(world.P.Lseek(world.Huge, offset, whence)).Value);
    }

    [Fact]
    public void Lseek_InAFileOfExabytes_LooksAtThePagesThatAreThereOnly()
    {
        var world = new World(Boot(kernel: new KernelConfig { Hugepages2M = 4 }));
        AssertOk(world.P.Ftruncate(world.Memfd, 1L << 62));
        AssertRefused(world.P.Lseek(world.Memfd, 2 * 4096, SeekData), Errno.ENXIO, ShmemFile.NoSuchPosition);
        AssertOk(world.P.WriteFile(world.Memfd, new byte[1], 1L << 61));
        Assert.Equal(1L << 61, AssertOk(world.P.Lseek(world.Memfd, 2 * 4096, SeekData)).Value);
    }

    [Fact]
    public void Fallocate_MakesAHole_UntilItIsDoneAgainOrTouched()
    {
        var world = new World(Boot(kernel: new KernelConfig { Hugepages2M = 4 }));
        AssertOk(world.P.Fallocate(world.Memfd, 0, 2 * 4096, 4096));
        AssertRefused(world.P.Lseek(world.Memfd, 2 * 4096, SeekData), Errno.ENXIO, ShmemFile.NoSuchPosition);
        AssertOk(world.P.Fallocate(world.Memfd, 0, 2 * 4096, 1));
        Assert.Equal(2 * 4096, AssertOk(world.P.Lseek(world.Memfd, 2 * 4096, SeekData)).Value);
    }

    [Fact]
    public void FileThatIsSentToItself_GrowsOnTheWay()
    {
        var world = new World(Boot(kernel: new KernelConfig { Hugepages2M = 4 }));
        AssertOk(world.P.Lseek(world.Memfd, 3 * 4096, SeekSet));
        Assert.Equal(5 * 4096, AssertOk(world.P.Sendfile(world.Memfd, world.Memfd, 0, 5 * 4096)).Value);
        AssertOk(world.P.Fstat(world.Memfd, out FileStat stat));
        Assert.Equal(8 * 4096ul, stat.Size);
    }

    [Fact]
    public void PageBehindTheEndOfItsFile_IsNeitherPopulatedNorLocked()
    {
        const uint populateRead = 22;
        var world = new World(Boot(kernel: new KernelConfig { Hugepages2M = 4 }));
        CallReport populated = world.P.Madvise(world.Memory + (3 * 4096), 4096, populateRead), locked = world.P.Mlock(world.Memory + (3 * 4096), 4096);
        Assert.Equal((Errno.EFAULT, UserMemory.AdviceCannotPopulate), (populated.Errno, populated.Causes[^1].Rule));
        Assert.Equal((Errno.ENOMEM, UserMemory.NotPopulated), (locked.Errno, locked.Causes[^1].Rule));
    }

    [Fact]
    public void ProcMem_OfWhatIsNotMapped_IsEio()
    {
        Process process = Boot().Vmm.Process;
        CallReport report = process.ReadFile(Vmm.Must(process.Open("/proc/self/mem", ORdonly)), new byte[1], (long)Vmm.Unmapped);
        Assert.Equal((Errno.EIO, ProcMemFile.NotAccessible), (report.Errno, report.Causes[^1].Rule));
    }

    [Fact]
    public void Truncation_TakesCopiesOfPrivateMappingsToo_AHoleDoesNot()
    {
        TestHost host = Boot();
        int memfd = Vmm.Must(host.Vmm.Process.MemfdCreate("ram", 2));
        AssertOk(host.Vmm.Process.Ftruncate(memfd, 2 * 4096));
        ulong own = (ulong)AssertOk(host.Vmm.Process.Mmap(0, 2 * 4096, ReadWrite, Vmm.MapPrivate, memfd, 0)).Value;
        host.Vmm.Store(own, new byte[] { 1 });
        host.Vmm.Store(own + 4096, new byte[] { 2 });
        AssertOk(host.Vmm.Process.Fallocate(memfd, 3, 0, 4096));
        Assert.Equal(1, host.Vmm.Load(own, 1)[0]);
        AssertOk(host.Vmm.Process.Ftruncate(memfd, 4096));
        AssertOk(host.Vmm.Process.Ftruncate(memfd, 2 * 4096));
        Assert.Equal(0, host.Vmm.Load(own + 4096, 1)[0]);
    }

    // A seal that is set, and what then cannot be done any more.
    [Theory]
    [InlineData(8u)]
    [InlineData(0x10u)]
    public void MemfdSealedAgainstWrites_IsMappedReadOnly_AndStaysSo(uint seal)
    {
        TestHost host = Boot();
        Process process = host.Vmm.Process;
        int memfd = Vmm.Must(process.MemfdCreate("ram", 2));
        AssertOk(process.Ftruncate(memfd, 4096));
        AssertOk(process.Fcntl(memfd, AddSeals, seal));
        AssertRefused(process.Mmap(0, 4096, ReadWrite, Vmm.MapShared, memfd, 0), Errno.EPERM, MemfdSeals.Sealed);
        ulong shared = (ulong)AssertOk(process.Mmap(0, 4096, Vmm.ProtRead, Vmm.MapShared, memfd, 0)).Value;
        AssertRefused(process.Mprotect(shared, 4096, ReadWrite), Errno.EACCES, UserMemory.ProtectionForbidden);
        AssertOk(process.Mmap(0, 4096, ReadWrite, Vmm.MapPrivate, memfd, 0));
    }

    [Fact]
    public void Pipe_TakesODirect_WhichAsksForPackets()
    {
        var world = new World(Boot(kernel: new KernelConfig { Hugepages2M = 4 }));
        AssertOk(world.P.Fcntl(world.EmptyPipe, SetFlags, ODirect));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Read_OfFailedMemory_IsEio_AndWhatWasReadBeforeItCounts(bool huge)
    {
        var world = new World(Boot(kernel: new KernelConfig { Hugepages2M = 4 }));
        int fd = huge ? world.Huge : world.Memfd;
        int page = huge ? 2 << 20 : 4096;
        AssertOk(world.P.Fallocate(fd, 0, 0, 2 * page));
        AssertOk(world.P.InjectMemoryFailure(fd, huge ? 512ul : 1));
        Assert.Equal(10, AssertOk(world.P.ReadFile(fd, new byte[20], page - 10)).Value);
        AssertRefused(world.P.ReadFile(fd, new byte[20], page), Errno.EIO, ShmemFile.PageFailed);
        Assert.Equal(1, world.Host.Machine.LeakedPages);
        world.Host.Expect("memory-failure");
    }

    private sealed record BadCall(string Name, Func<World, CallReport> Call, Errno Errno, Rule Rule);

    /// <summary>One of each kind of file: a sealable memfd of three pages, the last a hole, mapped shared and writable with one page more; huge pages; pipes.</summary>
    private sealed class World
    {
        public World(TestHost host)
        {
            Host = host;
            Memfd = Vmm.Must(P.MemfdCreate("ram", 2));
            AssertOk(P.WriteFile(Memfd, new byte[2 * 4096], 0));
            AssertOk(P.Ftruncate(Memfd, 3 * 4096));
            ReadOnly = Vmm.Must(P.Open($"/proc/self/fd/{Memfd}", ORdonly));
            Memory = (ulong)AssertOk(P.Mmap(0, 4 * 4096, ReadWrite, Vmm.MapShared, Memfd, 0)).Value;
            Huge = Vmm.Must(P.MemfdCreate("huge", MfdHugetlb));
            AssertOk(P.Ftruncate(Huge, 4 << 20));
            AssertOk(P.Pipe(0, out int empty, out _));
            AssertOk(P.Pipe(0, out int filled, out int write));
            AssertOk(P.WriteFile(write, new byte[] { 1 }));
            (EmptyPipe, FilledPipe, FilledPipeWrites) = (empty, filled, write);
            Gmem = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM).CreateGmem(1, kvm_create_guest_memfd.GUEST_MEMFD_FLAG_MMAP);
        }

        public TestHost Host { get; }

        public Process P => Host.Vmm.Process;

        public int Memfd { get; }

        public int ReadOnly { get; }

        public ulong Memory { get; }

        public int Huge { get; }

        /// <summary>A guest_memfd of one page that may be mapped.</summary>
        public int Gmem { get; }

        public int EmptyPipe { get; }

        public int FilledPipe { get; }

        public int FilledPipeWrites { get; }

        public World Locked()
        {
            AssertOk(P.Mlock(Memory, 4096));
            return this;
        }

        public World Appending()
        {
            AssertOk(P.Fcntl(Memfd, SetFlags, OAppend));
            return this;
        }

        public FileStat[] Stats() => [.. new[] { Memfd, Huge }.Select(fd =>
        {
            AssertOk(P.Fstat(fd, out FileStat stat));
            return stat;
        })];
    }
}
