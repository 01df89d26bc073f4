using SimKvm.Abi;
using SimKvm.Exploration;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimMachine.Intel;
using SimMachine.Measurement;

namespace SimKvm.Tests.Exploration;

/// <summary>What the operations meet on.</summary>
public enum VmUnderTest
{
    SwProtected,
    Snp,
    Td,
    RunningTd,
}

/// <summary>
/// Everything that user space can do to guest memory, each operation as one program, on a VM where they meet: two pages that a guest_memfd backs, the first private, the second
/// shared, a vCPU, and a launch that is under way where the type has one.
/// </summary>
internal static class Operations
{
    private const ulong Page = Vmm.Page;

    /// <summary>Those that any VM with private memory has.</summary>
    public static IReadOnlyList<string> OfSwProtected { get; } =
    [
        "make private", "make shared", "punch hole", "allocate", "close file", "delete slot", "add slot", "run", "run other", "pre-fault", "host store", "unmap", "protect",
        "discard", "fork", "create vcpu", "bind file",
    ];

    /// <summary>Those of an SNP guest that is being launched.</summary>
    public static IReadOnlyList<string> OfSnp { get; } =
        ["make private", "make shared", "punch hole", "allocate", "close file", "delete slot", "launch update", "launch update shared page", "launch finish", "run", "host store", "unmap", "create vcpu"];

    /// <summary>Those of a TD that is being built.</summary>
    public static IReadOnlyList<string> OfTd { get; } =
        ["make private", "make shared", "punch hole", "allocate", "close file", "delete slot", "add region", "add region of shared page", "finalize", "create vcpu", "init vcpu", "run", "pre-fault", "unmap"];

    /// <summary>Those of a TD that runs.</summary>
    public static IReadOnlyList<string> OfRunningTd { get; } =
        ["make private", "make shared", "punch hole", "allocate", "close file", "delete slot", "run", "run other", "pre-fault", "host store"];

    /// <summary>A kind of VM, and what is done to it.</summary>
    public static IReadOnlyList<string> Of(VmUnderTest kind) => kind switch
    {
        VmUnderTest.Snp => OfSnp,
        VmUnderTest.Td => OfTd,
        VmUnderTest.RunningTd => OfRunningTd,
        _ => OfSwProtected,
    };

    /// <summary>Every pair, an operation with itself too.</summary>
    public static IEnumerable<(string First, string Second)> Pairs(IReadOnlyList<string> operations)
    {
        for (int i = 0; i < operations.Count; i++)
        {
            for (int j = i; j < operations.Count; j++)
            {
                yield return (operations[i], operations[j]);
            }
        }
    }

    public static Scenario Pair(string profile, VmUnderTest kind, string first, string second) => Explored.Scenario(profile, host =>
    {
        var bench = new Bench(host, kind);
        Action one = bench.Operation(first, 0), two = bench.Operation(second, 1);
        return new PreparedScenario([new ExploredProgram(first, host.Vmm.Process, _ => one()), new ExploredProgram(second, host.Vmm.Process, _ => two())]);
    }) with
    {
        Machine = kind is VmUnderTest.Td or VmUnderTest.RunningTd ? TestVm.IntelMachine() with { MemoryBytes = 64UL << 20 } : new SimMachine.MachineConfig { MemoryBytes = 64UL << 20 },
    };

    /// <summary>The VM that the operations meet on.</summary>
    private sealed class Bench
    {
        private readonly TestHost _host;
        private readonly TestVm _vm;
        private readonly int _gmem;
        private readonly int _spare;
        private readonly ulong _ram;
        private readonly ulong _source;
        private readonly int[] _vcpus;
        private readonly ulong[] _scratch;

        // A third vCPU of a TD, which is created and not initialised.
        private readonly int _raw;

        public Bench(TestHost host, VmUnderTest kind)
        {
            _host = host;
            _vm = host.Vmm.CreateVm(kind switch
            {
                VmUnderTest.Snp => VmType.KVM_X86_SNP_VM,
                VmUnderTest.SwProtected => VmType.KVM_X86_SW_PROTECTED_VM,
                _ => VmType.KVM_X86_TDX_VM,
            });
            bool isTd = kind is VmUnderTest.Td or VmUnderTest.RunningTd;
            if (kind == VmUnderTest.Snp)
            {
                _vm.Init2();
            }
            if (isTd)
            {
                _vm.SplitIrqchip().TdxInitVm();
            }
            _ram = host.Vmm.MapFilled(2);
            _source = host.Vmm.MapFilled(2, 7);
            _scratch = [host.Vmm.MapFilled(1), host.Vmm.MapFilled(1)];
            _gmem = _vm.CreateGmem(2);
            _spare = _vm.CreateGmem(1);
            _vm.AddGmemSlot(0, 0, 2, _gmem, uaddr: _ram);
            _vm.SetPrivate(0, 1);
            _vcpus = isTd ? [_vm.AddTdVcpu(0).Fd, _vm.AddTdVcpu(1).Fd] : [_vm.CreateVcpu(0), _vm.CreateVcpu(1)];
            if (kind == VmUnderTest.Snp)
            {
                _vm.Start();
            }
            if (kind == VmUnderTest.Td)
            {
                _raw = _vm.CreateVcpu(2);
                _vm.SetTdCpuid(_raw);
            }
            if (kind == VmUnderTest.RunningTd)
            {
                _vm.TdxRegion(_vcpus[0], _source, 0, 1);
                _vm.TdxFinalize();
            }
        }

        public Action Operation(string name, int thread) => name switch
        {
            "make private" => () => _vm.TrySetAttributes(0, 2 * Page, TestVm.Private),
            "make shared" => () => _vm.TrySetAttributes(0, 2 * Page, 0),
            "punch hole" => () => _host.Vmm.Process.Fallocate(_gmem, Explored.PunchHole, 0, (long)(2 * Page)),
            "allocate" => () => _host.Vmm.Process.Fallocate(_gmem, 1, 0, (long)(2 * Page)),
            "close file" => () => _host.Vmm.Close(_gmem),
            "delete slot" => () => _vm.TryDeleteSlot(0),
            "add slot" => () => _vm.TrySetRegion2((uint)(1 + thread), 0, (ulong)(4 + thread) * Page, 1, _ram),
            "bind file" => () => _vm.TrySetRegion2((uint)(3 + thread), KvmMem.GUEST_MEMFD, (ulong)(8 + thread) * Page, 1, gmem: _spare),
            "run" when _vm.Kernel.Backend.HasPrivateTable => RunTd(_vcpus[thread]),
            "run" => Run(_vcpus[thread], 0),
            "run other" => Run(_vcpus[thread], Page),
            "pre-fault" => () =>
            {
                var range = new kvm_pre_fault_memory { gpa = 0, size = 2 * Page };
                _host.Vmm.Ioctl(_vcpus[thread], KvmIoctl.KVM_PRE_FAULT_MEMORY, ref range);
            }
            ,
            "host store" => () => _host.Vmm.Process.Write(_ram + Page, new byte[] { 0xee }),
            "unmap" => () => _host.Vmm.Process.Munmap(_ram, 2 * Page),
            "protect" => () => _host.Vmm.Process.Mprotect(_ram, 2 * Page, Vmm.ProtRead),
            "discard" => () => _host.Vmm.Process.Madvise(_ram, 2 * Page, 4),
            "fork" => () => _host.Vmm.Process.Fork(out _),
            "create vcpu" => () => _vm.TryCreateVcpu((ulong)(3 + thread)),
            "init vcpu" => () => _vm.TryTdxInitVcpu(_raw),
            "add region" => AddRegion(0, thread),
            "add region of shared page" => AddRegion(1, thread),
            "finalize" => () =>
            {
                var cmd = new kvm_tdx_cmd { id = (uint)TdxCmdId.KVM_TDX_FINALIZE_VM };
                _vm.TryTdx(_vm.Fd, ref cmd);
            }
            ,
            "launch update" => LaunchUpdate(0, thread),
            "launch update shared page" => LaunchUpdate(1, thread),
            "launch finish" => Sev(SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH, new kvm_sev_snp_launch_finish(), thread),
            _ => throw new ArgumentException(name, nameof(name)),
        };

        private Action Run(int vcpu, ulong gpa)
        {
            _host.Vmm.Process.LoadGuestProgram(vcpu, [TestGuest.Store(gpa, 0x11), TestGuest.Fetch(gpa), new GuestHalt()]);
            return () => _host.Vmm.Ioctl(vcpu, KvmIoctl.KVM_RUN, 0);
        }

        // A TD accepts a page before it uses it.
        private Action RunTd(int vcpu)
        {
            var accept = new TdcallRegisters { Rax = (ulong)TdcallLeaf.TDG_MEM_PAGE_ACCEPT };
            _host.Vmm.Process.LoadGuestProgram(vcpu, [new GuestTdcall(accept), TestGuest.Store(0, 0x11), new GuestHalt()]);
            return () => _host.Vmm.Ioctl(vcpu, KvmIoctl.KVM_RUN, 0);
        }

        private Action AddRegion(ulong gfn, int thread)
        {
            _host.Vmm.Store(_scratch[thread], new kvm_tdx_init_mem_region { source_addr = _source, gpa = gfn * Page, nr_pages = 1 });
            return () =>
            {
                var cmd = new kvm_tdx_cmd { id = (uint)TdxCmdId.KVM_TDX_INIT_MEM_REGION, data = _scratch[thread] };
                _vm.TryTdx(_vcpus[thread], ref cmd);
            };
        }

        private Action LaunchUpdate(ulong gfn, int thread) =>
            Sev(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, new kvm_sev_snp_launch_update { gfn_start = gfn, uaddr = _source, len = Page, type = (byte)SnpPageType.NORMAL }, thread);

        // Each thread has structures of its own, as a VMM has them on its stacks.
        private Action Sev<T>(SevCmdId id, T parameters, int thread)
            where T : unmanaged
        {
            _host.Vmm.Store(_scratch[thread], parameters);
            return () =>
            {
                var cmd = new kvm_sev_cmd { id = (uint)id, data = _scratch[thread], sev_fd = (uint)_host.Vmm.Sev };
                _host.Vmm.Ioctl(_vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_OP, ref cmd);
            };
        }
    }
}
