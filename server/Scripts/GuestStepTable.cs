using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Server.Scripts;

/// <summary>A row of the table of what a guest program can do.</summary>
internal sealed record GuestAction(string Name, string Summary, IReadOnlyList<StepField> Fields, Func<StepArguments, GuestStep> Make) : ActionShape(Name, Summary, Fields);

/// <summary>Every step of a guest program, once.</summary>
internal static partial class GuestStepTable
{
    private static readonly StepField Gpa = new("gpa", FieldKind.U64, "first byte") { Required = true };

    private static readonly StepField Length = new("length", FieldKind.U64, "bytes") { Required = true };

    private static readonly StepField Access = new("access", FieldKind.U32, "how the access is marked, on VM types where it can be: private or shared")
    {
        Default = "0",
        Choices = new SortedDictionary<string, ulong> { ["private"] = (ulong)GuestAccess.Private, ["shared"] = (ulong)GuestAccess.Shared },
    };

    private static readonly string[] TdcallNames = ["rcx", "rdx", "r8", "r10", "r11", "r12", "r13", "r14", "r15"];

    public static IReadOnlyList<GuestAction> All { get; } =
    [
        new("read", "load", [Gpa, Length, Access], args => new GuestStep { Read = new GuestRead { Gpa = args.U64("gpa"), Length = args.U64("length"), Access = AccessOf(args) } }),
        new(
            "write", "store", [Gpa, new("data", FieldKind.Content, "what to store") { Required = true }, Access],
            args => new GuestStep { Write = new GuestWrite { Gpa = args.U64("gpa"), Data = Bytes(args, "data"), Access = AccessOf(args) } }),
        new(
            "fill", "store a pattern over and over", [Gpa, Length, new("pattern", FieldKind.Content, "what is repeated") { Default = "00" }, Access],
            args => new GuestStep { Fill = new GuestFill { Gpa = args.U64("gpa"), Length = args.U64("length"), Pattern = Bytes(args, "pattern"), Access = AccessOf(args) } }),
        new(
            "compare", "load and compare with a pattern that is repeated over the length",
            [Gpa, Length with { Required = false, Default = "0", Meaning = "bytes; 0 is the pattern's length" }, new("pattern", FieldKind.Content, "what should be there") { Required = true }, Access],
            args => new GuestStep { Compare = new GuestCompare { Gpa = args.U64("gpa"), Length = args.U64("length"), Pattern = Bytes(args, "pattern"), Access = AccessOf(args) } }),
        new(
            "hypercall", "VMCALL or VMMCALL",
            [
                new("nr", FieldKind.U64, "number, for example KVM_HC_MAP_GPA_RANGE") { Required = true }, new("args", FieldKind.Numbers, "at most four"),
                new("narrow", FieldKind.Bool, "outside 64-bit mode") { Default = "false" }, new("cpl", FieldKind.U32, "privilege level") { Default = "0" },
            ],
            Hypercall),
        new(
            "out", "OUT", [new("port", FieldKind.U16, "port") { Required = true }, new("data", FieldKind.Content, "1, 2 or 4 bytes") { Required = true }],
            args => new GuestStep { Out = new GuestOut { Port = args.U16("port"), Data = Bytes(args, "data") } }),
        new(
            "in", "IN", [new("port", FieldKind.U16, "port") { Required = true }, new("size", FieldKind.U32, "1, 2 or 4 bytes") { Default = "1" }],
            args => new GuestStep { In = new GuestIn { Port = args.U16("port"), Size = args.U32("size") } }),
        new(
            "tdcall", "TDCALL, of TDs: `leaf` is RAX; results are in rcx to r15 of the step's results",
            [new("leaf", FieldKind.U64, "0 VP.VMCALL, 1 VP.INFO, 2 MR.RTMR.EXTEND, 4 MR.REPORT, 6 MEM.PAGE.ACCEPT") { Required = true }, .. TdcallFields],
            args => new GuestStep { Tdcall = new GuestTdcall { Registers = TdcallRegistersOf(args) } }),
        .. SnpSteps,
        new("halt", "HLT", [], _ => new GuestStep { Halt = new GuestHalt() }),
        new("shutdown", "a triple fault", [], _ => new GuestStep { Shutdown = new GuestShutdown() }),
    ];

    private static IEnumerable<StepField> TdcallFields =>
        TdcallNames.Select(name => new StepField(name, FieldKind.U64, "register") { Default = "0" });

    private static TdcallRegisters TdcallRegistersOf(StepArguments args) => new()
    {
        Rax = args.U64("leaf"),
        Rcx = args.U64("rcx"),
        Rdx = args.U64("rdx"),
        R8 = args.U64("r8"),
        R10 = args.U64("r10"),
        R11 = args.U64("r11"),
        R12 = args.U64("r12"),
        R13 = args.U64("r13"),
        R14 = args.U64("r14"),
        R15 = args.U64("r15"),
    };

    /// <summary>A program.</summary>
    /// <exception cref="ScriptException">A step of it is none.</exception>
    public static IEnumerable<GuestStep> Read(ListNode steps, ScriptScope scope) => steps.Items.Select(step => Read(step, scope));

    private static GuestStep Read(ScriptNode node, ScriptScope scope)
    {
        (ScalarNode key, ScriptNode value) = node switch
        {
            MapNode { Entries: [var only] } => (only.Key, only.Value),
            ScalarNode { IsEmpty: false } word => (word, new ScalarNode("", false, word.Place)),
            _ => throw node.Problem($"a step of a guest program is one word with its fields, this is {node.Kind}", $"write `- read: {{gpa: 0, length: 8}}`; the words are {Words}"),
        };
        GuestAction action = All.FirstOrDefault(each => each.Name == key.Text)
            ?? throw key.Problem($"a guest cannot `{key.Text}`", Nearest.Advice(key.Text, All.Select(each => each.Name), $"use one of {Words}"));
        return action.Make(new StepArguments(action, key, value, scope));
    }

    private static string Words => string.Join(", ", All.Select(each => each.Name));

    private static GuestAccess AccessOf(StepArguments args) => (GuestAccess)args.U32("access");

    private static ByteString Bytes(StepArguments args, string field) => UnsafeByteOperations.UnsafeWrap(args.Content(field));

    private static GuestStep Hypercall(StepArguments args)
    {
        var call = new GuestHypercall { Nr = args.U64("nr"), Narrow = args.Flag("narrow"), Cpl = args.U32("cpl") };
        call.Args.AddRange(args.Has("args") ? args.Numbers("args") : []);
        return new GuestStep { Hypercall = call };
    }
}
