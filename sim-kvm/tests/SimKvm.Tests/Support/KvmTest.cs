using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests.Support;

/// <summary>
/// Base of the tests that drive a simulated kernel: boots hosts, and when the test is over looks at each of them once more. What must hold then is the same
/// everywhere: no finding that the test did not announce, locks in the declared order, all invariants, and nothing left when the processes are gone.
/// </summary>
public abstract class KvmTest : IDisposable
{
    public const string K616 = "K616";
    public const string K72 = "K72";

    private readonly List<TestHost> _hosts = [];

    /// <summary>Every profile, for theories that hold in all of them.</summary>
    public static TheoryData<string> Profiles => [K616, K72];

    public void Dispose()
    {
        GC.SuppressFinalize(this);
        foreach (TestHost host in _hosts)
        {
            host.VerifyAndDispose();
        }
    }

    private protected TestHost Boot(string profile = K72, MachineConfig? machine = null, ulong seed = 1, int fdLimit = 4096, KernelConfig? kernel = null)
    {
        var host = new TestHost(profile, machine ?? new MachineConfig(), seed, fdLimit, kernel ?? new KernelConfig());
        _hosts.Add(host);
        return host;
    }

    /// <summary>A call failed with this errno, and this rule was the first to refuse.</summary>
    private protected static void AssertRefused(CallReport report, Errno errno, Rule root)
    {
        string causes = string.Join("; ", report.Causes.Select(cause => $"{cause.Rule.Id}: {cause}"));
        Assert.True(errno == report.Errno, $"{report.What}: expected {errno}, got {report.Errno} ({causes})");
        Assert.True(report.Causes.Count > 0, $"{report.What}: {errno} came without a cause");
        Assert.True(ReferenceEquals(root, report.Causes[0].Rule), $"{report.What}: expected rule {root.Id}, got {causes}");
    }

    /// <summary>As <see cref="AssertRefused"/>, and the call left everything as it was.</summary>
    private protected static void AssertRefusedUnchanged(TestHost host, Func<CallReport> call, Errno errno, Rule root)
    {
        string before = host.Snapshot();
        CallReport report = call();
        AssertRefused(report, errno, root);
        Assert.Equal(before, host.Snapshot());
    }

    private protected static CallReport AssertOk(CallReport report)
    {
        Assert.True(report.Succeeded, $"{report.What}: {report.Errno} ({string.Join("; ", report.Causes)})");
        return report;
    }

    private protected static string ProfileOf(TestHost host) => host.Host.Profile.Id;

    private protected static TheoryData<string, VmType> ProfilesAndTypes(params VmType[] types)
    {
        var data = new TheoryData<string, VmType>();
        foreach (string profile in new[] { K616, K72 })
        {
            foreach (VmType type in types)
            {
                data.Add(profile, type);
            }
        }
        return data;
    }
}
