using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Support;

/// <summary>One check of a call: how to violate it, and what the kernel then answers.</summary>
/// <param name="Name">For people, unique in its table.</param>
/// <param name="Errno">What the call answers.</param>
/// <param name="Rule">The rule that refuses first.</param>
/// <param name="Violate">Changes a call that would succeed so that this check refuses it. Composes with the violations of other checks.</param>
internal sealed record Check<T>(string Name, Errno Errno, Rule Rule, Action<T> Violate)
{
    /// <summary>Checks that share a word cannot be violated together.</summary>
    public string Tags { get; init; } = "";

    /// <summary>Profiles that have this check at this place.</summary>
    public string Profiles { get; init; } = "K616 K72";

    /// <summary>kvm_sev_cmd.error after a refusal, for memory-encrypt commands.</summary>
    public uint Error { get; init; }
}

/// <summary>
/// The checks of one call in the kernel's order. From it come two theories: each check alone, and each pair violated together, which must answer as the first.
/// </summary>
internal sealed class CheckTable<T>(params Check<T>[] checks)
{
    private static readonly string[] AllProfiles = [KvmTest.K616, KvmTest.K72];

    public Check<T> this[string name] => checks.Single(check => check.Name == name);

    public TheoryData<string, string> Singles()
    {
        var data = new TheoryData<string, string>();
        foreach (string profile in AllProfiles)
        {
            foreach (Check<T> check in Of(profile))
            {
                data.Add(profile, check.Name);
            }
        }
        return data;
    }

    public TheoryData<string, string, string> Pairs()
    {
        var data = new TheoryData<string, string, string>();
        foreach (string profile in AllProfiles)
        {
            Check<T>[] inOrder = Of(profile).ToArray();
            for (int i = 0; i < inOrder.Length; i++)
            {
                for (int j = i + 1; j < inOrder.Length; j++)
                {
                    if (!Words(inOrder[i].Tags).Intersect(Words(inOrder[j].Tags)).Any())
                    {
                        data.Add(profile, inOrder[i].Name, inOrder[j].Name);
                    }
                }
            }
        }
        return data;
    }

    private IEnumerable<Check<T>> Of(string profile) => checks.Where(check => Words(check.Profiles).Contains(profile));

    private static string[] Words(string text) => text.Split(' ', StringSplitOptions.RemoveEmptyEntries);
}
