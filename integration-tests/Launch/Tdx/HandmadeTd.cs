using System.Buffers.Binary;
using SimMachine.Intel;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using TdcallRegisters = VmmService.V1.TdcallRegisters;
using TdxModule = VmmService.Client.TdxModule;

namespace VmmService.IntegrationTests.Launch.Tdx;

/// <summary>A TD built SEAMCALL by SEAMCALL over gRPC, as a kernel would.</summary>
internal sealed class HandmadeTd : IAsyncDisposable
{
    private const uint Hkid = 33;
    private const int TdcsPages = 6;
    private const int TdvpsPages = 6;

    private readonly HashSet<(int, ulong)> _tables = [];
    private readonly int _levels;

    private HandmadeTd(RemoteHost host, RemoteProcess process, TdxModule module, int levels)
    {
        (Host, Process, Module, _levels) = (host, process, module, levels);
    }

    public RemoteHost Host { get; }

    public RemoteProcess Process { get; }

    public TdxModule Module { get; }

    public ulong Tdr { get; private set; }

    public List<ulong> Vcpus { get; } = [];

    /// <summary>A host, and on it the module with nothing built.</summary>
    public static async Task<HandmadeTd> Open(Daemon daemon, bool gpaw52 = false, TdxConfig? tdx = null)
    {
        RemoteHost host = await daemon.Connection.CreateHostAsync("", 1, new MachineConfig { Platform = V1.Platform.IntelTdx, Tdx = tdx });
        RemoteProcess process = await host.CreateProcessAsync();
        return new HandmadeTd(host, process, await process.OpenTdxModuleAsync(), gpaw52 ? 5 : 4);
    }

    /// <summary>A TD that pages can be added to, with so many vCPUs.</summary>
    public static async Task<HandmadeTd> Build(Daemon daemon, int vcpus = 1, bool gpaw52 = false)
    {
        HandmadeTd td = await Open(daemon, gpaw52);
        await td.Create();
        await td.Initialize(Params(gpaw52));
        for (int i = 0; i < vcpus; i++)
        {
            td.Vcpus.Add(await td.AddVcpu());
        }
        return td;
    }

    /// <summary>TD_PARAMS that the module takes.</summary>
    public static byte[] Params(bool gpaw52 = false, ushort tsc = 80)
    {
        byte[] bytes = new byte[TdParams.Size];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(TdParams.XfamAt), 3);
        BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(TdParams.MaxVcpusAt), 8);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(TdParams.EptpControlsAt), gpaw52 ? 0x26UL : 0x1e);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(TdParams.ConfigFlagsAt), gpaw52 ? 5UL : 4);
        BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(TdParams.TscFrequencyAt), tsc);
        return bytes;
    }

    /// <summary>A SEAMCALL that is to succeed.</summary>
    public async Task<TdcallRegisters> Expect(SeamcallLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0) => await Module.SeamcallAsync((ulong)leaf, rcx, rdx, r8, r9);

    /// <summary>A SEAMCALL, whatever it answers.</summary>
    public Task<SeamcallResponse> Try(SeamcallLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0) => Module.SeamcallAsync((ulong)leaf, rcx, rdx, r8, r9).Reply;

    public Task<ulong> Page() => Module.AllocateAsync();

    public async Task<ulong> Page(ReadOnlyMemory<byte> content)
    {
        ulong page = await Page();
        await Module.WriteAsync(page, content);
        return page;
    }

    /// <summary>MNG.CREATE to the last ADDCX.</summary>
    public async Task Create(ulong hkid = Hkid)
    {
        Tdr = await Page();
        await Expect(SeamcallLeaf.TDH_MNG_CREATE, Tdr, hkid);
        await Expect(SeamcallLeaf.TDH_MNG_KEY_CONFIG, Tdr);
        for (int i = 0; i < TdcsPages; i++)
        {
            await Expect(SeamcallLeaf.TDH_MNG_ADDCX, await Page(), Tdr);
        }
    }

    public async Task Initialize(byte[] tdParams) => await Expect(SeamcallLeaf.TDH_MNG_INIT, Tdr, await Page(tdParams));

    public async Task<ulong> AddVcpu()
    {
        ulong tdvpr = await Page();
        await Expect(SeamcallLeaf.TDH_VP_CREATE, tdvpr, Tdr);
        for (int i = 1; i < TdvpsPages; i++)
        {
            await Expect(SeamcallLeaf.TDH_VP_ADDCX, await Page(), tdvpr);
        }
        await Expect(SeamcallLeaf.TDH_VP_INIT, tdvpr);
        return tdvpr;
    }

    /// <summary>Tables on the way to a page of 4 KiB; those that are there stay.</summary>
    public async Task AddTables(ulong gpa)
    {
        for (int level = _levels - 1; level >= 1; level--)
        {
            ulong aligned = gpa & ~((1UL << (12 + (9 * level))) - 1);
            if (_tables.Add((level, aligned)))
            {
                await Expect(SeamcallLeaf.TDH_MEM_SEPT_ADD, aligned | (uint)level, Tdr, await Page());
            }
        }
    }

    /// <summary>PAGE.ADD, with the tables that it needs.</summary>
    public async Task<ulong> Add(ulong gpa, ReadOnlyMemory<byte> content)
    {
        await AddTables(gpa);
        ulong target = await Page();
        await Expect(SeamcallLeaf.TDH_MEM_PAGE_ADD, gpa, Tdr, target, await Page(content));
        return target;
    }

    public async Task Extend(ulong gpa, ulong bytes)
    {
        for (ulong chunk = gpa; chunk < gpa + bytes; chunk += 256)
        {
            await Expect(SeamcallLeaf.TDH_MR_EXTEND, chunk, Tdr);
        }
    }

    /// <summary>MR.FINALIZE, and the vCPU goes in.</summary>
    public async Task Run()
    {
        await Expect(SeamcallLeaf.TDH_MR_FINALIZE, Tdr);
        await Expect(SeamcallLeaf.TDH_VP_ENTER, Vcpus[0]);
    }

    /// <summary>A TDCALL of the first vCPU that is to complete with success.</summary>
    public async Task<TdcallRegisters> Tdcall(TdcallLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0)
    {
        TdcallResponse reply = await Module.TdcallAsync(Vcpus[0], new TdcallRegisters { Rax = (ulong)leaf, Rcx = rcx, Rdx = rdx, R8 = r8 });
        Assert.Equal((TdVcpuOutcome.Completed, 0UL), (reply.Came, reply.Registers.Rax));
        return reply.Registers;
    }

    public Task<DescribeTdByTdrResponse> Describe() => Module.DescribeAsync(Tdr);

    /// <summary>State of the entry of a page of 4 KiB: FREE, or NO_TABLE where the walk ends before.</summary>
    public async Task<string> StateOf(ulong gpa)
    {
        DescribeTdByTdrResponse td = await Describe();
        bool hasTable = td.Entries.Any(entry => entry.Level == 1 && entry.Gpa == (gpa & ~0x1f_ffffUL) && entry.State.StartsWith("NL_", StringComparison.Ordinal));
        return td.Entries.FirstOrDefault(entry => entry.Level == 0 && entry.Gpa == gpa)?.State ?? (hasTable ? "FREE" : "NO_TABLE");
    }

    public async ValueTask DisposeAsync()
    {
        await Process.DisposeAsync();
        await Host.DisposeAsync();
    }
}
