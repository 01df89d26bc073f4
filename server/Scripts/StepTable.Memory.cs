namespace VmmService.Server.Scripts;

// System calls on memory and on files in memory.
internal static partial class StepTable
{
    private static StepField Addr => Need("addr", FieldKind.U64, "address, page aligned");

    private static StepField Length => Need("length", FieldKind.U64, "bytes");

    private static IEnumerable<StepAction> MemorySteps =>
    [
        new(
            "memfd_create", "memfd_create(2); the value is the descriptor",
            [May("flags", FieldKind.U32, "MFD_*; 8 is MFD_INACCESSIBLE in UPM22"), May("name", FieldKind.Text, "for people", "script")],
            (run, args) => Call(run, process => process.MemfdCreate(args.Text("name"), args.U32("flags")))),
        new(
            "ftruncate", "ftruncate(2)", [Length, Fd("private", "descriptor")],
            (run, args) => Call(run, process => process.Ftruncate(args.Fd(), args.I64("length")))),
        new(
            "pread", "pread64(2); `as` keeps the bytes", [Length, May("offset", FieldKind.U64, "bytes into the file"), Fd("private", "descriptor")], Pread)
        {
            Facts = [new("data", FieldKind.Content, "what was read")],
        },
        new(
            "pwrite", "pwrite64(2)",
            [Need("content", FieldKind.Content, "what to write"), May("offset", FieldKind.U64, "bytes into the file"), Fd("private", "descriptor")],
            (run, args) =>
            {
                byte[] content = args.Content("content");
                run.Hosts.CheckBacking();
                return Call(run, process => process.WriteFile(args.Fd(), content, args.I64("offset")));
            }),
        new("dup", "dup(2); the value is the new descriptor", [Need("fd", FieldKind.Fd, "descriptor")], (run, args) => Call(run, process => process.Dup(args.Fd()))),
        new(
            "mprotect", "mprotect(2)", [Addr, Length, Need("prot", FieldKind.U32, "PROT_*")],
            (run, args) => Call(run, process => process.Mprotect(args.U64("addr"), args.U64("length"), args.U32("prot")))),
        new(
            "madvise", "madvise(2)", [Addr, Length, Need("advice", FieldKind.U32, "MADV_*")],
            (run, args) =>
            {
                run.Hosts.CheckBacking();
                return Call(run, process => process.Madvise(args.U64("addr"), args.U64("length"), args.U32("advice")));
            }),
        new(
            "mremap", "mremap(2); the value is the new address",
            [Addr, Need("old_length", FieldKind.U64, "bytes"), Need("new_length", FieldKind.U64, "bytes"), May("flags", FieldKind.U32, "MREMAP_*"), May("new_addr", FieldKind.U64, "with MREMAP_FIXED")],
            (run, args) => Call(run, process => process.Mremap(args.U64("addr"), args.U64("old_length"), args.U64("new_length"), args.U32("flags"), args.U64("new_addr")))),
        new(
            "mlock", "mlock(2)", [Addr, Length],
            (run, args) =>
            {
                run.Hosts.CheckBacking();
                return Call(run, process => process.Mlock(args.U64("addr"), args.U64("length")));
            }),
        new("munlock", "munlock(2)", [Addr, Length], (run, args) => Call(run, process => process.Munlock(args.U64("addr"), args.U64("length")))),
        new("fork", "fork(2); the value is the child's pid, for `in: $name` on later steps", [], (run, _) => run.Fork()),
        new(
            "inject_memory_failure", "the memory behind a page of a file fails, as when hardware reports it",
            [Need("index", FieldKind.U64, "page of the file"), Fd("gmem", "descriptor")],
            (run, args) => Call(run, process => process.InjectMemoryFailure(args.Fd(), args.U64("index")))),
    ];

    private static StepResult Pread(ScriptRun run, StepArguments args)
    {
        ulong length = args.U64("length");
        CheckLength(args, "length", length, run.Hosts.Options.MaxReadBytes);
        byte[] bytes = new byte[length];
        StepResult result = Call(run, process => process.ReadFile(args.Fd(), bytes, args.I64("offset")));
        ReadOnlyMemory<byte> data = bytes.AsMemory(0, (int)Math.Max(0, result.Outcome!.Value));
        result.Kept = ScriptValue.Of(data);
        return result.Add("data", data);
    }
}
