using System.Buffers.Binary;
using System.Globalization;
using Google.Protobuf;
using VmmService.Client;
using VmmService.V1;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>
/// A simulated 6.18, built like the kernel that answered, with one process (and its forked child) that has descriptors and mappings by the names that the data uses.
/// What a row finds is made in <see cref="ReplaySetup"/>; how a row is asked is in <see cref="ReplayCalls"/>.
/// </summary>
internal sealed class ReplayWorld(VmmStubs stubs, string host, uint pid) : IAsyncDisposable
{
    public const ulong Page = 4096;
    public const uint ReadWrite = 3;
    public const uint MapShared = 1;
    public const uint MapPrivateAnonymous = 0x22;
    public const uint OPath = 0x20_0000;

    private readonly Dictionary<string, int> _fds = new(StringComparer.Ordinal);
    private readonly Dictionary<string, ulong> _maps = new(StringComparer.Ordinal);

    public VmmStubs Stubs { get; } = stubs;

    public string Host { get; } = host;

    /// <summary>The process that makes the calls.</summary>
    public uint Pid { get; set; } = pid;

    public uint Parent { get; } = pid;

    public uint Child { get; set; }

    /// <summary>Errno of the last call that a row repeats until it is refused.</summary>
    public string LastErrno { get; set; } = "";

    public static async Task<ReplayWorld> Boot(VmmStubs stubs)
    {
        Host host = (await stubs.Hosts.CreateHostAsync(new CreateHostRequest
        {
            Profile = "K618",
            Kernel = new KernelConfig { Tdp = false, Smm = false, SwProtectedVm = false },
            Machine = new MachineConfig { Sev = false, SevEs = false, SevSnp = false },
        })).Host;
        uint pid = (await stubs.Processes.CreateProcessAsync(new CreateProcessRequest { Host = host.Host_ })).Pid;
        var world = new ReplayWorld(stubs, host.Host_, pid);
        world.SetFd("kvm", await world.Open("/dev/kvm", 2));
        return world;
    }

    public bool HasFd(string name) => _fds.ContainsKey(name);

    public int SetFd(string name, Outcome opened) => SetFd(name, Must(opened));

    public int SetFd(string name, int fd) => _fds[name] = fd;

    public bool HasMap(string name) => _maps.ContainsKey(name);

    public ulong SetMap(string name, ulong address) => _maps[name] = address;

    public ulong Map(string name) => _maps[name];

    /// <summary>A descriptor as the data speaks of it: a name, a number, or in words.</summary>
    public async Task<int> Fd(string text)
    {
        if (text.StartsWith("closed", StringComparison.Ordinal))
        {
            int closed = Must(await Dup(_fds["kvm"]));
            Must(await Close(closed));
            return closed;
        }
        if (text.StartsWith("O_PATH of ", StringComparison.Ordinal))
        {
            return Must(await Open($"/proc/self/fd/{_fds[text["O_PATH of ".Length..]]}", OPath));
        }
        string name = text.Split(' ')[0];
        if (_fds.TryGetValue(name, out int fd))
        {
            return fd;
        }
        switch (name)
        {
            case "gmem":
                return SetFd("gmem", await CreateGmem("vm", Page, 0));
            case "pipe":
                PipeResponse pipe = await Stubs.Files.PipeAsync(new PipeRequest { Host = Host, Pid = Pid });
                Must(pipe.Outcome);
                return SetFd("pipe", pipe.WriteFd);
            case "memfd":
                return SetFd("memfd", (await Stubs.Files.MemfdCreateAsync(new MemfdCreateRequest { Host = Host, Pid = Pid, Name = "replay" })).Outcome);
            case "/proc/self/mem":
                return Must(await Open(name, 0));
            default:
                return unchecked((int)(uint)KernelAnswer.ToNumber(name));
        }
    }

    /// <summary>A user address as the data speaks of it: "A", "A+1", "anon", "kernel", or a number.</summary>
    public async Task<ulong> UserAddress(string text)
    {
        string name = text.Split(' ')[0];
        switch (name)
        {
            case "kernel":
                return 0xffff_8880_0000_0000;
            case "anon":
            case ['A', ..]:
                if (!HasMap("A"))
                {
                    SetMap("A", await Mmap(8 << 20, MapPrivateAnonymous, -1));
                }
                return Map("A") + (name.StartsWith("A+", StringComparison.Ordinal) ? KernelAnswer.ToNumber(name[2..]) : 0);
            default:
                return KernelAnswer.ToNumber(name);
        }
    }

    public static int Must(Outcome outcome) => outcome.Errno == 0 ? (int)outcome.Value : throw new InvalidOperationException($"the setup of a row failed: {outcome.Text}");

    public async Task<Outcome> Open(string path, uint flags) =>
        (await Stubs.Processes.OpenAsync(new OpenRequest { Host = Host, Pid = Pid, Path = path, Flags = flags })).Outcome;

    public async Task<Outcome> Close(int fd) => (await Stubs.Processes.CloseAsync(new CloseRequest { Host = Host, Pid = Pid, Fd = fd })).Outcome;

    public async Task<Outcome> Dup(int fd) => (await Stubs.Files.DupAsync(new DupRequest { Host = Host, Pid = Pid, Fd = fd })).Outcome;

    public async Task<Outcome> Ioctl(int fd, uint request, ulong arg = 0) =>
        (await Stubs.Processes.RawIoctlAsync(new RawIoctlRequest { Host = Host, Pid = Pid, Fd = fd, Request = request, Arg = arg })).Outcome;

    public async Task<RawIoctlResponse> Ioctl(int fd, uint request, byte[] data) =>
        await Stubs.Processes.RawIoctlAsync(new RawIoctlRequest { Host = Host, Pid = Pid, Fd = fd, Request = request, Data = ByteString.CopyFrom(data) });

    public async Task<Outcome> CreateGmem(string vm, ulong size, ulong flags) =>
        (await Ioctl(_fds[vm], 0xC040AED4, Pack(64, (0, size, 8), (8, flags, 8)))).Outcome;

    public async Task<Outcome> SetRegion2(uint slot, uint flags, ulong gpa, ulong size, ulong uaddr, int gmem = 0, ulong offset = 0) =>
        (await Ioctl(_fds["vm"], 0x40A0AE49, Region(160, slot, flags, gpa, size, uaddr, gmem, offset))).Outcome;

    public static byte[] Region(int length, uint slot, uint flags, ulong gpa, ulong size, ulong uaddr, int gmem, ulong offset) => length == 32
        ? Pack(32, (0, slot, 4), (4, flags, 4), (8, gpa, 8), (16, size, 8), (24, uaddr, 8))
        : Pack(160, (0, slot, 4), (4, flags, 4), (8, gpa, 8), (16, size, 8), (24, uaddr, 8), (32, offset, 8), (40, unchecked((uint)gmem), 4));

    public async Task<Outcome> EnableCap(string fd, uint cap, uint flags, ulong args0) =>
        (await Ioctl(_fds[fd], 0x4068AEA3, Pack(104, (0, cap, 4), (4, flags, 4), (8, args0, 8)))).Outcome;

    public async Task<ulong> Mmap(ulong length, uint flags, int fd, ulong offset = 0, uint prot = ReadWrite, ulong addr = 0)
    {
        MmapResponse mapped = await TryMmap(length, flags, fd, offset, prot, addr);
        Must(mapped.Outcome);
        return mapped.Addr;
    }

    public async Task<MmapResponse> TryMmap(ulong length, uint flags, int fd, ulong offset = 0, uint prot = ReadWrite, ulong addr = 0) =>
        await Stubs.Processes.MmapAsync(new MmapRequest { Host = Host, Pid = Pid, Addr = addr, Length = length, Prot = prot, Flags = flags, Fd = fd, Offset = offset });

    public async Task<ReadMemoryResponse> Read(ulong address, ulong length) =>
        await Stubs.Processes.ReadMemoryAsync(new ReadMemoryRequest { Host = Host, Pid = Pid, Addr = address, Length = length });

    public async Task<Outcome> Write(ulong address, params byte[] bytes) => (await Stubs.Processes.WriteMemoryAsync(
        new WriteMemoryRequest { Host = Host, Pid = Pid, Addr = address, Content = new Content { Inline = ByteString.CopyFrom(bytes) } })).Outcome;

    public async Task<StatResponse> Stat(int fd) => await Stubs.Files.StatAsync(new StatRequest { Host = Host, Pid = Pid, Fd = fd });

    /// <summary>The child of the process, forked when it is first asked for.</summary>
    public async Task<uint> Fork()
    {
        if (Child == 0)
        {
            Child = (uint)Must((await Stubs.Processes.ForkAsync(new ForkRequest { Host = Host, Pid = Parent })).Outcome);
        }
        return Child;
    }

    /// <summary>A structure: values of so many bytes at offsets, zeros elsewhere.</summary>
    public static byte[] Pack(int length, params (int Offset, ulong Value, int Bytes)[] fields)
    {
        byte[] bytes = new byte[length];
        Span<byte> value = stackalloc byte[8];
        foreach ((int offset, ulong number, int count) in fields)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(value, number);
            value[..count].CopyTo(bytes.AsSpan(offset));
        }
        return bytes;
    }

    public static string Hex(ulong value) => "0x" + value.ToString("x", CultureInfo.InvariantCulture);

    public async ValueTask DisposeAsync() => await Stubs.Hosts.DeleteHostAsync(new DeleteHostRequest { Host = Host });
}
