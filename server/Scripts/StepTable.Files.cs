using SimKvm.Userspace;

namespace VmmService.Server.Scripts;

// System calls of the process, and loads and stores of its program.
internal static partial class StepTable
{
    private const int FillAtOnce = 1 << 20;

    private static IEnumerable<StepAction> FileSteps =>
    [
        new("open", "open(2) of a device", [Need("path", FieldKind.Text, "/dev/kvm or /dev/sev")], (run, args) => Call(run, process => process.Open(args.Text("path")))),
        new("close", "close(2)", [Need("fd", FieldKind.Fd, "descriptor")], (run, args) => Call(run, process => process.Close(args.Fd()))),
        new(
            "mmap", "mmap(2); the value is the address",
            [
                Need("length", FieldKind.U64, "bytes"), May("addr", FieldKind.U64, "where; 0 lets the kernel choose"), May("prot", FieldKind.U32, "PROT_*", "PROT_READ | PROT_WRITE"),
                May("flags", FieldKind.U32, "MAP_*", "MAP_PRIVATE | MAP_ANONYMOUS"), May("fd", FieldKind.Fd, "descriptor, without MAP_ANONYMOUS", "-1"),
                May("offset", FieldKind.U64, "bytes into the file"),
            ],
            (run, args) => Call(run, process => process.Mmap(args.U64("addr"), args.U64("length"), args.U32("prot"), args.U32("flags"), args.Fd(), args.U64("offset")))),
        new(
            "munmap", "munmap(2)", [Need("addr", FieldKind.U64, "address"), Need("length", FieldKind.U64, "bytes")],
            (run, args) => Call(run, process => process.Munmap(args.U64("addr"), args.U64("length")))),
        new(
            "fallocate", "fallocate(2); with FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE it punches a hole",
            [
                Fd("gmem", "guest_memfd"), May("mode", FieldKind.U32, "FALLOC_FL_*", "FALLOC_FL_KEEP_SIZE"), May("offset", FieldKind.U64, "bytes"), Need("len", FieldKind.U64, "bytes"),
            ],
            (run, args) => Call(run, process => process.Fallocate(args.Fd(), args.U32("mode"), args.I64("offset"), args.I64("len")))),
        new("fstat", "fstat(2)", [Need("fd", FieldKind.Fd, "descriptor")], Fstat)
        {
            Facts = [new("st_size", FieldKind.U64, "bytes"), new("st_mode", FieldKind.U64, "type and permissions"), new("st_blocks", FieldKind.U64, "blocks of 512 bytes")],
        },
        new("read", "load from the process's memory; `as` keeps the bytes", [Need("addr", FieldKind.U64, "address"), Need("length", FieldKind.U64, "bytes")], Read)
        {
            Facts = [new("data", FieldKind.Content, "what was loaded")],
        },
        new(
            "write", "store to the process's memory", [Need("addr", FieldKind.U64, "address"), Need("content", FieldKind.Content, "what to store")],
            (run, args) =>
            {
                byte[] content = args.Content("content");
                run.Hosts.CheckBacking();
                return Call(run, process => process.Write(args.U64("addr"), content));
            }),
        new(
            "fill", "store a pattern over and over, of any length",
            [Need("addr", FieldKind.U64, "address"), Need("length", FieldKind.U64, "bytes"), May("pattern", FieldKind.Content, "what is repeated", "00")], Fill),
        new(
            "pin", "pin pages for long, as a device does (FOLL_LONGTERM); the value is the pin's id",
            [Need("addr", FieldKind.U64, "address, page aligned"), Need("length", FieldKind.U64, "bytes, whole pages"), May("write", FieldKind.Bool, "pin for writing", "true")],
            (run, args) =>
            {
                CheckLength(args, "length", args.U64("length"), run.Hosts.Options.MaxReadBytes);
                run.Hosts.CheckBacking();
                return Call(run, process => process.PinPages(args.U64("addr"), args.U64("length"), args.Flag("write")));
            }),
        new("unpin", "end a pin", [Need("pin", FieldKind.U64, "id of the pin")], (run, args) => Call(run, process => process.UnpinPages(args.U64("pin")))),
        new(
            "raise_signal", "a signal arrives in the next call that looks for one",
            [May("after_checks", FieldKind.U32, "how many times it looks in vain first")],
            (run, args) => run.On(process =>
            {
                process.RaiseSignal((int)Math.Min(args.U32("after_checks"), int.MaxValue));
                return StepResult.Done($"signal after {args.U32("after_checks")} checks");
            }))
        { IsCall = false },
        new(
            "raw_ioctl", "ioctl(2) by number",
            [
                Need("fd", FieldKind.Fd, "descriptor"), Need("request", FieldKind.U32, "encoded number"), May("arg", FieldKind.U64, "the argument as a number or an address"),
                May("data", FieldKind.Content, "or what the argument points to", null),
            ],
            RawIoctl)
        { Facts = [new("data", FieldKind.Content, "the bytes behind the argument after the call")] },
    ];

    private static StepResult Fstat(ScriptRun run, StepArguments args) => run.On(process =>
    {
        CallReport report = process.Fstat(args.Fd(), out FileStat stat);
        return StepResult.Of(report).Add("st_size", stat.Size).Add("st_mode", stat.Mode).Add("st_blocks", stat.Blocks);
    });

    private static StepResult Read(ScriptRun run, StepArguments args)
    {
        ulong length = args.U64("length");
        CheckLength(args, "length", length, run.Hosts.Options.MaxReadBytes);
        byte[] bytes = new byte[length];
        StepResult result = Call(run, process => process.Read(args.U64("addr"), bytes));
        ReadOnlyMemory<byte> data = bytes.AsMemory(0, (int)result.Outcome!.Value);
        result.Kept = ScriptValue.Of(data);
        return result.Add("data", data);
    }

    private static StepResult Fill(ScriptRun run, StepArguments args)
    {
        ulong length = args.U64("length"), done = 0;
        byte[] pattern = args.Content("pattern");
        if (pattern.Length == 0)
        {
            throw args.Node("pattern").Problem("the pattern is empty", "give at least one byte");
        }
        CheckLength(args, "length", length, int.MaxValue);
        byte[] part = ScriptContent.Repeat(pattern, Math.Max(pattern.Length, FillAtOnce / pattern.Length * pattern.Length));
        StepResult result;
        do
        {
            run.Hosts.CheckBacking();
            int size = (int)Math.Min((ulong)part.Length, length - done);
            ulong at = args.U64("addr") + done;
            result = Call(run, process => process.Write(at, part.AsMemory(0, size)));
            done += (ulong)result.Outcome!.Value;
        }
        while (result.Outcome!.Errno == 0 && done < length);
        result.Outcome.Value = (long)done;
        return StepResult.Of(result.Outcome);
    }

    private static StepResult RawIoctl(ScriptRun run, StepArguments args)
    {
        if (!args.Has("data"))
        {
            return Call(run, process => process.Ioctl(args.Fd(), args.U32("request"), args.U64("arg")));
        }
        byte[] data = args.Content("data");
        return Call(run, process => process.Ioctl(args.Fd(), args.U32("request"), data)).Add("data", data);
    }
}
