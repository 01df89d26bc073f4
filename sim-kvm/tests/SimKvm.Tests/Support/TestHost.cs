using System.Globalization;
using System.Text;
using System.Text.Json;
using SimKvm.Locking;
using SimKvm.Profiles;
using SimMachine;
using SimMachine.Stepping;

namespace SimKvm.Tests.Support;

/// <summary>A booted host with its processes, and the audit that ends every test.</summary>
internal sealed class TestHost
{
    private readonly List<Vmm> _vmms = [];
    private readonly HashSet<string> _expectedFindings = [];

    public TestHost(string profile, MachineConfig machine, ulong seed, int fdLimit, KernelConfig kernel)
        : this(new SimHost(KernelProfiles.Find(profile)!, machine, seed) { FdLimit = fdLimit, Config = kernel })
    {
    }

    /// <summary>A host that somebody else booted.</summary>
    public TestHost(SimHost host)
    {
        Host = host;
        // The zero page comes into being on its first use; here it is part of what every test starts with.
        _ = Host.ZeroPage;
        Vmm = NewVmm();
    }

    public SimHost Host { get; }

    public Machine Machine => Host.Machine;

    public KernelProfile Profile => Host.Profile;

    /// <summary>The first process.</summary>
    public Vmm Vmm { get; }

    public List<TestVm> Vms { get; } = [];

    public Vmm NewVmm()
    {
        var vmm = new Vmm(this);
        _vmms.Add(vmm);
        return vmm;
    }

    /// <summary>A finding that this test provokes on purpose.</summary>
    public void Expect(string findingKind) => _expectedFindings.Add(findingKind);

    /// <summary>A second thread of a process, for calls that come between the steps of another.</summary>
    public static KTask NewThread(Vmm vmm, int tid = 1000) => new(vmm.Process, tid);

    /// <summary>All state that a refused call must leave alone, as text.</summary>
    public string Snapshot()
    {
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"frames {Machine.AllocatedPages} leaked {Machine.LeakedPages} findings {Machine.Findings.Count} vms {Host.LiveVms}\n");
        foreach (Vmm vmm in _vmms)
        {
            text.Append(CultureInfo.InvariantCulture, $"pid {vmm.Process.Pid}: {string.Join(',', vmm.Process.Files.Open.Select(open => $"{open.Fd}={open.File.Name}"))}\n");
        }
        foreach (TestVm vm in Vms)
        {
            text.Append(JsonSerializer.Serialize(vm.TryDescribe())).Append('\n');
        }
        return text.ToString();
    }

    /// <summary>The audit. Processes exit, and then nothing may be left.</summary>
    public void VerifyAndDispose()
    {
        try
        {
            foreach (TestVm vm in Vms)
            {
                vm.Kernel.Memslots.CheckInvariants();
            }
            foreach (Vmm vmm in _vmms)
            {
                vmm.Process.Exit();
            }
            foreach (Finding finding in Machine.Findings.All)
            {
                if (!_expectedFindings.Contains(finding.Kind))
                {
                    throw new InvalidOperationException($"finding {finding.Kind}: {finding.Text} ({string.Join("; ", finding.Blame)})");
                }
            }
            if (Profile.Populate == PopulateDesign.PerPage && !_expectedFindings.Contains("lock-inversion"))
            {
                foreach ((LockClass outer, LockClass inner) in Host.Lockdep.Edges())
                {
                    Require(outer.Rank < inner.Rank, $"{inner} was taken under {outer}, against LockOrder");
                }
            }
            Require(Host.LiveVms == 0, $"{Host.LiveVms} VMs outlive their processes");
            Require(_expectedFindings.Count > 0 || Machine.LeakedPages == 0, $"{Machine.LeakedPages} frames leaked");
            Require(_expectedFindings.Count > 0 || Machine.AllocatedPages == 1, $"{Machine.AllocatedPages} frames are in use; only the zero page should be");
        }
        finally
        {
            Host.Dispose();
        }
    }

    private static void Require(bool holds, string otherwise)
    {
        if (!holds)
        {
            throw new InvalidOperationException(otherwise);
        }
    }
}
