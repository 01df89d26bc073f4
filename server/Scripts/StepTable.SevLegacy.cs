using SimKvm.Abi;
using SimKvm.Auditing;
using SimMachine.Amd.Legacy;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;

namespace VmmService.Server.Scripts;

// Commands of KVM_MEMORY_ENCRYPT_OP for SEV and SEV-ES, which measure and encrypt memory where it is.
internal static partial class StepTable
{
    private const int MeasureBytes = 32;
    private const int NonceBytes = 16;

    private static IEnumerable<StepAction> SevLegacySteps =>
    [
        new(
            "sev_init", "KVM_SEV_INIT or KVM_SEV_ES_INIT, of a VM of the default type", [May("es", FieldKind.Bool, "SEV-ES", "false"), Fd("vm", "VM"), SevFd],
            (run, args) => SevCommand(run, args, args.Flag("es") ? SevCmdId.KVM_SEV_ES_INIT : SevCmdId.KVM_SEV_INIT))
        { Facts = [ErrorFact] },
        new(
            "sev_launch_start", "KVM_SEV_LAUNCH_START",
            [
                May("policy", FieldKind.U32, "NODBG 1, NOKS 2, ES 4, NOSEND 8, DOMAIN 16, SEV 32", "1"), May("handle", FieldKind.U32, "0 for a key of its own, or the guest whose key to share"),
                May("dh_cert", FieldKind.Content, "the owner's certificate, 2084 bytes", null), May("session", FieldKind.Content, "128 bytes", null), Fd("vm", "VM"), SevFd,
            ],
            SevLaunchStart)
        { Facts = [ErrorFact, new("handle", FieldKind.U64, "firmware's handle")] },
        new(
            "sev_launch_update_data", "KVM_SEV_LAUNCH_UPDATE_DATA; the memory becomes ciphertext",
            [Need("uaddr", FieldKind.U64, "user address, a multiple of 16"), Need("len", FieldKind.U32, "bytes, a multiple of 16"), Fd("vm", "VM"), SevFd],
            (run, args) =>
            {
                var update = new kvm_sev_launch_update_data { uaddr = args.U64("uaddr"), len = args.U32("len") };
                return AddLegacyDigest(run, args.Fd(), SevCommand(run, args, SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, ref update));
            })
        { Facts = [ErrorFact, new("digest", FieldKind.Text, "the digest so far")] },
        new(
            "sev_launch_update_vmsa", "KVM_SEV_LAUNCH_UPDATE_VMSA: the state of every vCPU", [Fd("vm", "VM"), SevFd],
            (run, args) => AddLegacyDigest(run, args.Fd(), SevCommand(run, args, SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA)))
        { Facts = [ErrorFact, new("digest", FieldKind.Text, "the digest so far")] },
        new("sev_launch_measure", "KVM_SEV_LAUNCH_MEASURE", [May("len", FieldKind.U32, "bytes of the buffer", "48"), Fd("vm", "VM"), SevFd], SevLaunchMeasure)
        {
            Facts =
            [
                ErrorFact, new("len", FieldKind.U64, "bytes written, or needed"), new("measure", FieldKind.Content, "the HMAC, 32 bytes"), new("mnonce", FieldKind.Content, "16 bytes"),
                new("digest", FieldKind.Text, "the digest that was measured, 64 hexadecimal digits"),
            ],
        },
        new(
            "sev_launch_secret", "KVM_SEV_LAUNCH_SECRET",
            [
                Need("header", FieldKind.Content, "52 bytes: flags, IV, MAC"), Need("body", FieldKind.Content, "the encrypted secret"), Need("guest_uaddr", FieldKind.U64, "where it goes"),
                Need("guest_len", FieldKind.U32, "bytes"), Fd("vm", "VM"), SevFd,
            ],
            SevLaunchSecret)
        { Facts = [ErrorFact] },
        new(
            "sev_launch_finish", "KVM_SEV_LAUNCH_FINISH", [Fd("vm", "VM"), SevFd],
            (run, args) => AddLegacyDigest(run, args.Fd(), SevCommand(run, args, SevCmdId.KVM_SEV_LAUNCH_FINISH)))
        { Facts = [ErrorFact, new("digest", FieldKind.Text, "the digest")] },
        new("sev_guest_status", "KVM_SEV_GUEST_STATUS", [Fd("vm", "VM"), SevFd], SevGuestStatus)
        {
            Facts = [ErrorFact, new("handle", FieldKind.U64, "firmware's handle"), new("policy", FieldKind.U64, "of the launch"), new("state", FieldKind.Text, "by name")],
        },
    ];

    private static StepResult SevLaunchStart(ScriptRun run, StepArguments args)
    {
        byte[] certificate = Blob(args, "dh_cert"), session = Blob(args, "session");
        ulong scratch = ScratchOf(run);
        var start = new kvm_sev_launch_start
        {
            handle = args.U32("handle"),
            policy = args.U32("policy"),
            dh_uaddr = certificate.Length > 0 ? scratch + SevCommands.FirstBlobOffset : 0,
            dh_len = (uint)certificate.Length,
            session_uaddr = session.Length > 0 ? scratch + SevCommands.SecondBlobOffset : 0,
            session_len = (uint)session.Length,
        };
        StepResult result = SevCommand(run, args, SevCmdId.KVM_SEV_LAUNCH_START, ref start, pages => StoreBlobs(pages, certificate, session));
        return result.Add("handle", start.handle);
    }

    private static StepResult SevLaunchMeasure(ScriptRun run, StepArguments args)
    {
        ulong buffer = ScratchOf(run) + SevCommands.FirstBlobOffset;
        var measure = new kvm_sev_launch_measure { uaddr = buffer, len = args.U32("len") };
        StepResult result = SevCommand(run, args, SevCmdId.KVM_SEV_LAUNCH_MEASURE, ref measure).Add("len", measure.len);
        if (result.Outcome!.Errno == 0)
        {
            byte[] bytes = LoadBlob(run, SevCommands.FirstBlobOffset, MeasureBytes + NonceBytes);
            result.Kept = ScriptValue.Of(bytes.AsMemory(0, MeasureBytes));
            result.Add("measure", bytes.AsMemory(0, MeasureBytes)).Add("mnonce", bytes.AsMemory(MeasureBytes));
        }
        return AddLegacyDigest(run, args.Fd(), result);
    }

    private static StepResult SevLaunchSecret(ScriptRun run, StepArguments args)
    {
        byte[] header = Blob(args, "header"), body = Blob(args, "body");
        ulong scratch = ScratchOf(run);
        var secret = new kvm_sev_launch_secret
        {
            hdr_uaddr = scratch + SevCommands.FirstBlobOffset,
            hdr_len = (uint)header.Length,
            trans_uaddr = scratch + SevCommands.SecondBlobOffset,
            trans_len = (uint)body.Length,
            guest_uaddr = args.U64("guest_uaddr"),
            guest_len = args.U32("guest_len"),
        };
        return SevCommand(run, args, SevCmdId.KVM_SEV_LAUNCH_SECRET, ref secret, pages => StoreBlobs(pages, header, body));
    }

    private static StepResult SevGuestStatus(ScriptRun run, StepArguments args)
    {
        var status = default(kvm_sev_guest_status);
        StepResult result = SevCommand(run, args, SevCmdId.KVM_SEV_GUEST_STATUS, ref status);
        return result.Add("handle", status.handle).Add("policy", status.policy).Add("state", ((SevGuestState)status.state).ToString());
    }

    private static byte[] Blob(StepArguments args, string field)
    {
        byte[] bytes = args.Has(field) ? args.Content(field) : [];
        return bytes.Length <= SevCommands.MaxBlob ? bytes : throw args.Node(field).Problem($"`{field}` has {bytes.Length} bytes", $"at most {SevCommands.MaxBlob} are passed on");
    }

    private static void StoreBlobs(Scratch pages, byte[] first, byte[] second, byte[]? third = null)
    {
        pages.Store(SevCommands.FirstBlobOffset, first);
        pages.Store(SevCommands.SecondBlobOffset, second);
        pages.Store(SevCommands.ThirdBlobOffset, third ?? []);
    }

    private static byte[] LoadBlob(ScriptRun run, int offset, int length) => run.On(process => run.Hosts.ScratchOf(run.HostId, process, run.Thread).Load(offset, length));

    // A thread has scratch pages of its own.
    private static ulong ScratchOf(ScriptRun run) => run.On(process => run.Hosts.ScratchOf(run.HostId, process, run.Thread).Address);

    private static StepResult AddLegacyDigest(ScriptRun run, int fd, StepResult result) =>
        run.On(process => VmDescription.Of(process, fd)?.Sev.Legacy) is { } guest ? result.Add("digest", Outcomes.Hex(guest.LaunchDigest)) : result;
}
