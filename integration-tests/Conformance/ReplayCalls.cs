using System.Buffers.Binary;
using System.Globalization;
using VmmService.V1;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>What a simulated kernel answered to a row.</summary>
/// <param name="More">What the row has recorded beside the return value, by the same names.</param>
/// <param name="At">Start of the mapping that the row is about.</param>
internal sealed record SimulatedAnswer(Outcome Outcome, IReadOnlyDictionary<string, string> More, ulong At = 0);

/// <summary>How the `call` of a row is asked.</summary>
internal static class ReplayCalls
{
    private const uint EnableCap = 0x4068AEA3;

    // Numbers of the KVM ioctls that the data names, and the length of their structures.
    private static readonly Dictionary<string, uint> s_ioctls = new(StringComparer.Ordinal)
    {
        ["KVM_CREATE_VM"] = 0xAE01,
        ["KVM_CHECK_EXTENSION"] = 0xAE03,
        ["KVM_GET_VCPU_MMAP_SIZE"] = 0xAE04,
        ["KVM_GET_MSR_INDEX_LIST"] = 0xC004AE02,
        ["KVM_HAS_DEVICE_ATTR"] = 0x4018AEE3,
        ["KVM_CREATE_VCPU"] = 0xAE41,
        ["KVM_GET_DIRTY_LOG"] = 0x4010AE42,
        ["KVM_SET_USER_MEMORY_REGION"] = 0x4020AE46,
        ["KVM_SET_TSS_ADDR"] = 0xAE47,
        ["KVM_SET_IDENTITY_MAP_ADDR"] = 0x4008AE48,
        ["KVM_SET_USER_MEMORY_REGION2"] = 0x40A0AE49,
        ["KVM_RUN"] = 0xAE80,
        ["KVM_GET_REGS"] = 0x8090AE81,
        ["KVM_ENABLE_CAP"] = EnableCap,
        ["KVM_MEMORY_ENCRYPT_OP"] = 0xC008AEBA,
        ["KVM_MEMORY_ENCRYPT_REG_REGION"] = 0x8010AEBB,
        ["KVM_CLEAR_DIRTY_LOG"] = 0xC018AEC0,
        ["KVM_SET_MEMORY_ATTRIBUTES"] = 0x4020AED2,
        ["KVM_SET_MEMORY_ATTRIBUTES2"] = 0xC080AED2,
        ["KVM_CREATE_GUEST_MEMFD"] = 0xC040AED4,
        ["KVM_PRE_FAULT_MEMORY"] = 0xC040AED5,
        ["FIONREAD"] = 0x541b,
        ["FIOQSIZE"] = 0x5460,
        ["FIGETBSZ"] = 2,
        ["unknown"] = 0xaeff,
    };

    private static readonly Dictionary<string, uint> s_openFlags = new(StringComparer.Ordinal) { ["O_RDONLY"] = 0, ["O_RDWR"] = 2, ["O_PATH"] = ReplayWorld.OPath };

    public static async Task<SimulatedAnswer> Perform(ReplayWorld world, KernelAnswer row) => row.Call switch
    {
        "host_read" or "host_write" => await Access(world, row),
        _ when row.Call.EndsWith('*') => await Repeat(world, row),
        _ when row.Call.StartsWith("KVM_", StringComparison.Ordinal) || row.Call == "ioctl" => await Ioctl(world, row),
        "mmap" or "munmap" or "mremap" or "madvise" or "msync" or "mprotect" or "mlock" or "mbind" or "process_vm_readv" => await Memory(world, row),
        _ => await File(world, row),
    };

    private static async Task<SimulatedAnswer> Access(ReplayWorld world, KernelAnswer row)
    {
        string name = row.Text("map")!;
        if (name == "vcpu+mmap_size" && !world.HasMap(name))
        {
            world.SetMap(name, await world.Mmap(ReplayWorld.Page, ReplayWorld.MapShared, await world.Fd("vcpu"), offset: 12288));
        }
        ulong map = world.Map(name);
        ulong address = map + row.Number("offset");
        if (row.Call == "host_write")
        {
            return Answer(await world.Write(address, (byte)row.Number("value")), at: map);
        }
        ReadMemoryResponse read = await world.Read(address, 1);
        return Answer(read.Outcome, map, ("value", read.Data.Length == 0 ? "" : read.Data[0].ToString(CultureInfo.InvariantCulture)));
    }

    // "KVM_CREATE_VCPU*": the call for one number after another, until it is refused or there are as many as the row says. The value is how many succeeded.
    private static async Task<SimulatedAnswer> Repeat(ReplayWorld world, KernelAnswer row)
    {
        int vm = await world.Fd("vm");
        ulong a = await world.UserAddress("A");
        bool vcpus = row.Call == "KVM_CREATE_VCPU*";
        ulong most = vcpus ? ulong.Parse(row.Text("ids")!.Split("..")[1], CultureInfo.InvariantCulture) + 1 : row.Number("slots");
        uint done = 0;
        var last = new Outcome();
        for (; done < most && last.Errno == 0; done += last.Errno == 0 ? 1u : 0)
        {
            last = vcpus
                ? await world.Ioctl(vm, s_ioctls["KVM_CREATE_VCPU"], done)
                : await world.SetRegion2(done, 0, done * ReplayWorld.Page, ReplayWorld.Page, a);
        }
        return Answer(new Outcome { Value = done }, 0, ("refusal_errno", last.ErrnoName), ("stop_errno", last.ErrnoName));
    }

    private static async Task<SimulatedAnswer> Ioctl(ReplayWorld world, KernelAnswer row)
    {
        string name = row.Call == "ioctl" ? row.Text("cmd")! : row.Call;
        uint request = s_ioctls.TryGetValue(name, out uint known) ? known : (uint)KernelAnswer.ToNumber(name);
        int fd = await IoctlFd(world, row, request);
        if (row.Text("arg") is { } arg)
        {
            return Answer(await world.Ioctl(fd, request, arg switch
            {
                "NULL" => 0,
                "32 readable bytes, then an inaccessible page" => await StructAtPageEnd(world),
                _ => KernelAnswer.ToNumber(arg),
            }));
        }
        switch (row.Call)
        {
            case "ioctl" when name == "unknown":
                return Answer(await world.Ioctl(fd, request));
            case "ioctl":
                // The recording program had put -7 where the answer goes.
                byte[] seven = ReplayWorld.Pack(8, (0, unchecked((uint)-7), 4));
                RawIoctlResponse asked = await world.Ioctl(fd, request, seven);
                return Answer(asked.Outcome, 0, ("value", BinaryPrimitives.ReadInt32LittleEndian(asked.Data.Span).ToString(CultureInfo.InvariantCulture)));
            case "KVM_CREATE_VM":
                return Answer(await world.Ioctl(fd, request, row.Number("type")));
            case "KVM_CHECK_EXTENSION":
                return Answer(await world.Ioctl(fd, request, row.Number("cap")));
            case "KVM_SET_TSS_ADDR":
                return Answer(await world.Ioctl(fd, request, row.Number("addr")));
            case "KVM_CREATE_VCPU":
                return await CreateVcpu(world, row, await world.Ioctl(fd, request, row.Number("id")));
            case "KVM_SET_USER_MEMORY_REGION":
            case "KVM_SET_USER_MEMORY_REGION2":
                return Answer((await world.Ioctl(fd, request, await Region(world, row))).Outcome);
            case "KVM_CREATE_GUEST_MEMFD":
                Outcome created = (await world.Ioctl(fd, request, GuestMemfd(row))).Outcome;
                string size = row.More.ContainsKey("st_size") && created.Errno == 0 ? (await world.Stat((int)created.Value)).StSize.ToString(CultureInfo.InvariantCulture) : "";
                return Answer(created, 0, ("st_size", size));
            default:
                RawIoctlResponse answer = await world.Ioctl(fd, request, await Structure(world, row));
                ReadOnlySpan<byte> data = answer.Data.Span;
                ulong Field(int at) => answer.Data.Length >= at + 8 ? BinaryPrimitives.ReadUInt64LittleEndian(answer.Data.Span[at..]) : 0;
                return Answer(
                    answer.Outcome, 0, ("gpa_out", ReplayWorld.Hex(Field(0))), ("size_out", ReplayWorld.Hex(Field(8))),
                    ("nmsrs_out", data.Length >= 4 ? BinaryPrimitives.ReadUInt32LittleEndian(data).ToString(CultureInfo.InvariantCulture) : ""));
        }
    }

    private static async Task<int> IoctlFd(ReplayWorld world, KernelAnswer row, uint request)
    {
        if (row.Text("dev_open") is { } flags)
        {
            return ReplayWorld.Must(await world.Open("/dev/kvm", s_openFlags[flags]));
        }
        if (row.Text("fd") is { } fd)
        {
            return await world.Fd(fd);
        }
        return await world.Fd(row.Call switch
        {
            "KVM_CREATE_VM" or "KVM_GET_VCPU_MMAP_SIZE" or "KVM_GET_MSR_INDEX_LIST" or "KVM_HAS_DEVICE_ATTR" => "kvm",
            "KVM_RUN" or "KVM_GET_REGS" or "KVM_PRE_FAULT_MEMORY" => "vcpu",
            _ => "vm",
        });
    }

    private static async Task<SimulatedAnswer> CreateVcpu(ReplayWorld world, KernelAnswer row, Outcome created)
    {
        if (!row.More.ContainsKey("link"))
        {
            return Answer(created);
        }
        FcntlResponse flags = await world.Stubs.Files.FcntlAsync(new FcntlRequest { Host = world.Host, Pid = world.Pid, Fd = (int)created.Value, Cmd = 1 });
        ReadlinkResponse link = await world.Stubs.Files.ReadlinkAsync(
            new ReadlinkRequest { Host = world.Host, Pid = world.Pid, Path = $"/proc/self/fd/{created.Value}" });
        return Answer(created, 0, ("fd_cloexec", flags.Outcome.Value == 1 ? "True" : "False"), ("link", link.Target));
    }

    private static async Task<byte[]> Region(ReplayWorld world, KernelAnswer row)
    {
        // Some rows say only what differs from a region that works.
        int length = row.Call.EndsWith('2') ? 160 : 32;
        string? gmem = row.Text("gmem_fd");
        return ReplayWorld.Region(
            length, (uint)row.Number("slot"), (uint)row.Number("flags"), row.Number("gpa"), row.Number("size", ReplayWorld.Page),
            await world.UserAddress(row.Text("uaddr") ?? "A"), gmem is null ? 0 : await world.Fd(gmem), row.Number("gmem_offset"));
    }

    private static byte[] GuestMemfd(KernelAnswer row)
    {
        byte[] bytes = ReplayWorld.Pack(64, (0, row.Number("size"), 8), (8, row.Number("flags"), 8));
        if (row.Has("reserved"))
        {
            foreach (System.Text.Json.JsonProperty each in row.Args.GetProperty("reserved").EnumerateObject())
            {
                BinaryPrimitives.WriteUInt64LittleEndian(
                    bytes.AsSpan(16 + (8 * int.Parse(each.Name, CultureInfo.InvariantCulture))), KernelAnswer.ToNumber(each.Value.ToString()));
            }
        }
        return bytes;
    }

    private static async Task<byte[]> Structure(ReplayWorld world, KernelAnswer row)
    {
        ulong bitmap = row.Text("bitmap") == "NULL" ? 0 : row.Call.Contains("DIRTY", StringComparison.Ordinal) ? await world.UserAddress("A") : 0;
        return row.Call switch
        {
            "KVM_ENABLE_CAP" => ReplayWorld.Pack(104, (0, row.Number("cap"), 4), (4, row.Number("flags"), 4), (8, row.Number("args0"), 8)),
            "KVM_GET_MSR_INDEX_LIST" => ReplayWorld.Pack(4 + (4 * 1024), (0, row.Number("nmsrs"), 4)),
            "KVM_HAS_DEVICE_ATTR" => ReplayWorld.Pack(24, (4, row.Number("group"), 4), (8, row.Number("attr"), 8)),
            "KVM_SET_IDENTITY_MAP_ADDR" => ReplayWorld.Pack(8, (0, row.Number("addr"), 8)),
            "KVM_GET_REGS" => new byte[144],
            "KVM_MEMORY_ENCRYPT_OP" => ReplayWorld.Pack(24, (0, row.Number("id"), 4)),
            "KVM_MEMORY_ENCRYPT_REG_REGION" => ReplayWorld.Pack(16, (0, row.Number("addr"), 8), (8, row.Number("size"), 8)),
            "KVM_GET_DIRTY_LOG" => ReplayWorld.Pack(16, (0, row.Number("slot"), 4), (8, bitmap, 8)),
            "KVM_CLEAR_DIRTY_LOG" => ReplayWorld.Pack(24, (0, row.Number("slot"), 4), (4, row.Number("num"), 4), (8, row.Number("first"), 8), (16, bitmap, 8)),
            "KVM_SET_MEMORY_ATTRIBUTES2" => ReplayWorld.Pack(128, (0, row.Number("offset"), 8), (8, row.Number("size"), 8), (16, row.Number("attributes"), 8)),
            "KVM_PRE_FAULT_MEMORY" => ReplayWorld.Pack(64, (0, row.Number("gpa"), 8), (8, row.Number("size"), 8), (16, row.Number("flags"), 8)),
            _ => throw new InvalidOperationException($"nobody knows the structure of {row.Call}"),
        };
    }

    // A region of one page in the last 32 bytes before a page that cannot be read.
    private static async Task<ulong> StructAtPageEnd(ReplayWorld world)
    {
        ulong pages = await world.Mmap(2 * ReplayWorld.Page, ReplayWorld.MapPrivateAnonymous, -1);
        ulong address = pages + ReplayWorld.Page - 32;
        ReplayWorld.Must(await world.Write(address, ReplayWorld.Region(32, 0, 0, 0, ReplayWorld.Page, await world.UserAddress("A"), 0, 0)));
        ReplayWorld.Must((await world.Stubs.Processes.MprotectAsync(
            new MprotectRequest { Host = world.Host, Pid = world.Pid, Addr = pages + ReplayWorld.Page, Length = ReplayWorld.Page })).Outcome);
        return address;
    }

    private static async Task<SimulatedAnswer> Memory(ReplayWorld world, KernelAnswer row)
    {
        string name = world.HasMap("gmem") ? row.Call == "mprotect" ? "gmem ro" : "gmem" : "P";
        ulong map = world.HasMap(name) ? world.Map(name) : 0;
        ulong length = row.Number("len", ReplayWorld.Page);
        ulong at = map + (row.Text("at") == "past EOF" ? 4 * ReplayWorld.Page : 0);
        ProcessService.ProcessServiceClient process = world.Stubs.Processes;
        switch (row.Call)
        {
            case "mmap":
                uint flags = row.Text("flags") switch { null or "MAP_SHARED" => 1, "MAP_PRIVATE" => 2, var text => (uint)KernelAnswer.ToNumber(text) };
                return Answer((await world.TryMmap(row.Number("len"), flags, await world.Fd(row.Text("fd") ?? "gmem"), row.Number("offset"), (uint)row.Number("prot", 3))).Outcome);
            case "munmap":
                return Answer((await process.MunmapAsync(new MunmapRequest { Host = world.Host, Pid = world.Pid, Addr = map, Length = 2 << 20 })).Outcome);
            case "mremap":
                MremapResponse moved = await process.MremapAsync(new MremapRequest
                {
                    Host = world.Host,
                    Pid = world.Pid,
                    Addr = map,
                    OldLength = row.Number("old"),
                    NewLength = row.Number("new"),
                    Flags = row.Text("flags") == "MAYMOVE" ? 1u : 0,
                });
                if (moved.Outcome.Errno == 0)
                {
                    world.SetMap(name, moved.Addr);
                }
                return Answer(moved.Outcome);
            case "madvise":
                return Answer((await process.MadviseAsync(new MadviseRequest { Host = world.Host, Pid = world.Pid, Addr = at, Length = length, Advice = (uint)row.Number("advice") })).Outcome);
            case "msync":
                uint sync = row.Text("flags") == "MS_SYNC" ? 4u : 1u;
                return Answer((await process.MsyncAsync(new MsyncRequest { Host = world.Host, Pid = world.Pid, Addr = map, Length = length, Flags = sync })).Outcome);
            case "mprotect":
                uint prot = (uint)row.Text("prot")!.Split('|').Sum(each => each switch { "R" => 1, "W" => 2, _ => 4 });
                return Answer((await process.MprotectAsync(new MprotectRequest { Host = world.Host, Pid = world.Pid, Addr = map, Length = length, Prot = prot })).Outcome);
            case "mlock":
                return Answer((await process.MlockAsync(new MlockRequest { Host = world.Host, Pid = world.Pid, Addr = map, Length = length })).Outcome);
            case "mbind":
                return Answer((await process.MbindAsync(new MbindRequest
                {
                    Host = world.Host,
                    Pid = world.Pid,
                    Addr = map,
                    Length = length,
                    Mode = (uint)row.Number("mode"),
                    Nodes = 1UL << (int)row.Number("node"),
                })).Outcome);
            default:
                var request = new ProcessVmRequest { Host = world.Host, Pid = world.Pid, RemotePid = world.Pid };
                request.Local.Add(new IoVec { Base = await world.UserAddress("A"), Length = length });
                request.Remote.Add(new IoVec { Base = Buffer(world, row.Text("remote")!), Length = length });
                return Answer((await process.ProcessVmAsync(request)).Outcome);
        }
    }

    // "gmem page 0", "gmem past EOF"
    private static ulong Buffer(ReplayWorld world, string text) => world.Map("gmem") + (text.EndsWith("past EOF", StringComparison.Ordinal) ? 4 * ReplayWorld.Page : 0);

    private static async Task<SimulatedAnswer> File(ReplayWorld world, KernelAnswer row)
    {
        FileService.FileServiceClient files = world.Stubs.Files;
        string host = world.Host;
        uint pid = world.Pid;
        ulong count = row.Number("count");
        if (row.Call == "open")
        {
            string path = row.Text("path")!;
            path = path.EndsWith("/N", StringComparison.Ordinal) ? path[..^1] + (await world.Fd("gmem")).ToString(CultureInfo.InvariantCulture) : path;
            return Answer(await world.Open(path, s_openFlags[row.Text("flags")!]));
        }
        int fd = await world.Fd(row.Text("in") ?? row.Text("fd") ?? (row.Call == "vmsplice" ? "pipe" : "gmem"));
        ulong buffer = row.Text("buf") is { } named ? Buffer(world, named) : await world.UserAddress("A");
        var vectors = new IoVec { Base = buffer, Length = row.Number("len", 64) };
        switch (row.Call)
        {
            case "close":
                return Answer(await world.Close(fd));
            case "read":
                return Answer((await files.ReadAsync(new ReadRequest { Host = host, Pid = pid, Fd = fd, Buf = buffer, Count = count })).Outcome);
            case "write":
                return Answer((await files.WriteAsync(new WriteRequest { Host = host, Pid = pid, Fd = fd, Buf = buffer, Count = count })).Outcome);
            case "pread":
                long offset = row.Has("at") ? (long)Buffer(world, row.Text("at")!) : (long)row.Number("offset");
                return Answer((await files.ReadAsync(new ReadRequest { Host = host, Pid = pid, Fd = fd, Buf = buffer, Count = count, Offset = offset })).Outcome);
            case "pwrite":
                return Answer((await files.WriteAsync(new WriteRequest { Host = host, Pid = pid, Fd = fd, Buf = buffer, Count = count, Offset = (long)row.Number("offset") })).Outcome);
            case "readv":
                return Answer((await files.ReadvAsync(new ReadvRequest { Host = host, Pid = pid, Fd = fd, Iov = { vectors } })).Outcome);
            case "writev":
                return Answer((await files.WritevAsync(new WritevRequest { Host = host, Pid = pid, Fd = fd, Iov = { vectors } })).Outcome);
            case "preadv2":
                return Answer((await files.ReadvAsync(new ReadvRequest { Host = host, Pid = pid, Fd = fd, Iov = { vectors }, Offset = (long)row.Number("offset") })).Outcome);
            case "lseek":
                uint whence = (uint)Array.IndexOf(["SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA", "SEEK_HOLE"], row.Text("whence") ?? "SEEK_SET");
                return Answer((await files.LseekAsync(new LseekRequest { Host = host, Pid = pid, Fd = fd, Offset = (long)row.Number("offset"), Whence = whence })).Outcome);
            case "sendfile":
                return Answer((await files.SendfileAsync(new SendfileRequest { Host = host, Pid = pid, Fd = fd, OutFd = await world.Fd("pipe"), Count = count })).Outcome);
            case "splice":
                return Answer((await files.SpliceAsync(new SpliceRequest { Host = host, Pid = pid, Fd = fd, OutFd = await world.Fd("pipe"), Count = count })).Outcome);
            case "vmsplice":
                return Answer((await files.VmspliceAsync(new VmspliceRequest { Host = host, Pid = pid, Fd = fd, Iov = { vectors } })).Outcome);
            case "ftruncate":
                return Answer((await files.FtruncateAsync(new FtruncateRequest { Host = host, Pid = pid, Fd = fd, Length = (long)row.Number("length") })).Outcome);
            case "fchmod":
                return Answer((await files.FchmodAsync(new FchmodRequest { Host = host, Pid = pid, Fd = fd, Mode = 0x180 })).Outcome);
            case "fchown":
                return Answer((await files.FchownAsync(new FchownRequest { Host = host, Pid = pid, Fd = fd })).Outcome);
            case "futimens":
                return Answer((await files.FutimensAsync(new FutimensRequest { Host = host, Pid = pid, Fd = fd })).Outcome);
            case "fsync" or "fdatasync":
                return Answer((await files.FsyncAsync(new FsyncRequest { Host = host, Pid = pid, Fd = fd, DataOnly = row.Call == "fdatasync" })).Outcome);
            case "flock":
                return Answer((await files.FlockAsync(new FlockRequest { Host = host, Pid = pid, Fd = fd, Operation = 2 | 4 })).Outcome);
            case "posix_fadvise":
                return Answer((await files.FadviseAsync(new FadviseRequest { Host = host, Pid = pid, Fd = fd, Advice = 4 })).Outcome);
            case "fcntl":
                uint command = row.Text("cmd") switch { "F_GETFD" => 1, "F_GETFL" => 3, _ => 1033 };
                return Answer((await files.FcntlAsync(new FcntlRequest { Host = host, Pid = pid, Fd = fd, Cmd = command, Arg = row.Number("arg") })).Outcome);
            case "poll":
                PollResponse poll = await files.PollAsync(new PollRequest { Host = host, Pid = pid, Fds = { new PollFd { Fd = fd, Events = 1 | 4 } } });
                return Answer(poll.Outcome, 0, ("revents", poll.Revents[0].ToString(CultureInfo.InvariantCulture)));
            case "fstatfs":
                StatfsResponse fs = await files.StatfsAsync(new StatfsRequest { Host = host, Pid = pid, Fd = fd });
                return Answer(fs.Outcome, 0, ("f_type", ReplayWorld.Hex(fs.FType)), ("f_bsize", fs.FBsize.ToString(CultureInfo.InvariantCulture)));
            case "fstat":
                StatResponse stat = await world.Stat(fd);
                return Answer(
                    stat.Outcome, 0, ("st_size", Decimal(stat.StSize)), ("st_mode", "0" + Convert.ToString(stat.StMode, 8)), ("st_nlink", Decimal(stat.StNlink)),
                    ("st_uid", Decimal(stat.StUid)), ("st_gid", Decimal(stat.StGid)), ("st_blksize", Decimal(stat.StBlksize)), ("st_blocks", Decimal(stat.StBlocks)),
                    ("st_rdev", Decimal(stat.StRdev)));
            case "fallocate":
                return await Fallocate(world, row, fd);
            default:
                throw new InvalidOperationException($"nobody knows how to call {row.Call}");
        }
    }

    private static async Task<SimulatedAnswer> Fallocate(ReplayWorld world, KernelAnswer row, int fd)
    {
        StatResponse before = await world.Stat(fd);
        FallocateResponse called = await world.Stubs.GuestMemfd.FallocateAsync(new FallocateRequest
        {
            Host = world.Host,
            Pid = world.Pid,
            Fd = fd,
            Mode = (uint)row.Number("mode"),
            Offset = (long)row.Number("offset"),
            Len = (long)row.Number("len"),
        });
        StatResponse after = await world.Stat(fd);
        return Answer(
            called.Outcome, 0, ("st_size_after", Decimal(after.StSize)), ("st_blocks_after", Decimal(after.StBlocks)),
            ("mtime_changed", after.StMtimeCall != before.StMtimeCall ? "True" : "False"));
    }

    private static string Decimal(ulong value) => value.ToString(CultureInfo.InvariantCulture);

    private static SimulatedAnswer Answer(Outcome outcome, ulong at = 0, params (string Name, string Value)[] more) =>
        new(outcome, more.ToDictionary(each => each.Name, each => each.Value, StringComparer.Ordinal), at);
}
