using System.Globalization;
using System.Text.RegularExpressions;
using VmmService.V1;

namespace VmmService.IntegrationTests.Conformance;

/// <summary>What the `pre` of a row means, as calls. The recording program did what the words say; where rows of an area build on each other, they are asked in order.</summary>
internal static partial class ReplaySetup
{
    private const uint GmemFlag = 4;
    private const ulong M = 1 << 20;

    /// <summary>Areas whose rows build on each other: their `pre` is made once, then again only when it changes.</summary>
    private static readonly HashSet<string> s_sequences = new(StringComparer.Ordinal)
    {
        "access_mmap", "access_mmap_shared", "access_pmd", "slot_modify", "gslot_use", "slot_fill",
        "life_vm_first", "life_gmem_first", "life_vcpu_last", "life_other_process",
    };

    // The data is a selection: what rows rely on and no row of it does.
    private static readonly Dictionary<string, Func<ReplayWorld, Task>> s_before = new(StringComparer.Ordinal)
    {
        ["vm/max_vcpu_id_again_other"] = world => world.EnableCap("vm", 128, 0, 16),
        ["vm/region_over_tss"] = async world =>
        {
            await world.Ioctl(await world.Fd("vm"), 0xAE47, 0xfffb_d000);
        },
        ["gslot_delete/rebind_same_range"] = world => DeleteSlot(world, 10),
        ["gslot_delete/rebind_whole"] = world => DeleteSlot(world, 10),
    };

    private static readonly Dictionary<string, Func<ReplayWorld, Task>> s_after = new(StringComparer.Ordinal)
    {
        // The recording program unlocked again, or MADV_DONTNEED further down would have been refused.
        ["access_mmap_shared/mlock"] = async world => await world.Stubs.Processes.MlockAsync(
            new MlockRequest { Host = world.Host, Pid = world.Pid, Addr = world.Map("gmem"), Length = ReplayWorld.Page, Unlock = true }),
    };

    /// <summary>Brings the world to where the row was asked.</summary>
    public static async Task Prepare(ReplayWorld world, KernelAnswer row, KernelAnswer? previous)
    {
        if (previous is null || row.Pre != previous.Pre || !s_sequences.Contains(row.Area))
        {
            await Make(world, row, first: previous is null);
        }
        if (s_before.TryGetValue(row.Id, out Func<ReplayWorld, Task>? before))
        {
            await before(world);
        }
        await DoWhatWhenSays(world, row);
    }

    /// <summary>Undoes what the row left and the next one must not find.</summary>
    public static Task Finish(ReplayWorld world, KernelAnswer row) =>
        s_after.TryGetValue(row.Id, out Func<ReplayWorld, Task>? after) ? after(world) : Task.CompletedTask;

    private static async Task Make(ReplayWorld world, KernelAnswer row, bool first)
    {
        world.Pid = world.Parent;
        string pre = row.Pre;
        if (GmemOfSize().Match(pre) is { Success: true } gmem)
        {
            if (!world.HasFd("gmem") || first || !pre.Contains("mapping", StringComparison.Ordinal))
            {
                await MakeMappedGmem(world, gmem, pages: pre.Contains("16-page", StringComparison.Ordinal) ? 16 : pre.Contains("2M MAP_SHARED", StringComparison.Ordinal) ? 512 : 0);
            }
            return;
        }
        switch (pre)
        {
            case "open(/dev/kvm)":
            case "gmem fd closed, mapping kept":
            case "default VM, slots 1,2,3 present (see slot_modify)" when row.Area != "slot_delete":
            case "slot 21 bound to G, G's only fd closed":
                break;
            case "child after fork, mapping inherited":
                world.Pid = await world.Fork();
                break;
            default:
                await SetFdLimit(world, 4096);
                await NewVm(world);
                await MakeVm(world, row.Area, pre);
                break;
        }
    }

    private static async Task MakeVm(ReplayWorld world, string area, string pre)
    {
        ulong a = await world.UserAddress("A");
        switch (pre)
        {
            case "fresh default VM":
            case "fresh default VM, creating ids 0.. until refused":
            case "default VM, no slots":
            case "default VM, no slots, KVM_CAP_NR_MEMSLOTS=32764":
            case "default VM, one page per slot id 0..NR_MEMSLOTS-1":
                break;
            case "fresh default VM, RLIMIT_NOFILE already reached":
                int next = ReplayWorld.Must(await world.Dup(await world.Fd("kvm")));
                ReplayWorld.Must(await world.Close(next));
                await SetFdLimit(world, (uint)next);
                break;
            case "VM with KVM_CAP_MAX_VCPU_ID enabled at 16":
                ReplayWorld.Must(await world.EnableCap("vm", 128, 0, 16));
                break;
            case "default VM with vCPU 0":
            case "default VM, vCPU 0, no memslots; KVM_CAP_PRE_FAULT_MEMORY reads 0 on this host":
                world.SetFd("vcpu", await world.Ioctl(await world.Fd("vm"), 0xAE41, 0));
                break;
            case "vm fd closed, vCPU fd still open":
                world.SetFd("vcpu", await world.Ioctl(await world.Fd("vm"), 0xAE41, 0));
                await world.Close(await world.Fd("vm"));
                break;
            case "default VM, no slots, 2M anonymous memory at A, gmem G of 8M":
            case "default VM, slot 10 absent; G = gmem of 8M":
                world.SetFd("G", await world.CreateGmem("vm", 8 * M, 0));
                break;
            case "default VM, slot 1 = gpa [0x400000,0x800000)":
                await Slot(world, 1, 0, 0x40_0000, 4 * M, a);
                break;
            case "default VM, slot 1 = gpa 0x400000 size 4M uaddr A flags 0; slot 2 = gpa 0x10000000 size 4M":
            case "default VM, slots 1,2,3 present (see slot_modify)":
                world.SetFd("G", await world.CreateGmem("vm", 8 * M, 0));
                await Slot(world, 1, 0, 0x40_0000, 4 * M, a);
                await Slot(world, 2, 0, 0x1000_0000, 4 * M, a);
                if (area == "slot_delete")
                {
                    await Slot(world, 3, 3, 0x2000_1000, ReplayWorld.Page, a);
                }
                break;
            case "default VM, no slots; G = its gmem of 8M flags 0, Gs = 8M flags 3, Gm = 8M flags 1; V2G = gmem of another VM":
                await Gmems(world);
                break;
            case "":
            case "default VM; slot 10 = gpa 0xc0000000 size 4M gmem G(8M) offset 0":
                await Gmems(world);
                await GmemSlot(world, 10, 4 * M, "G");
                break;
            case "default VM; slot 20 = plain, gpa 0x40000000 size 4M; slot 21 = gmem G whole, gpa 0xc0000000":
                await Gmems(world);
                await Slot(world, 20, 0, 0x4000_0000, 4 * M, a);
                await GmemSlot(world, 21, 8 * M, "G");
                break;
            case "slot 21 = gmem G whole bound at gpa 0xc0000000":
                await Gmems(world);
                world.SetFd("G3", await world.CreateGmem("vm", 8 * M, 0));
                await GmemSlot(world, 21, 8 * M, "G");
                break;
            case "default VM; slot 0 flags 0 (2M at gpa 0), slot 1 flags LOG_DIRTY (2M at gpa 2M)":
            case "same, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 enabled with 1":
                await Slot(world, 0, 0, 0, 2 * M, a);
                await Slot(world, 1, 1, 2 * M, 2 * M, a);
                if (pre.StartsWith("same", StringComparison.Ordinal))
                {
                    ReplayWorld.Must(await world.EnableCap("vm", 168, 0, 1));
                }
                break;
            case "gmem Gs (2M, flags 3) bound in slot 0; mapping P; vm fd closed first":
                world.SetFd("Gs", await world.CreateGmem("vm", 2 * M, 3));
                await GmemSlot(world, 0, 2 * M, "Gs");
                world.SetMap("P", await world.Mmap(2 * M, ReplayWorld.MapShared, await world.Fd("Gs")));
                await world.Close(await world.Fd("vm"));
                await NewVm(world);
                break;
            case "gmem bound in slot 0; gmem fd closed first":
                world.SetFd("G", await world.CreateGmem("vm", 2 * M, 0));
                await GmemSlot(world, 0, 2 * M, "G");
                await world.Close(await world.Fd("G"));
                break;
            case "vm + gmem + vCPU 0; vm closed, gmem closed, vCPU fd last":
                world.SetFd("G", await world.CreateGmem("vm", 2 * M, 0));
                world.SetFd("vcpu", await world.Ioctl(await world.Fd("vm"), 0xAE41, 0));
                await world.Close(await world.Fd("vm"));
                await world.Close(await world.Fd("G"));
                break;
            case "vm, vCPU 0, gmem created by the parent; calls made by a forked child":
                world.SetFd("G", await world.CreateGmem("vm", 2 * M, 0));
                world.SetFd("vcpu", await world.Ioctl(await world.Fd("vm"), 0xAE41, 0));
                world.Pid = await world.Fork();
                break;
            default:
                throw new InvalidOperationException($"nobody knows how to make '{pre}'");
        }
    }

    // "when" says what came before within the row.
    private static async Task DoWhatWhenSays(ReplayWorld world, KernelAnswer row)
    {
        switch (row.Text("when"))
        {
            case null:
                break;
            case "second time":
                await ReplayCalls.Perform(world, row);
                break;
            case "id 0 exists":
            case "after vCPU":
                world.SetFd("vcpu", await world.Ioctl(await world.Fd("vm"), 0xAE41, 0));
                break;
            case "fd of vCPU 1 already closed":
                await world.Close(ReplayWorld.Must(await world.Ioctl(await world.Fd("vm"), 0xAE41, 1)));
                break;
            case { } other:
                throw new InvalidOperationException($"nobody knows how to make '{other}'");
        }
    }

    private static async Task SetFdLimit(ReplayWorld world, uint limit) => ReplayWorld.Must(
        (await world.Stubs.Processes.SetFdLimitAsync(new SetFdLimitRequest { Host = world.Host, Pid = world.Pid, Limit = limit })).Outcome);

    private static async Task NewVm(ReplayWorld world) => world.SetFd("vm", await world.Ioctl(await world.Fd("kvm"), 0xAE01, 0));

    private static async Task Gmems(ReplayWorld world)
    {
        world.SetFd("G", await world.CreateGmem("vm", 8 * M, 0));
        world.SetFd("Gs", await world.CreateGmem("vm", 8 * M, 3));
        world.SetFd("Gm", await world.CreateGmem("vm", 8 * M, 1));
    }

    private static async Task Slot(ReplayWorld world, uint slot, uint flags, ulong gpa, ulong size, ulong uaddr) =>
        ReplayWorld.Must(await world.SetRegion2(slot, flags, gpa, size, uaddr));

    private static async Task GmemSlot(ReplayWorld world, uint slot, ulong size, string gmem) =>
        ReplayWorld.Must(await world.SetRegion2(slot, GmemFlag, 0xc000_0000, size, 0, await world.Fd(gmem)));

    private static async Task DeleteSlot(ReplayWorld world, uint slot) => ReplayWorld.Must(await world.SetRegion2(slot, 0, 0, 0, 0));

    // "gmem size=16384 flags=3, 16-page MAP_SHARED mapping"
    private static async Task MakeMappedGmem(ReplayWorld world, Match match, int pages)
    {
        string text = match.Groups["size"].Value;
        ulong size = text switch
        {
            "2^63-4096" => (1UL << 63) - ReplayWorld.Page,
            "2M" => 2 * M,
            _ => ulong.Parse(text, CultureInfo.InvariantCulture),
        };
        await NewVm(world);
        world.SetFd("gmem", await world.CreateGmem("vm", size, ulong.Parse(match.Groups["flags"].Value, CultureInfo.InvariantCulture)));
        if (pages == 0)
        {
            return;
        }
        int gmem = await world.Fd("gmem");
        ulong length = (ulong)pages * ReplayWorld.Page;
        world.SetMap("gmem", await world.Mmap(length, ReplayWorld.MapShared, gmem));
        world.SetMap("gmem#2", await world.Mmap(length, ReplayWorld.MapShared, gmem));
        world.SetMap("gmem ro", await world.Mmap(length, ReplayWorld.MapShared, gmem, prot: 1));
        if (text == "2M")
        {
            for (ulong at = 0; at < length; at += ReplayWorld.Page)
            {
                ReplayWorld.Must((await world.Read(world.Map("gmem") + at, 1)).Outcome);
            }
        }
    }

    [GeneratedRegex("^(fresh )?gmem size=(?<size>[^ ]+) flags=(?<flags>[0-9]+)")]
    private static partial Regex GmemOfSize();
}
