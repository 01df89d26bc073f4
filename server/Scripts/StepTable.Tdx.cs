using SimKvm.Abi;
using SimKvm.Auditing;
using VmmService.Server.Services;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;
using TdSummary = SimMachine.Intel.TdSummary;

namespace VmmService.Server.Scripts;

// Commands of KVM_MEMORY_ENCRYPT_OP of TDs, and the two VM ioctls that they need.
internal static partial class StepTable
{
    private static StepField HwError => new("hw_error", FieldKind.U64, "the TDX module's completion status, where the kernel tells it");

    private static StepField Mrtd => new("mrtd", FieldKind.Text, "MRTD so far, 96 hexadecimal digits");

    private static IEnumerable<StepAction> TdxSteps =>
    [
        new("create_irqchip", "KVM_CREATE_IRQCHIP", [Fd("vm", "VM")], (run, args) => Call(run, process => process.Ioctl(args.Fd(), KvmIoctl.KVM_CREATE_IRQCHIP, 0))),
        new(
            "set_tsc_khz", "KVM_SET_TSC_KHZ", [Need("khz", FieldKind.U64, "kHz; 0 is the host's"), Fd("vm", "VM or vCPU")],
            (run, args) => Call(run, process => process.Ioctl(args.Fd(), KvmIoctl.KVM_SET_TSC_KHZ, args.U64("khz")))),
        new(
            "tdx_capabilities", "KVM_TDX_CAPABILITIES", [May("flags", FieldKind.U32, "reserved"), May("nent", FieldKind.U32, "CPUID entries that there is room for", "256"), Fd("vm", "VM")],
            TdxCapabilities)
        { Facts = [HwError, new("supported_attrs", FieldKind.U64, "bits of attributes"), new("supported_xfam", FieldKind.U64, "bits of xfam"), new("nent", FieldKind.U64, "CPUID entries")] },
        new(
            "tdx_init_vm", "KVM_TDX_INIT_VM",
            [
                May("attributes", FieldKind.U64, "ATTRIBUTES; SEPT_VE_DISABLE is 0x10000000", "0x10000000"), May("xfam", FieldKind.U64, "XFAM", "3"),
                May("gpaw", FieldKind.U32, "bits of guest physical addresses, 48 or 52", "48"), May("mrconfigid", FieldKind.Content, "48 bytes", null),
                May("mrowner", FieldKind.Content, "48 bytes", null), May("mrownerconfig", FieldKind.Content, "48 bytes", null), May("flags", FieldKind.U32, "reserved"), Fd("vm", "VM"),
            ],
            TdxInitVm)
        { Facts = [HwError] },
        new(
            "tdx_init_vcpu", "KVM_TDX_INIT_VCPU; its CPUID has x2APIC by then",
            [May("initial_rcx", FieldKind.U64, "RCX and R8 at the reset vector: the TD HOB"), May("flags", FieldKind.U32, "reserved"), Fd("vcpu", "vCPU")],
            (run, args) => Tdx(run, args, (commands, _) => commands.Run(TdxCmdId.KVM_TDX_INIT_VCPU, args.U32("flags"), args.U64("initial_rcx")))),
        new(
            "tdx_get_cpuid", "KVM_TDX_GET_CPUID; with `set` the vCPU takes what it gives (KVM_SET_CPUID2)",
            [May("flags", FieldKind.U32, "not looked at"), May("set", FieldKind.Bool, "KVM_SET_CPUID2 with it", "false"), Fd("vcpu", "vCPU")],
            TdxGetCpuid)
        { Facts = [new("nent", FieldKind.U64, "CPUID entries")] },
        new(
            "tdx_init_mem_region", "KVM_TDX_INIT_MEM_REGION; without `nr_pages` it is that of the content",
            [
                Need("gpa", FieldKind.U64, "first byte"), May("nr_pages", FieldKind.U64, "pages", null), May("content", FieldKind.Content, "mapped for the length of the call", null),
                May("source_addr", FieldKind.U64, "or the user address of the content"), May("measure", FieldKind.Bool, "KVM_TDX_MEASURE_MEMORY_REGION", "true"),
                May("flags", FieldKind.U32, "other flags"), Fd("vcpu", "vCPU"),
            ],
            TdxInitMemRegion)
        { Facts = [new("left", FieldKind.Map, "what is left to do: gpa, source_addr, nr_pages"), Mrtd] },
        new(
            "tdx_finalize_vm", "KVM_TDX_FINALIZE_VM", [May("flags", FieldKind.U32, "not looked at"), Fd("vm", "VM")],
            (run, args) => AddMrtd(run, args.Fd(), Tdx(run, args, (commands, _) => commands.Run(TdxCmdId.KVM_TDX_FINALIZE_VM, args.U32("flags"), 0))))
        { Facts = [HwError, Mrtd] },
    ];

    private static StepResult Tdx(ScriptRun run, StepArguments args, Func<TdxCommands, SimKvm.Userspace.Process, (Outcome Outcome, V1.TdxStatus Tdx)> command)
    {
        int fd = args.Fd();
        return run.On(process =>
        {
            (Outcome outcome, V1.TdxStatus tdx) = command(new TdxCommands(run.Hosts, run.HostId, process, fd), process);
            return StepResult.Of(outcome).Add("hw_error", tdx.HwError);
        });
    }

    private static StepResult AddMrtd(ScriptRun run, int fd, StepResult result) =>
        run.On(process => TdDescription.Of(process, fd)?.Module) is TdSummary td ? result.Add("mrtd", Outcomes.Hex(td.Mrtd)) : result;

    private static StepResult TdxCapabilities(ScriptRun run, StepArguments args)
    {
        byte[] structure = TdxStructs.CapabilitiesBuffer(EntriesOf(args));
        StepResult result = Tdx(run, args, (commands, _) => commands.Run(TdxCmdId.KVM_TDX_CAPABILITIES, args.U32("flags"), structure));
        KvmTdxCapabilities capabilities = TdxStructs.ReadCapabilities(structure);
        return result.Add("supported_attrs", capabilities.SupportedAttrs).Add("supported_xfam", capabilities.SupportedXfam).Add("nent", (ulong)capabilities.Cpuid.Count);
    }

    private static int EntriesOf(StepArguments args)
    {
        uint nent = args.U32("nent");
        return nent <= kvm_cpuid2.MAX_CPUID_ENTRIES ? (int)nent : throw args.Node("nent").Problem($"there is no room for {nent} entries", $"give at most {kvm_cpuid2.MAX_CPUID_ENTRIES}");
    }

    private static StepResult TdxInitVm(ScriptRun run, StepArguments args)
    {
        const int registerSize = 48, gpawShift = 16;
        Google.Protobuf.ByteString Register(string field)
        {
            byte[] bytes = args.Has(field) ? args.Content(field) : [];
            return bytes.Length is 0 or registerSize
                ? Google.Protobuf.ByteString.CopyFrom(bytes)
                : throw args.Node(field).Problem($"`{field}` has {bytes.Length} bytes", $"give {registerSize}, or leave it out");
        }
        byte[] structure = TdxStructs.ToAbi(new KvmTdxInitVm
        {
            Attributes = args.U64("attributes"),
            Xfam = args.U64("xfam"),
            Mrconfigid = Register("mrconfigid"),
            Mrowner = Register("mrowner"),
            Mrownerconfig = Register("mrownerconfig"),
            Cpuid = { new KvmCpuidEntry2 { Function = 0x8000_0008, Eax = args.U32("gpaw") << gpawShift } },
        });
        return Tdx(run, args, (commands, _) => commands.Run(TdxCmdId.KVM_TDX_INIT_VM, args.U32("flags"), structure));
    }

    private static StepResult TdxGetCpuid(ScriptRun run, StepArguments args)
    {
        byte[] structure = VcpuStructs.CpuidBuffer((int)kvm_cpuid2.MAX_CPUID_ENTRIES);
        StepResult result = Tdx(run, args, (commands, _) => commands.Run(TdxCmdId.KVM_TDX_GET_CPUID, args.U32("flags"), structure));
        if (result.Fact("errno")?.Show() == "OK" && args.Flag("set"))
        {
            result = Call(run, process => process.Ioctl(args.Fd(), KvmIoctl.KVM_SET_CPUID2, structure));
        }
        return result.Add("nent", (ulong)VcpuStructs.ReadCpuid(structure).Count());
    }

    private static StepResult TdxInitMemRegion(ScriptRun run, StepArguments args)
    {
        byte[]? content = args.Has("content") ? args.Content("content") : null;
        if (content is not null && args.Has("source_addr"))
        {
            throw args.Node("source_addr").Problem("`source_addr` and `content` were given", "give one of them");
        }
        if (content is null && !args.Has("nr_pages"))
        {
            throw args.Key.Problem("neither `content` nor `nr_pages` says how much", "add one of them");
        }
        if (content is { Length: 0 })
        {
            throw args.Node("content").Problem("the content is empty", "leave it out and use `source_addr`");
        }
        run.Hosts.CheckBacking();
        ulong staged = content is null ? 0 : run.On(process => SevServiceImpl.Stage(process, content));
        var region = new kvm_tdx_init_mem_region
        {
            source_addr = content is null ? args.U64("source_addr") : staged,
            gpa = args.U64("gpa"),
            nr_pages = args.Has("nr_pages") ? args.U64("nr_pages") : ((ulong)content!.Length + 4095) / 4096,
        };
        uint flags = args.U32("flags") | (args.Flag("measure") ? kvm_tdx_init_mem_region.MEASURE : 0);
        StepResult result = Tdx(run, args, (commands, _) => commands.Run(TdxCmdId.KVM_TDX_INIT_MEM_REGION, flags, ref region));
        if (content is not null)
        {
            run.On(process => process.Munmap(staged, (ulong)content.Length));
        }
        result.Add("left.gpa", region.gpa).Add("left.source_addr", region.source_addr).Add("left.nr_pages", region.nr_pages);
        return AddMrtd(run, args.Fd(), result);
    }
}
