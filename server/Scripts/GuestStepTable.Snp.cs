using VmmService.V1;

namespace VmmService.Server.Scripts;

// What guests with encrypted state can do besides.
internal static partial class GuestStepTable
{
    private static StepField Large => new("large", FieldKind.Bool, "2 MiB instead of 4 KiB") { Default = "false" };

    private static StepField Ghcb => new("ghcb", FieldKind.U64, "gpa of the GHCB, a shared page that the guest registered") { Required = true };

    // Made anew each time: the order in which the parts of this class are initialised is not for us to choose.
    private static IReadOnlyList<GuestAction> SnpSteps =>
    [
        new(
            "pvalidate", "PVALIDATE, of SNP guests", [Gpa, new("validate", FieldKind.Bool, "false gives the page up") { Default = "true" }, Large],
            args => new GuestStep { Pvalidate = new GuestPvalidate { Gpa = args.U64("gpa"), Validate = args.Flag("validate"), Large = args.Flag("large") } }),
        new(
            "rmpadjust", "RMPADJUST, of SNP guests",
            [
                Gpa, new("vmpl", FieldKind.U32, "whose rights, 1 to 3") { Required = true }, new("permissions", FieldKind.U32, "bits: read, write, execute-user, execute-supervisor") { Default = "0" },
                new("vmsa", FieldKind.Bool, "the page becomes a VMSA") { Default = "false" }, Large,
            ],
            args => new GuestStep
            {
                Rmpadjust = new GuestRmpadjust
                {
                    Gpa = args.U64("gpa"), TargetVmpl = args.U32("vmpl"), Permissions = args.U32("permissions"), Vmsa = args.Flag("vmsa"), Large = args.Flag("large"),
                },
            }),
        new(
            "vmgexit", "write the GHCB MSR, VMGEXIT; rax is the MSR afterwards", [new("msr", FieldKind.U64, "a request of the MSR protocol, or the gpa of a GHCB") { Required = true }],
            args => new GuestStep { Vmgexit = new GuestVmgexit { GhcbMsr = args.U64("msr") } }),
        new(
            "page_state", "ask for pages to become private or shared, by a GHCB",
            [
                Ghcb, Gpa, new("pages", FieldKind.U64, "of 4 KiB") { Default = "1" }, new("private", FieldKind.Bool, "false is shared") { Required = true },
                new("validate", FieldKind.Bool, "PVALIDATE as well") { Default = "true" },
            ],
            PageState),
        new(
            "snp_request", "a message to firmware, by a GHCB",
            [
                Ghcb, new("secrets", FieldKind.U64, "gpa of the secrets page") { Required = true }, new("request", FieldKind.U64, "gpa of a shared page") { Required = true },
                new("response", FieldKind.U64, "gpa of another one") { Required = true }, new("vmpck", FieldKind.U32, "which key, 0 to 3") { Default = "0" },
                new("type", FieldKind.U32, "3 derived key, 5 report, 17 TSC info") { Default = "5" }, new("payload", FieldKind.Content, "in plain") { Required = true },
            ],
            args => new GuestStep
            {
                SnpRequest = new GuestSnpRequest
                {
                    GhcbGpa = args.U64("ghcb"), SecretsGpa = args.U64("secrets"), RequestGpa = args.U64("request"), ResponseGpa = args.U64("response"), Vmpck = args.U32("vmpck"),
                    MessageType = args.U32("type"), Payload = Bytes(args, "payload"),
                },
            }),
    ];

    private static GuestStep PageState(StepArguments args)
    {
        const ulong most = 65536;
        const int pageShift = 12;
        var change = new GuestPageStateChange { GhcbGpa = args.U64("ghcb"), Validate = args.Flag("validate") };
        ulong pages = args.U64("pages"), first = args.U64("gpa") >> pageShift;
        if (pages > most)
        {
            throw args.Node("pages").Problem($"{pages} pages are too many", $"ask for at most {most} at a time");
        }
        for (ulong i = 0; i < pages; i++)
        {
            change.Entries.Add(new PageStateEntry { Gfn = first + i, Operation = args.Flag("private") ? 1u : 2 });
        }
        return new GuestStep { PageStateChange = change };
    }
}
