using System.Reflection;
using System.Text;
using SimKvm.Profiles;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Docs;

/// <summary>
/// The pages of sim-kvm/docs that are made from the code. With VMM_WRITE_DOCS=1 they are written, otherwise compared: a page that does not say what the code says
/// fails.
/// </summary>
public sealed class GeneratedDocsTests
{
    private static readonly Rule[] Rules =
    [
        .. new[] { typeof(SimHost).Assembly, typeof(Rule).Assembly }
            .SelectMany(assembly => assembly.GetTypes())
            .SelectMany(type => type.GetFields(BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly))
            .Where(field => field.FieldType == typeof(Rule))
            .Select(field => (Rule)field.GetValue(null)!)
            .OrderBy(rule => rule.Id, StringComparer.Ordinal),
    ];

    [Fact]
    public void EveryRule_HasAnIdOfItsOwnASourceAndAdvice()
    {
        Assert.Equal(Rules.Length, Rules.Select(rule => rule.Id).Distinct().Count());
        Assert.All(Rules, rule =>
        {
            Assert.Matches("^[a-z0-9-]+(\\.[a-z0-9-]+)+$", rule.Id);
            Assert.NotEmpty(rule.Sentence);
            Assert.NotEmpty(rule.Source);
            Assert.NotEmpty(rule.Advice);
            Assert.False(rule.Sentence.EndsWith('.'), $"{rule.Id}: a sentence stands inside a line, so it has no full stop");
        });
    }

    [Fact]
    public void RulesPage_SaysWhatTheCodeChecks()
    {
        var page = new StringBuilder("# Rules\n\nEvery check that can refuse, with where it comes from and what to try. Made from the code by `GeneratedDocsTests`.\n");
        foreach (IGrouping<string, Rule> group in Rules.GroupBy(rule => rule.Id[..rule.Id.IndexOf('.', StringComparison.Ordinal)]))
        {
            page.Append("\n## ").Append(group.Key).Append("\n\n| rule | what it says | source | what to try |\n|---|---|---|---|\n");
            foreach (Rule rule in group)
            {
                page.Append("| `").Append(rule.Id).Append("` | ").Append(Cell(rule.Sentence)).Append(" | ").Append(Cell(rule.Source)).Append(" | ").Append(Cell(rule.Advice)).Append(" |\n");
            }
        }
        Check("rules.md", page.ToString());
    }

    [Fact]
    public void ProfilesPage_SaysWhatDiffersBetweenGenerations()
    {
        var page = new StringBuilder("# Profiles\n\nThe kernel generations that a host can run, and in what each differs from its parent. Made from the code by `GeneratedDocsTests`.\n");
        foreach (KernelProfile profile in KernelProfiles.All)
        {
            page.Append("\n## ").Append(profile.Id).Append(": ").Append(profile.Title).Append(profile == KernelProfiles.Default ? " (default)\n" : "\n");
            if (profile.Parent is null)
            {
                page.Append("\nThe first: the others are described against it.\n");
                continue;
            }
            page.Append("\n| behaviour | ").Append(profile.Parent.Id).Append(" | ").Append(profile.Id).Append(" | source |\n|---|---|---|---|\n");
            foreach (BehaviourDelta delta in KernelProfiles.Differences(profile.Parent, profile))
            {
                page.Append("| ").Append(delta.Name).Append(" | ").Append(delta.Before).Append(" | ").Append(delta.After).Append(" | ").Append(Cell(delta.Source)).Append(" |\n");
            }
        }
        Check("profiles.md", page.ToString());
    }

    private static string Cell(string text) => text.Replace("|", "\\|", StringComparison.Ordinal);

    private static void Check(string name, string expected)
    {
        string? root = AppContext.BaseDirectory;
        while (root is not null && !File.Exists(Path.Combine(root, "VmmService.sln")))
        {
            root = Path.GetDirectoryName(root);
        }
        Assert.SkipWhen(root is null, "the tests run without the repository, so there is no page to compare");
        string path = Path.Combine(root!, "sim-kvm", "docs", name);
        if (Environment.GetEnvironmentVariable("VMM_WRITE_DOCS") == "1")
        {
            File.WriteAllText(path, expected);
        }
        Assert.True(
            File.Exists(path) && File.ReadAllText(path) == expected,
            $"{path} does not say what the code says; run the tests once with VMM_WRITE_DOCS=1 and look at the difference");
    }
}
