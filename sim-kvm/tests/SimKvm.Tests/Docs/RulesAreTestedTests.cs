using System.Reflection;
using System.Text.RegularExpressions;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Docs;

/// <summary>
/// A refusal that no test has ever seen is a guess. Every rule is named, by its id or by its field, in the source of a test of the kernel or through the service; those that are
/// met by tests which look at the errno only are listed here, and the list only gets shorter: a row whose rule is named by now fails too.
/// </summary>
public sealed partial class RulesAreTestedTests
{
    // Met, by tests that look at what comes out and not at why: rule, and who meets it.
    private static readonly (string Id, string MetBy)[] s_namedByNobody =
    [
        ("kvm.fault.no-private-file", "ConversionTests: KVM_RUN of v10 reports success, and no reasons with it"),
        ("kvm.fault.private-state", "ConversionTests: the same"),
        ("kvm.guest-memory.access", "GhcbEventTests, through what the guest gets"),
        ("kvm.x86.msrs.td", "TdxAuditTests: KVM_SET_MSRS answers how many registers it set, and no reasons"),
        ("mm.hwpoison", "MemoryCallTests, by the signal"),
        ("mm.memory-failure.kernel-page", "RealKvmDifferentialTests, as a step of walks"),
        ("psp.guest-message.key-select", "GuestRequestTests, by the status in firmware's answer"),
        ("psp.guest-message.key-svn", "GuestRequestTests, the same"),
        ("psp.guest-message.key-tcb", "GuestRequestTests, the same"),
        ("psp.guest-request.exhausted", "GuestRequestTests, by the status of the command"),
        ("psp.platform.certificate-length", "SevGuestOwnerTests: the client asks for lengths first"),
        ("sev.gmem-prepare.make-private", "SnpGuestTests, behind the cause that RMPUPDATE gives"),
        ("sev.guest-request.certificates", "Guests.GuestRequestTests, through what the guest gets"),
        ("sev.guest-request.firmware", "Guests.GuestRequestTests, the same"),
        ("sev.psc.operation", "PageStateChangeTests, the same"),
        ("sev.rmpupdate", "LaunchUpdateTests, behind the cause that RMPUPDATE gives"),
        ("sev.snp.update.host-rmp-fault", "LaunchUpdateTests, by the finding"),
        ("tdx.post-populate.mapped", "EveryTdxVectorTests, by the errno of the vector"),
        ("tdx.sept.busy", "TdxMemoryTests: what is tried again is no reason in the end"),
    ];

    [Fact]
    public void EveryRule_IsNamedByATest()
    {
        string? root = AppContext.BaseDirectory;
        while (root is not null && !File.Exists(Path.Combine(root, "VmmService.sln")))
        {
            root = Path.GetDirectoryName(root);
        }
        Assert.SkipWhen(root is null, "the tests run without the repository, so there is no source to look into");
        HashSet<string> named = NamesIn(Path.Combine(root!, "sim-kvm", "tests"), Path.Combine(root!, "integration-tests"));

        string[] listed = [.. s_namedByNobody.Select(row => row.Id)], unnamed =
        [
            .. new[] { typeof(SimHost).Assembly, typeof(Rule).Assembly }
                .SelectMany(assembly => assembly.GetTypes())
                .SelectMany(type => type.GetFields(BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly))
                .Where(field => field.FieldType == typeof(Rule) && !named.Contains($"{field.DeclaringType!.Name}.{field.Name}"))
                .Select(field => ((Rule)field.GetValue(null)!).Id)
                .Where(id => !named.Contains(id))
                .Order(StringComparer.Ordinal),
        ];

        string[] missing = [.. unnamed.Except(listed)], stale = [.. listed.Except(unnamed)];
        Assert.True(missing.Length == 0, $"no test names {string.Join(", ", missing)}: write one that meets it, and look at the reason as well as the errno");
        Assert.True(stale.Length == 0, $"{string.Join(", ", stale)}: named by a test now, or gone; take the row out");
    }

    // Words with dots in them, and of those each two parts that stand side by side: "psp.sev.policy", "Psp.NotSevEs" of "Psp.NotSevEs.Id".
    private static HashSet<string> NamesIn(params string[] folders)
    {
        var names = new HashSet<string>(StringComparer.Ordinal);
        foreach (string file in folders.SelectMany(folder => Directory.EnumerateFiles(folder, "*", SearchOption.AllDirectories)))
        {
            string[] parts = file.Split(Path.DirectorySeparatorChar);
            if (parts.Contains("obj") || parts.Contains("bin") || !(file.EndsWith(".cs", StringComparison.Ordinal) || file.EndsWith(".yaml", StringComparison.Ordinal))
                || Path.GetFileName(file) == nameof(RulesAreTestedTests) + ".cs")
            {
                continue;
            }
            foreach (Match match in DottedWord().Matches(File.ReadAllText(file)))
            {
                names.Add(match.Value);
                string[] words = match.Value.Split('.');
                for (int i = 1; i < words.Length; i++)
                {
                    names.Add($"{words[i - 1]}.{words[i]}");
                }
            }
        }
        return names;
    }

    [GeneratedRegex(@"[A-Za-z][\w-]*(\.[\w-]+)+")]
    private static partial Regex DottedWord();
}
