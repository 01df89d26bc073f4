using System.Globalization;
using SimKvm.Abi;
using SimKvm.Tests.Support;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests.Model.Sev;

/// <summary>
/// Random orders of all launch commands of SEV, SEV-ES and SNP, with random valid and invalid arguments in every state: <see cref="SevLaunchModel"/> agrees with every answer, errno
/// and firmware status.
/// </summary>
/// <remarks>VMM_SEV_FUZZ_COUNT raises the number of seeds for each VM type and profile. A failure says which seed repeats it: VMM_SEV_FUZZ_SEED runs that one alone.</remarks>
public sealed partial class SevLaunchFuzzTests : KvmTest
{
    private const int Steps = 150;

    private static readonly int s_count = int.Parse(Environment.GetEnvironmentVariable("VMM_SEV_FUZZ_COUNT") ?? "40", CultureInfo.InvariantCulture);
    private static readonly string? s_seed = Environment.GetEnvironmentVariable("VMM_SEV_FUZZ_SEED");

    public static TheoryData<string, VmType> Cases
    {
        get
        {
            var data = new TheoryData<string, VmType>();
            foreach (string profile in new[] { K616, K72 })
            {
                foreach (VmType type in new[] { VmType.KVM_X86_DEFAULT_VM, VmType.KVM_X86_SEV_VM, VmType.KVM_X86_SEV_ES_VM, VmType.KVM_X86_SNP_VM, VmType.KVM_X86_SW_PROTECTED_VM })
                {
                    data.Add(profile, type);
                }
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void RandomLaunches_AgreeWithTheModel(string profile, VmType type)
    {
        IEnumerable<int> seeds = s_seed is null ? Enumerable.Range(1, s_count) : [int.Parse(s_seed, CultureInfo.InvariantCulture)];
        foreach (int seed in seeds)
        {
            TestHost host = Boot(profile);
            // What the kernels of that time did with a second LAUNCH_FINISH: they stored to the VMSA, which was the guest's by then.
            string[] known = profile == K616 && type == VmType.KVM_X86_SNP_VM ? ["host-rmp-fault"] : [];
            foreach (string finding in known)
            {
                host.Expect(finding);
            }
            new Run(host, profile, type, seed).Go(Steps);
            Assert.Empty(host.Machine.Findings.All.Select(finding => finding.Kind).Except(known));
        }
    }

    // The net has no hole: launches do come to their end, and every command succeeds somewhere, so that agreement is not agreement on refusals.
    [Fact]
    public void RandomLaunches_ReachEveryCommandsSuccess()
    {
        var succeeded = new HashSet<SevCmdId>();
        foreach (VmType type in new[] { VmType.KVM_X86_DEFAULT_VM, VmType.KVM_X86_SEV_VM, VmType.KVM_X86_SEV_ES_VM, VmType.KVM_X86_SNP_VM })
        {
            for (int seed = 1; seed <= 40; seed++)
            {
                var run = new Run(Boot(K72), K72, type, seed);
                run.Go(Steps);
                succeeded.UnionWith(run.Succeeded);
            }
        }
        // A secret needs a session's key, which these launches do not have; migration needs a policy that allows it and another machine.
        SevCmdId[] expected = [.. Run.AllCommands.Except([SevCmdId.KVM_SEV_LAUNCH_SECRET, .. Run.Migration])];
        Assert.Empty(expected.Except(succeeded));
    }

    /// <summary>One VM, its model, and dice.</summary>
    private sealed partial class Run
    {
        // Static fields of two files have no order between them, so this one asks when it is asked.
        public static IEnumerable<SevCmdId> AllCommands => [.. Launch, .. Migration];

        private static readonly SevCmdId[] Launch =
        [
            SevCmdId.KVM_SEV_INIT, SevCmdId.KVM_SEV_ES_INIT, SevCmdId.KVM_SEV_INIT2, SevCmdId.KVM_SEV_LAUNCH_START, SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA,
            SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA, SevCmdId.KVM_SEV_LAUNCH_SECRET, SevCmdId.KVM_SEV_LAUNCH_MEASURE, SevCmdId.KVM_SEV_LAUNCH_FINISH, SevCmdId.KVM_SEV_GUEST_STATUS,
            SevCmdId.KVM_SEV_DBG_DECRYPT, SevCmdId.KVM_SEV_DBG_ENCRYPT, SevCmdId.KVM_SEV_SNP_LAUNCH_START, SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH,
            SevCmdId.KVM_SEV_SNP_ENABLE_REQ_CERTS, SevCmdId.KVM_SEV_GET_ATTESTATION_REPORT,
        ];

        private readonly SevCmdId[] _commands = [.. AllCommands];

        private const ulong Gfn = 0x100;
        private const int SourcePages = 6;
        private const uint Sentinel = 0xa5a5;
        private const ulong Unmapped = 0xdead_0000;
        private const int BadFd = 999;

        private readonly Random _random;
        private readonly string _name;
        private readonly Vmm _vmm;
        private readonly TestVm _vm;
        private readonly SevLaunchModel _model;
        private readonly ulong _source;
        private readonly ulong _buffer;
        private readonly int _gmem = -1;
        private int _step;

        public Run(TestHost host, string profile, VmType type, int seed)
        {
            _random = new Random(seed);
            _name = $"{profile} {type}, VMM_SEV_FUZZ_SEED={seed}";
            _vmm = host.Vmm;
            _vm = _vmm.CreateVm(type);
            _model = new SevLaunchModel(type, newest: profile == K72);
            // Nothing can be read behind the source, and nothing else will be mapped there.
            _source = _vmm.MapFilled(2 * SourcePages, 0x30);
            Assert.True(_vmm.Process.Mprotect(_source + (SourcePages << 12), SourcePages << 12, 0).Succeeded);
            _buffer = _vmm.MapFilled(8, 0x77);
            if (type is VmType.KVM_X86_SNP_VM or VmType.KVM_X86_SW_PROTECTED_VM)
            {
                _gmem = _vm.CreateGmem(SevLaunchModel.Pages);
                _vm.AddGmemSlot(0, Gfn << 12, SevLaunchModel.Pages, _gmem);
            }
        }

        public HashSet<SevCmdId> Succeeded { get; } = [];

        public void Go(int steps)
        {
            for (_step = 1; _step <= steps; _step++)
            {
                int what = _random.Next(20);
                if (what == 0 && _model.Vcpus < 3 && (_model.IsActive || Rarely))
                {
                    _vm.CreateVcpu((ulong)_model.Vcpus);
                    _model.CreateVcpu();
                }
                else if (what is 1 or 2 or 3 && _gmem >= 0)
                {
                    ChangePages(hole: what == 1);
                }
                else if (what == 4)
                {
                    Unknown();
                }
                else
                {
                    Command(_commands[_random.Next(_commands.Length)]);
                }
            }
        }

        private bool Rarely => _random.Next(12) == 0;

        private bool Mostly => _random.Next(8) != 0;

        private void ChangePages(bool hole)
        {
            int first = _random.Next(SevLaunchModel.Pages), count = _random.Next(1, SevLaunchModel.Pages - first + 1);
            if (hole)
            {
                Assert.True(_vmm.Process.Fallocate(_gmem, 3, first << 12, count << 12).Succeeded);
                _model.Punch(first, count);
                return;
            }
            bool makePrivate = Mostly;
            Assert.True(_vm.TrySetAttributes((Gfn + (ulong)first) << 12, (ulong)count << 12, makePrivate ? TestVm.Private : 0).Succeeded);
            _model.SetPrivate(first, count, makePrivate);
        }

        private void Unknown()
        {
            uint[] ids = [10, 14, 19, 23, 99, 104, uint.MaxValue];
            uint id = ids[_random.Next(ids.Length)];
            Check((SevCmdId)id, _model.Dispatch(id)!.Value, _vm.TrySev((SevCmdId)id, 0UL, error: Sentinel));
        }

        private void Command(SevCmdId id)
        {
            SevAnswer? refused = _model.Dispatch((uint)id);
            bool fd = Mostly, readable = Mostly;
            switch (id)
            {
                case SevCmdId.KVM_SEV_INIT or SevCmdId.KVM_SEV_ES_INIT:
                    Check(id, refused ?? _model.Init(id == SevCmdId.KVM_SEV_ES_INIT), Send(id, 0UL, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_INIT2:
                    var init = new kvm_sev_init { vmsa_features = Rarely ? 1UL : Rarely ? 0x20UL : 0, flags = Rarely ? 1u : 0, ghcb_version = (ushort)(Rarely ? 3 : Rarely ? 2 : 0) };
                    Check(id, refused ?? _model.Init2(readable, init.vmsa_features, init.flags, init.ghcb_version), Send(id, init, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_LAUNCH_START:
                    LaunchStart(refused, fd, readable);
                    break;
                case SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA:
                    ulong offset = Rarely ? 8UL : (ulong)_random.Next(8) * 0x800;
                    uint length = Rarely ? 0 : Rarely ? 20 : (uint)_random.Next(1, 12) * 0x400;
                    Check(
                        id, refused ?? _model.UpdateData(readable, offset, length, 8 << 12),
                        Send(id, new kvm_sev_launch_update_data { uaddr = _buffer + offset, len = length }, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA:
                    Check(id, refused ?? _model.UpdateVmsa(), Send(id, 0UL, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_LAUNCH_MEASURE:
                    Measure(refused, fd, readable);
                    break;
                case SevCmdId.KVM_SEV_GET_ATTESTATION_REPORT:
                    uint reportLength = Rarely ? 0 : Rarely ? 207u : Rarely ? 0x4001u : 0x100;
                    bool hasBuffer = Mostly, bufferMapped = Mostly;
                    var report = new kvm_sev_attestation_report { uaddr = !hasBuffer ? 0 : bufferMapped ? _buffer + 0x7000 : Unmapped, len = reportLength };
                    SevAnswer reported = refused ?? _model.Report(readable, hasBuffer, bufferMapped, ref reportLength);
                    SevReply<kvm_sev_attestation_report> attested = Send(id, report, fd, readable);
                    Check(id, reported, attested);
                    Assert.True(!readable || attested.Data.len == reportLength, $"{_name}, step {_step}: len {attested.Data.len}, the model says {reportLength}");
                    break;
                case SevCmdId.KVM_SEV_LAUNCH_SECRET:
                    Secret(refused, fd, readable);
                    break;
                case SevCmdId.KVM_SEV_LAUNCH_FINISH:
                    Check(id, refused ?? _model.Finish(), Send(id, 0UL, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_GUEST_STATUS:
                    SevReply<kvm_sev_guest_status> status = Send(id, default(kvm_sev_guest_status), fd, readable);
                    Check(id, refused ?? _model.GuestStatus(readable), status);
                    if (status.Report.Succeeded)
                    {
                        Assert.Equal((_model.Handle, _model.Policy, (uint)_model.State), (status.Data.handle, status.Data.policy, status.Data.state));
                    }
                    break;
                case SevCmdId.KVM_SEV_DBG_DECRYPT or SevCmdId.KVM_SEV_DBG_ENCRYPT:
                    bool mapped = Mostly, hasTarget = Mostly;
                    var debug = new kvm_sev_dbg { src_uaddr = mapped ? _source : Unmapped, dst_uaddr = hasTarget ? _buffer : 0, len = Rarely ? 0 : (uint)_random.Next(1, 0x1800) };
                    // What is decrypted must not end up in the source of launches.
                    Check(id, refused ?? _model.Debug(readable, debug.len, hasTarget, mapped), Send(id, debug, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_SNP_LAUNCH_START:
                    ulong[] policies = [0x30000, 0x30000, 0x30000, 0xb0000, 0x10000, 0x20000, 0x70000, 0x30137, 0x30138, 1UL << 30];
                    var start = new kvm_sev_snp_launch_start { policy = policies[_random.Next(policies.Length)], flags = (ushort)(Rarely ? 1 : 0) };
                    Check(id, refused ?? _model.SnpStart(readable, fd, start.policy, start.flags), Send(id, start, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE:
                    SnpUpdate(refused, fd, readable);
                    break;
                case SevCmdId.KVM_SEV_SNP_LAUNCH_FINISH:
                    bool block = Rarely;
                    bool nullBlock = _random.Next(2) == 0;
                    var finish = new kvm_sev_snp_launch_finish { flags = (ushort)(Rarely ? 4 : 0), id_block_en = (byte)(block ? 1 : 0), id_block_uaddr = nullBlock ? 0 : Unmapped };
                    Check(id, refused ?? _model.SnpFinish(readable, fd, finish.flags, block, nullBlock ? Errno.EINVAL : Errno.EFAULT), Send(id, finish, fd, readable));
                    break;
                case SevCmdId.KVM_SEV_SNP_ENABLE_REQ_CERTS:
                    Check(id, refused ?? _model.SnpEnableReqCerts(), Send(id, 0UL, fd, readable));
                    break;
                default:
                    Migrate(id, refused, fd, readable);
                    break;
            }
        }

        private void LaunchStart(SevAnswer? refused, bool fd, bool readable)
        {
            uint[] policies = [0, 1, 4, 5, 6, 8, 0x3701_0004, 0x3801_0000, 0x40];
            Blob dh = AnyBlob(2084), session = AnyBlob(128);
            var start = new kvm_sev_launch_start
            {
                handle = Rarely ? 77 : Rarely ? _model.Handle : 0,
                policy = policies[_random.Next(policies.Length)],
                dh_uaddr = Address(dh),
                dh_len = dh.Length,
                session_uaddr = Address(session),
                session_len = session.Length,
            };
            SevAnswer expected = refused ?? _model.LaunchStart(readable, fd, start.handle, start.policy, dh, session);
            SevReply<kvm_sev_launch_start> reply = Send(SevCmdId.KVM_SEV_LAUNCH_START, start, fd, readable);
            Check(SevCmdId.KVM_SEV_LAUNCH_START, expected, reply);
            if (reply.Report.Succeeded)
            {
                Assert.NotEqual(0u, reply.Data.handle);
                _model.Started(reply.Data.handle);
            }
        }

        private void Measure(SevAnswer? refused, bool fd, bool readable)
        {
            uint length = Rarely ? 0x4001u : Rarely ? 0 : Rarely ? 47u : 48;
            bool hasBuffer = Mostly, mapped = Mostly;
            var measure = new kvm_sev_launch_measure { uaddr = !hasBuffer ? 0 : mapped ? _buffer + 0x7000 : Unmapped, len = length };
            SevAnswer expected = refused ?? _model.Measure(readable, hasBuffer, mapped, ref length);
            SevReply<kvm_sev_launch_measure> reply = Send(SevCmdId.KVM_SEV_LAUNCH_MEASURE, measure, fd, readable);
            Check(SevCmdId.KVM_SEV_LAUNCH_MEASURE, expected, reply);
            if (readable)
            {
                Assert.True(reply.Data.len == length, $"{_name}, step {_step}: len {reply.Data.len}, the model says {length}");
            }
        }

        private void Secret(SevAnswer? refused, bool fd, bool readable)
        {
            Blob header = AnyBlob(52, always: true), body = AnyBlob(64, always: true);
            uint guestLength = Rarely ? 0 : Rarely ? 20u : 64;
            bool guestMapped = Mostly;
            uint headerFlags = Rarely ? 1u : 0;
            // Header and body are in the last two pages of the buffer, which are launched now and then: the flags are put there anew.
            _vmm.Store(_buffer + 0x6000, headerFlags);
            var secret = new kvm_sev_launch_secret
            {
                hdr_uaddr = header.Mapped ? Address(header) == 0 ? 0 : _buffer + 0x6000 : Address(header),
                hdr_len = header.Length,
                guest_uaddr = guestMapped ? _buffer : Unmapped,
                guest_len = guestLength,
                trans_uaddr = Address(body),
                trans_len = body.Length,
            };
            Check(
                SevCmdId.KVM_SEV_LAUNCH_SECRET, refused ?? _model.Secret(readable, guestLength, guestMapped, header, body, headerFlags),
                Send(SevCmdId.KVM_SEV_LAUNCH_SECRET, secret, fd, readable));
        }

        private void SnpUpdate(SevAnswer? refused, bool fd, bool readable)
        {
            byte[] types = [1, 1, 1, 3, 3, 4, 5, 6, 0, 2, 7];
            var type = (SnpPageType)types[_random.Next(types.Length)];
            int first = Rarely ? SevLaunchModel.Pages + 1 : _random.Next(SevLaunchModel.Pages), count = Rarely ? 0 : _random.Next(1, 6);
            int from = Rarely ? -1 : _random.Next(SourcePages);
            bool odd = Rarely, unaligned = from >= 0 && Rarely;
            uint flags = Rarely ? 2u : 0;
            var update = new kvm_sev_snp_launch_update
            {
                gfn_start = Gfn + (ulong)first,
                uaddr = from < 0 ? 0 : _source + ((ulong)from << 12) + (unaligned ? 16u : 0),
                len = ((ulong)count << 12) + (odd ? 8u : 0),
                type = (byte)type,
                flags = (ushort)flags,
            };
            SevAnswer expected;
            int done = 0;
            if (refused is { } already)
            {
                expected = already;
            }
            else
            {
                expected = _model.SnpUpdate(readable, fd, type, first, count, odd, flags, from, unaligned, SourcePages, out done);
            }
            SevReply<kvm_sev_snp_launch_update> reply = Send(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, update, fd, readable);
            Check(SevCmdId.KVM_SEV_SNP_LAUNCH_UPDATE, expected, reply);
            Assert.True(!readable || reply.Data.len == update.len - ((ulong)done << 12), $"{_name}, step {_step}: 0x{reply.Data.len:x} left of 0x{update.len:x} ({type}, page {first}, source {from}), the model did {done} pages");
        }

        private Blob AnyBlob(uint right, bool always = false) =>
            new(always ? Mostly : Rarely, Rarely ? 0 : Rarely ? 0x4001 : Rarely ? right - 1 : right, Mostly);

        private ulong Address(Blob blob) => !blob.Given ? 0 : blob.Mapped ? _source : Unmapped;

        private SevReply<T> Send<T>(SevCmdId id, T data, bool fd, bool readable)
            where T : unmanaged =>
            _vm.TrySev(id, data, fd ? null : BadFd, Sentinel, readable ? null : Unmapped);

        private void Check<T>(SevCmdId id, SevAnswer expected, SevReply<T> reply)
        {
            uint error = expected.Error ?? Sentinel;
            Assert.True(
                reply.Report.Errno == expected.Errno && reply.Error == error,
                $"{_name}, step {_step}: {id} answered {reply.Report.Errno} 0x{reply.Error:x}, the model says {expected.Errno} 0x{error:x}; {string.Join("; ", reply.Report.Causes)}");
            if (reply.Report.Succeeded)
            {
                Succeeded.Add(id);
            }
        }
    }
}
