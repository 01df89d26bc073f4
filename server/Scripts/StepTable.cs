using System.Runtime.InteropServices;
using SimKvm.Abi;
using SimKvm.Userspace;
using VmmService.Server.Sessions;

namespace VmmService.Server.Scripts;

/// <summary>
/// Every step of the language, once: name, fields, what expectations can name, body. A new step is a row here; reading, checking, <c>--help-steps</c> and the reference all
/// come out of the rows. Names are the kernel's or the system call's.
/// </summary>
internal static partial class StepTable
{
    public static IReadOnlyList<StepAction> All { get; } =
    [
        .. FileSteps, .. MemorySteps, .. PrivateFileSteps, .. KvmSteps, .. VcpuSteps, .. RegisterSteps, .. SevSteps, .. TdxSteps, .. SevLegacySteps, .. SevMigrationSteps, .. InspectSteps, .. FlowSteps,
    ];

    private static readonly Dictionary<string, StepAction> ByName = All.ToDictionary(action => action.Name);

    /// <summary>What expectations can name of every call.</summary>
    public static IReadOnlyList<StepField> CallFacts { get; } =
    [
        new("errno", FieldKind.Text, "OK, or the errno's name"),
        new("value", FieldKind.U64, "what the call returned"),
        new("rule", FieldKind.Text, "id of a rule among the causes"),
        new("findings", FieldKind.U64, "how many findings the call brought"),
    ];

    public static StepAction? Find(string name) => ByName.GetValueOrDefault(name);

    private static StepField Fd(string variable, string meaning) => new("fd", FieldKind.Fd, meaning) { Default = "$" + variable };

    private static StepField Need(string name, FieldKind kind, string meaning) => new(name, kind, meaning) { Required = true };

    private static StepField May(string name, FieldKind kind, string meaning, string? byDefault = "0") => new(name, kind, meaning) { Default = byDefault };

    private static StepResult Call(ScriptRun run, Func<Process, CallReport> call) => run.On(process => StepResult.Of(call(process)));

    /// <summary>One ioctl whose argument is a structure; what the kernel stored in it comes back.</summary>
    private static StepResult Ioctl<T>(ScriptRun run, int fd, uint request, ref T argument)
        where T : unmanaged
    {
        byte[] bytes = new byte[Marshal.SizeOf<T>()];
        MemoryMarshal.Write(bytes, argument);
        StepResult result = Call(run, process => process.Ioctl(fd, request, bytes));
        argument = MemoryMarshal.Read<T>(bytes);
        return result;
    }

    private static StepResult Ioctl<T>(ScriptRun run, int fd, uint request, T argument)
        where T : unmanaged =>
        Ioctl(run, fd, request, ref argument);

    /// <summary>Says no to what would take more real memory than the daemon may.</summary>
    private static void CheckLength(StepArguments args, string field, ulong length, int limit)
    {
        if (length > (ulong)limit)
        {
            throw args.Node(field).Problem($"{length} bytes are more than one step takes, {limit}", "use several steps");
        }
    }

    private static string Hex(ulong value) => "0x" + value.ToString("x", System.Globalization.CultureInfo.InvariantCulture);

    private static StepResult SevCommand(ScriptRun run, StepArguments args, SevCmdId id)
    {
        int fd = args.Fd(), sevFd = args.Fd("sev_fd");
        return run.On(process =>
        {
            (V1.Outcome outcome, V1.SevStatus sev) = new SevCommands(run.Hosts, run.HostId, process, fd, sevFd, run.Thread).Run(id);
            return StepResult.Of(outcome).Add("error", sev.ErrorName);
        });
    }

    // Structures of commands are put where a VMM would put them, through the scratch pages of the process.
    private static StepResult SevCommand<T>(ScriptRun run, StepArguments args, SevCmdId id, ref T parameters, Action<Scratch>? stage = null)
        where T : unmanaged
    {
        T copy = parameters;
        int fd = args.Fd(), sevFd = args.Fd("sev_fd");
        StepResult result = run.On(process =>
        {
            stage?.Invoke(run.Hosts.ScratchOf(run.HostId, process, run.Thread));
            (V1.Outcome outcome, V1.SevStatus sev) = new SevCommands(run.Hosts, run.HostId, process, fd, sevFd, run.Thread).Run(id, ref copy);
            return StepResult.Of(outcome).Add("error", sev.ErrorName);
        });
        parameters = copy;
        return result;
    }
}

/// <summary>Short names for numbers that fields of steps take.</summary>
internal static class StepChoices
{
    public static SortedDictionary<string, ulong> VmTypes { get; } = new(
        Enum.GetValues<VmType>().ToDictionary(type => type.ToString()["KVM_X86_".Length..^"_VM".Length], type => (ulong)type), StringComparer.Ordinal);

    public static SortedDictionary<string, ulong> SnpPageTypes { get; } = new(
        Enum.GetValues<V1.SnpPageType>().Where(type => type != V1.SnpPageType.Unspecified).ToDictionary(type => type.ToString().ToUpperInvariant(), type => (ulong)type),
        StringComparer.Ordinal);
}
