using Google.Protobuf.Collections;
using SimKvm.Abi;
using VmmService.Server.Wire;
using VmmService.V1;
using GuestStep = VmmService.V1.GuestStep;

namespace VmmService.Server.Scripts;

// The guest's program, KVM_RUN, and mapping memory ahead of the guest.
internal static partial class StepTable
{
    private static IEnumerable<StepAction> VcpuSteps =>
    [
        new("program", "give the vCPU what it executes", [Need("steps", FieldKind.Program, "what the guest does"), Fd("vcpu", "vCPU")], Program) { IsCall = false },
        new(
            "run", "KVM_RUN",
            [
                Fd("vcpu", "vCPU"), May("immediate_exit", FieldKind.Bool, "kvm_run.immediate_exit", null), May("hypercall_ret", FieldKind.U64, "answer to KVM_EXIT_HYPERCALL", null),
                May("io_data", FieldKind.Content, "what the guest's IN loads, after KVM_EXIT_IO", null), May("mmio_data", FieldKind.Content, "what its load gets, after KVM_EXIT_MMIO", null),
                May("tdx_ret", FieldKind.U64, "R10 of the guest, after KVM_EXIT_TDX", null),
            ],
            Run)
        {
            Facts =
            [
                new("exit", FieldKind.Map, "the exit record: reason, and flags, gpa, size | nr, args, ret | port, out, data | phys_addr, is_write, len, data"),
                new("data", FieldKind.Content, "what the last load or IN of the guest brought"), new("rax", FieldKind.U64, "RAX after the last hypercall"),
                new("mismatch", FieldKind.U64, "where the last compare found a difference; `none` where it found none. Unless it is named, none is expected"),
                new("next_step", FieldKind.U64, "the guest's next step"), new("results", FieldKind.Map, "N: {data, rax, mismatch} of each step that was finished"),
            ],
        },
        new(
            "pre_fault_memory", "KVM_PRE_FAULT_MEMORY",
            [Need("gpa", FieldKind.U64, "bytes"), Need("size", FieldKind.U64, "bytes"), May("flags", FieldKind.U64, "reserved"), Fd("vcpu", "vCPU")],
            (run, args) =>
            {
                run.Hosts.CheckBacking();
                var range = new kvm_pre_fault_memory { gpa = args.U64("gpa"), size = args.U64("size"), flags = args.U64("flags") };
                StepResult result = Ioctl(run, args.Fd(), KvmIoctl.KVM_PRE_FAULT_MEMORY, ref range);
                return result.Add("left.gpa", range.gpa).Add("left.size", range.size);
            })
        { Facts = [new("left", FieldKind.Map, "what is left: gpa, size")] },
        new(
            "map_memory", "KVM_MAP_MEMORY of the postings of 2024: base_gfn and nr_pages as of March (MAP24v1), base_address and size as of April (MAP24v2)",
            [
                May("base_gfn", FieldKind.U64, "first page", null), May("nr_pages", FieldKind.U64, "pages"), May("source", FieldKind.U64, "user address"),
                May("base_address", FieldKind.U64, "bytes", null), May("size", FieldKind.U64, "bytes"), May("flags", FieldKind.U64, "WRITE 1, EXEC 2, USER 4, PRIVATE 8"), Fd("vcpu", "vCPU"),
            ],
            MapMemory)
        { Facts = [new("left", FieldKind.Map, "what is left: base_gfn and nr_pages, or base_address and size")] },
    ];

    private static StepResult Program(ScriptRun run, StepArguments args)
    {
        int fd = args.Fd();
        var steps = new RepeatedField<GuestStep>();
        steps.AddRange(GuestStepTable.Read(args.List("steps"), args.Scope));
        return run.On(process =>
        {
            bool marked = process.GuestAccessesAreMarked(fd) ?? throw args.Key.Problem($"descriptor {fd} is no vCPU", "use the one that create_vcpu gave");
            process.LoadGuestProgram(fd, GuestSteps.ToProgram(steps, marked, run.Hosts.Options.MaxReadBytes));
            return StepResult.Done($"program of {steps.Count} steps on fd {fd}");
        });
    }

    private static StepResult Run(ScriptRun run, StepArguments args)
    {
        int fd = args.Fd();
        run.Hosts.CheckBacking();
        RunPageUpdate update = Update(args);
        return run.On(process =>
        {
            bool isVcpu = true;
            GuestSteps.Apply(update, (offset, bytes) => isVcpu &= process.StoreToRunPage(fd, offset, bytes));
            if (!isVcpu)
            {
                throw args.Key.Problem($"descriptor {fd} is no vCPU, so it has no run page", "use the one that create_vcpu gave");
            }
            StepResult result = StepResult.Of(process.Ioctl(fd, KvmIoctl.KVM_RUN, 0));
            if (process.TakeGuestProgress(fd) is { } progress)
            {
                result.Run = GuestSteps.ReadRun(progress.Run.Span);
                ExitFacts.Add(result, result.Run);
                foreach (SimKvm.Kvm.GuestStepResult step in progress.Results)
                {
                    ExitFacts.Add(result, step);
                }
                ExitFacts.AddLast(result, progress.Results);
                result.Add("next_step", progress.Next);
            }
            return result;
        });
    }

    private static RunPageUpdate Update(StepArguments args)
    {
        var update = new RunPageUpdate();
        if (args.Has("immediate_exit"))
        {
            update.ImmediateExit = args.Flag("immediate_exit");
        }
        string[] answers = [.. new[] { "hypercall_ret", "io_data", "mmio_data", "tdx_ret" }.Where(args.Has)];
        if (answers.Length > 1)
        {
            throw args.Key.Problem($"`{answers[0]}` and `{answers[1]}` were given, but there was one exit", "answer the exit that was");
        }
        switch (answers.FirstOrDefault())
        {
            case "hypercall_ret":
                update.HypercallRet = args.U64("hypercall_ret");
                break;
            case "tdx_ret":
                update.Tdx = new TdxAnswer { Ret = args.U64("tdx_ret") };
                break;
            case "io_data":
                update.IoData = Google.Protobuf.ByteString.CopyFrom(args.Content("io_data"));
                break;
            case "mmio_data":
                update.MmioData = Google.Protobuf.ByteString.CopyFrom(args.Content("mmio_data"));
                break;
        }
        return update;
    }

    private static StepResult MapMemory(ScriptRun run, StepArguments args)
    {
        run.Hosts.CheckBacking();
        if (args.Has("base_gfn"))
        {
            var first = new kvm_map_memory_v1 { base_gfn = args.U64("base_gfn"), nr_pages = args.U64("nr_pages"), flags = args.U64("flags"), source = args.U64("source") };
            return Ioctl(run, args.Fd(), KvmIoctl.KVM_MAP_MEMORY_V1, ref first).Add("left.base_gfn", first.base_gfn).Add("left.nr_pages", first.nr_pages);
        }
        var second = new kvm_map_memory_v2 { base_address = args.U64("base_address"), size = args.U64("size"), flags = args.U64("flags") };
        return Ioctl(run, args.Fd(), KvmIoctl.KVM_MAP_MEMORY_V2, ref second).Add("left.base_address", second.base_address).Add("left.size", second.size);
    }
}
