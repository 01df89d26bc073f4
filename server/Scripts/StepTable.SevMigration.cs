using SimKvm.Abi;
using VmmService.Server.Sessions;
using VmmService.V1;

namespace VmmService.Server.Scripts;

// A SEV guest goes from one platform to another: the platform's certificates, SEND_* and RECEIVE_*.
internal static partial class StepTable
{
    private const int SessionBytes = 128;
    private const int PacketHeaderBytes = 52;

    // Behind the command's structure, and before the blobs.
    private const int SessionOffset = 256;

    private static IEnumerable<StepAction> SevMigrationSteps =>
    [
        new("sev_pdh_cert_export", "SEV_PDH_CERT_EXPORT of /dev/sev: the platform's key for sessions", [SevFd], SevPdhCertExport)
        {
            Facts =
            [
                ErrorFact, new("pdh_cert", FieldKind.Content, "2084 bytes"), new("plat_certs", FieldKind.Content, "PEK, OCA and CEK, the last as AMD's authority signed it: for SEND_START"),
            ],
        },
        new(
            "sev_send_start", "KVM_SEV_SEND_START",
            [
                Need("pdh_cert", FieldKind.Content, "of the platform that it goes to"), Need("plat_certs", FieldKind.Content, "of the same"),
                May("amd_certs", FieldKind.Content, "for KVM to copy, firmware knows its authority; without it one byte", null), Fd("vm", "VM"), SevFd,
            ],
            SevSendStart)
        { Facts = [ErrorFact, new("session", FieldKind.Content, "for RECEIVE_START, 128 bytes"), new("policy", FieldKind.U64, "of the guest")] },
        new(
            "sev_send_update_data", "KVM_SEV_SEND_UPDATE_DATA; the memory stays as it is",
            [Need("guest_uaddr", FieldKind.U64, "user address, within a page"), Need("guest_len", FieldKind.U32, "bytes, a multiple of 16"), Fd("vm", "VM"), SevFd], SevSendUpdateData)
        { Facts = [ErrorFact, new("header", FieldKind.Content, "52 bytes"), new("packet", FieldKind.Content, "what travels")] },
        new(
            "sev_send_finish", "KVM_SEV_SEND_FINISH: the guest is gone; or KVM_SEV_SEND_CANCEL: it stays", [May("cancel", FieldKind.Bool, "it stays", "false"), Fd("vm", "VM"), SevFd],
            (run, args) => SevCommand(run, args, args.Flag("cancel") ? SevCmdId.KVM_SEV_SEND_CANCEL : SevCmdId.KVM_SEV_SEND_FINISH))
        { Facts = [ErrorFact] },
        new(
            "sev_receive_start", "KVM_SEV_RECEIVE_START",
            [
                Need("pdh_cert", FieldKind.Content, "of the platform that it comes from"), Need("session", FieldKind.Content, "of SEND_START"), Need("policy", FieldKind.U32, "the same"),
                May("handle", FieldKind.U32, "0 for a key of its own, or the guest whose key to share"), Fd("vm", "VM"), SevFd,
            ],
            SevReceiveStart)
        { Facts = [ErrorFact, new("handle", FieldKind.U64, "firmware's handle")] },
        new(
            "sev_receive_update_data", "KVM_SEV_RECEIVE_UPDATE_DATA",
            [
                Need("header", FieldKind.Content, "of SEND_UPDATE_DATA"), Need("packet", FieldKind.Content, "of the same"), Need("guest_uaddr", FieldKind.U64, "where it goes"),
                May("guest_len", FieldKind.U32, "bytes; without it those of the packet", null), Fd("vm", "VM"), SevFd,
            ],
            SevReceiveUpdateData)
        { Facts = [ErrorFact] },
        new("sev_receive_finish", "KVM_SEV_RECEIVE_FINISH: the guest can run here", [Fd("vm", "VM"), SevFd], (run, args) => SevCommand(run, args, SevCmdId.KVM_SEV_RECEIVE_FINISH))
        { Facts = [ErrorFact] },
    ];

    private static StepResult SevPdhCertExport(ScriptRun run, StepArguments args)
    {
        int fd = args.Fd("sev_fd");
        return run.On(process =>
        {
            SevPdhCertExportResponse export = new SevPlatformCalls(process, fd, run.Hosts.ScratchOf(run.HostId, process, run.Thread)).ExportPdh(query: false);
            var result = StepResult.Of(export.Outcome).Add("error", export.Sev.ErrorName);
            if (export.Outcome.Errno == 0)
            {
                byte[] cek = process.Host.Machine.Psp.SignedCekCertificate();
                result.Add("pdh_cert", export.PdhCert.Memory).Add("plat_certs", (byte[])[.. export.CertChain.Span[..^cek.Length], .. cek]);
            }
            return result;
        });
    }

    private static StepResult SevSendStart(ScriptRun run, StepArguments args)
    {
        byte[] pdh = Blob(args, "pdh_cert"), platform = Blob(args, "plat_certs"), amd = args.Has("amd_certs") ? Blob(args, "amd_certs") : [0];
        ulong scratch = ScratchOf(run);
        var send = new kvm_sev_send_start
        {
            pdh_cert_uaddr = scratch + SevCommands.FirstBlobOffset,
            pdh_cert_len = (uint)pdh.Length,
            plat_certs_uaddr = scratch + SevCommands.SecondBlobOffset,
            plat_certs_len = (uint)platform.Length,
            amd_certs_uaddr = scratch + SevCommands.ThirdBlobOffset,
            amd_certs_len = (uint)amd.Length,
            session_uaddr = scratch + SessionOffset,
            session_len = SessionBytes,
        };
        StepResult result = SevCommand(run, args, SevCmdId.KVM_SEV_SEND_START, ref send, pages => StoreBlobs(pages, pdh, platform, amd));
        return result.Outcome!.Errno != 0 ? result : result.Add("session", LoadBlob(run, SessionOffset, SessionBytes)).Add("policy", send.policy);
    }

    private static StepResult SevSendUpdateData(ScriptRun run, StepArguments args)
    {
        uint length = args.U32("guest_len");
        CheckLength(args, "guest_len", length, SevCommands.MaxBlob);
        ulong scratch = ScratchOf(run);
        var send = new kvm_sev_send_update_data
        {
            hdr_uaddr = scratch + SevCommands.FirstBlobOffset,
            hdr_len = PacketHeaderBytes,
            guest_uaddr = args.U64("guest_uaddr"),
            guest_len = length,
            trans_uaddr = scratch + SevCommands.SecondBlobOffset,
            // A length of 0 would be a question.
            trans_len = Math.Max(length, 1),
        };
        StepResult result = SevCommand(run, args, SevCmdId.KVM_SEV_SEND_UPDATE_DATA, ref send);
        return result.Outcome!.Errno != 0
            ? result
            : result.Add("header", LoadBlob(run, SevCommands.FirstBlobOffset, PacketHeaderBytes)).Add("packet", LoadBlob(run, SevCommands.SecondBlobOffset, (int)length));
    }

    private static StepResult SevReceiveStart(ScriptRun run, StepArguments args)
    {
        byte[] pdh = Blob(args, "pdh_cert"), session = Blob(args, "session");
        ulong scratch = ScratchOf(run);
        var receive = new kvm_sev_receive_start
        {
            handle = args.U32("handle"),
            policy = args.U32("policy"),
            pdh_uaddr = scratch + SevCommands.FirstBlobOffset,
            pdh_len = (uint)pdh.Length,
            session_uaddr = scratch + SevCommands.SecondBlobOffset,
            session_len = (uint)session.Length,
        };
        return SevCommand(run, args, SevCmdId.KVM_SEV_RECEIVE_START, ref receive, pages => StoreBlobs(pages, pdh, session)).Add("handle", receive.handle);
    }

    private static StepResult SevReceiveUpdateData(ScriptRun run, StepArguments args)
    {
        byte[] header = Blob(args, "header"), packet = Blob(args, "packet");
        ulong scratch = ScratchOf(run);
        var receive = new kvm_sev_receive_update_data
        {
            hdr_uaddr = scratch + SevCommands.FirstBlobOffset,
            hdr_len = (uint)header.Length,
            guest_uaddr = args.U64("guest_uaddr"),
            guest_len = args.Has("guest_len") ? args.U32("guest_len") : (uint)packet.Length,
            trans_uaddr = scratch + SevCommands.SecondBlobOffset,
            trans_len = (uint)packet.Length,
        };
        return SevCommand(run, args, SevCmdId.KVM_SEV_RECEIVE_UPDATE_DATA, ref receive, pages => StoreBlobs(pages, header, packet));
    }
}
