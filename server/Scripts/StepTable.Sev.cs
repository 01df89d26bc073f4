using SimKvm.Abi;
using SimKvm.Auditing;
using VmmService.Server.Services;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;

namespace VmmService.Server.Scripts;

// Commands of KVM_MEMORY_ENCRYPT_OP.
internal static partial class StepTable
{
    private static StepField ErrorFact => new("error", FieldKind.Text, "the firmware's status by name");

    private static StepField SevFd => new("sev_fd", FieldKind.Fd, "/dev/sev") { Default = "$sev" };

    private static IEnumerable<StepAction> SevSteps =>
    [
        new(
            "sev_init2", "KVM_SEV_INIT2",
            [
                May("vmsa_features", FieldKind.U64, "SEV_FEATURES bits"), May("flags", FieldKind.U32, "reserved"), May("ghcb_version", FieldKind.U16, "0 for the default"), Fd("vm", "VM"), SevFd,
            ],
            (run, args) =>
            {
                var init = new kvm_sev_init { vmsa_features = args.U64("vmsa_features"), flags = args.U32("flags"), ghcb_version = args.U16("ghcb_version") };
                return SevCommand(run, args, SevCmdId.KVM_SEV_INIT2, ref init);
            })
        { Facts = [ErrorFact] },
        new(
            "snp_launch_start", "KVM_SEV_SNP_LAUNCH_START",
            [May("policy", FieldKind.U64, "guest policy", "0x30000"), May("flags", FieldKind.U16, "reserved"), Fd("vm", "VM"), SevFd],
            (run, args) =>
            {
                var start = new kvm_sev_snp_launch_start { policy = args.U64("policy"), flags = args.U16("flags") };
                return SevCommand(run, args, SevCmdId.KVM_SEV_SNP_LAUNCH_START, ref start);
            })
        { Facts = [ErrorFact] },
        new(
            "snp_launch_update", "KVM_SEV_SNP_LAUNCH_UPDATE; without `len` it is that of the content",
            [
                Need("gfn_start", FieldKind.U64, "first page"), May("type", FieldKind.U16, "page type", "NORMAL") with { Choices = StepChoices.SnpPageTypes }, May("len", FieldKind.U64, "bytes", null),
                May("content", FieldKind.Content, "mapped for the length of the call", null), May("uaddr", FieldKind.U64, "or the user address of the content"),
                May("flags", FieldKind.U16, "reserved"), Fd("vm", "VM"), SevFd,
            ],
            SnpLaunchUpdate)
        { Facts = [ErrorFact, new("left", FieldKind.Map, "what is left to do: gfn_start, len"), new("data", FieldKind.Content, "the content after the call"), new("digest", FieldKind.Text, "the launch digest so far")] },
        new(
            "snp_launch_finish", "KVM_SEV_SNP_LAUNCH_FINISH",
            [
                May("host_data", FieldKind.Content, "32 bytes", null), May("id_block", FieldKind.Content, "96 bytes", null), May("id_auth", FieldKind.Content, "4096 bytes, with id_block", null),
                May("auth_key_en", FieldKind.Bool, "the author key is used", "false"), May("vcek_disabled", FieldKind.Bool, "no VCEK for reports", "false"), May("flags", FieldKind.U16, "reserved"),
                Fd("vm", "VM"), SevFd,
            ],
            SnpLaunchFinish)
        { Facts = [ErrorFact, new("digest", FieldKind.Text, "the launch digest, 96 hexadecimal digits")] },
    ];

    private static StepResult SnpLaunchUpdate(ScriptRun run, StepArguments args)
    {
        byte[]? content = args.Has("content") ? args.Content("content") : null;
        if (content is not null && args.Has("uaddr"))
        {
            throw args.Node("uaddr").Problem("`uaddr` and `content` were given", "give one of them");
        }
        if (content is null && !args.Has("len"))
        {
            throw args.Key.Problem("neither `content` nor `len` says how much", "add one of them");
        }
        if (content is { Length: 0 })
        {
            throw args.Node("content").Problem("the content is empty", "leave it out and use `uaddr`");
        }
        run.Hosts.CheckBacking();
        var update = new kvm_sev_snp_launch_update
        {
            gfn_start = args.U64("gfn_start"),
            uaddr = args.U64("uaddr"),
            len = args.Has("len") ? args.U64("len") : (ulong)content!.Length,
            type = (byte)args.U16("type"),
            flags = args.U16("flags"),
        };
        if (content is not null)
        {
            update.uaddr = run.On(process => SevServiceImpl.Stage(process, content));
        }
        ulong staged = update.uaddr;
        StepResult result = SevCommand(run, args, SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, ref update);
        result.Add("left.gfn_start", update.gfn_start).Add("left.len", update.len);
        if (content is not null)
        {
            run.On(process => process.Read(staged, content));
            run.On(process => process.Munmap(staged, (ulong)content.Length));
            result.Add("data", content);
        }
        return AddDigest(run, args.Fd(), result);
    }

    private static unsafe StepResult SnpLaunchFinish(ScriptRun run, StepArguments args)
    {
        byte[] Exactly(string field, int length)
        {
            byte[] bytes = args.Has(field) ? args.Content(field) : [];
            return bytes.Length == 0 || bytes.Length == length ? bytes : throw args.Node(field).Problem($"`{field}` has {bytes.Length} bytes", $"give {length}, or leave it out");
        }
        byte[] block = Exactly("id_block", 96), auth = Exactly("id_auth", 4096);
        var finish = new kvm_sev_snp_launch_finish
        {
            id_block_en = (byte)(block.Length > 0 ? 1 : 0),
            auth_key_en = (byte)(args.Flag("auth_key_en") ? 1 : 0),
            vcek_disabled = (byte)(args.Flag("vcek_disabled") ? 1 : 0),
            flags = args.U16("flags"),
        };
        Exactly("host_data", 32).CopyTo(new Span<byte>(finish.host_data, 32));
        ulong scratch = ScratchOf(run);
        finish.id_block_uaddr = block.Length > 0 ? scratch + SevCommands.FirstBlobOffset : 0;
        finish.id_auth_uaddr = auth.Length > 0 ? scratch + SevCommands.SecondBlobOffset : 0;
        StepResult result = SevCommand(run, args, SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH, ref finish, pages =>
        {
            pages.Store(SevCommands.FirstBlobOffset, block);
            pages.Store(SevCommands.SecondBlobOffset, auth);
        });
        return AddDigest(run, args.Fd(), result);
    }

    private static StepResult AddDigest(ScriptRun run, int fd, StepResult result) =>
        run.On(process => VmDescription.Of(process, fd)?.Sev.Guest) is { } guest ? result.Add("digest", Outcomes.Hex(guest.LaunchDigest)) : result;
}
