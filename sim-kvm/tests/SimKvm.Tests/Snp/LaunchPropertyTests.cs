using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimMachine.Amd;
using SimMachine.Measurement;
using Xunit;

namespace SimKvm.Tests;

/// <summary>
/// Random launches against a model that keeps three bits a page (private, assigned, uptodate) and its own digest: progress, errno, error, digest, RMP and frames
/// agree after each call.
/// </summary>
public sealed class LaunchPropertyTests : KvmTest
{
    private const ulong Gfn = 0x100;
    private const int Pages = 16;

    public static TheoryData<string, int> ProfilesAndSeeds
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (int seed in new[] { 3, 14, 15, 92, 65, 35 })
            {
                data.Add(K616, seed);
                data.Add(K72, seed);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(ProfilesAndSeeds))]
    public void RandomLaunch_MatchesTheModel(string profile, int seed)
    {
        TestHost host = Boot(profile);
        var random = new Random(seed);
        TestVm vm = host.Vmm.CreateVm(VmType.KVM_X86_SNP_VM);
        vm.Init2();
        int gmem = vm.CreateGmem(Pages);
        vm.AddGmemSlot(0, Gfn << 12, Pages, gmem);
        vm.Start();
        // The source's last four pages of 12 are missing.
        ulong source = host.Vmm.MapFilled(8, 0x30);
        var model = new Model(profile);
        long frames = host.Machine.AllocatedPages;

        for (int step = 0; step < 400; step++)
        {
            string where = $"seed {seed}, profile {profile}, step {step}";
            int start = random.Next(Pages);
            int count = random.Next(1, 8);
            switch (random.Next(6))
            {
                case 0 or 1:
                    bool makePrivate = random.Next(4) != 0;
                    count = Math.Min(count, Pages - start);
                    Assert.True(vm.TrySetAttributes((Gfn + (ulong)start) << 12, (ulong)count << 12, makePrivate ? TestVm.Private : 0).Succeeded, where);
                    model.SetPrivate(start, count, makePrivate);
                    break;
                case 2:
                    Assert.True(host.Vmm.Process.Fallocate(gmem, 3, start << 12, count << 12).Succeeded, where);
                    model.Punch(start, count);
                    break;
                default:
                    int from = random.Next(10) == 0 ? -1 : random.Next(8);
                    SnpPageType type = random.Next(4) switch { 0 => SnpPageType.ZERO, 1 => SnpPageType.UNMEASURED, 2 => SnpPageType.SECRETS, _ => SnpPageType.NORMAL };
                    SevReply<kvm_sev_snp_launch_update> reply = vm.TryUpdate(
                        type, (Gfn + (ulong)start) << 12, from < 0 ? 0 : source + ((ulong)from << 12), (ulong)count, error: 77);
                    int done = model.Update(type, start, count, from);
                    Assert.True(reply.Report.Errno == (done == 0 ? Errno.EIO : Errno.OK), $"{where}: {reply.Report.Errno}, the model did {done} pages");
                    Assert.True(reply.Error == (done == 0 ? 0u : 77u), where);
                    Assert.True(reply.Data.len == (ulong)(count - done) << 12, $"{where}: 0x{reply.Data.len:x} left of {count} pages, the model did {done}");
                    break;
            }
            Assert.True(vm.Digest == model.Digest, $"{where}: digest");
            Assert.True(vm.Measured == model.Measured, where);
            string owned = string.Join(',', vm.Describe().Rmp.SelectMany(run => Enumerable.Range(0, (int)(run.Size >> 12)).Select(i => (run.Gpa >> 12) + (ulong)i - Gfn)));
            Assert.True(owned == model.Assigned, $"{where}: RMP {owned}, model {model.Assigned}");
            Assert.True(vm.Describe().Rmp.All(run => run.State == RmpPageState.GuestValid), where);
            Assert.True(host.Machine.AllocatedPages == frames + model.Present, $"{where}: frames");
            for (int i = 0; i < Pages; i++)
            {
                bool present = host.Vmm.Gmem(gmem).Inode.TryGet((ulong)i, out Folio folio);
                Assert.True((present, folio.Uptodate) == model.Folio(i), $"{where}: folio {i}");
            }
        }
        Assert.Empty(host.Machine.Findings.All);
    }

    private sealed class Model(string profile)
    {
        private readonly bool[] _private = new bool[Pages];
        private readonly bool[] _present = new bool[Pages];
        private readonly bool[] _launched = new bool[Pages];
        private readonly SnpLaunchDigest _digest = new();

        public int Measured { get; private set; }

        public string Digest => Convert.ToHexStringLower(_digest.Current);

        public string Assigned => string.Join(',', Enumerable.Range(0, Pages).Where(i => _launched[i]));

        public int Present => _present.Count(present => present);

        public (bool, bool) Folio(int page) => (_present[page], _launched[page]);

        public void SetPrivate(int start, int count, bool value) => Array.Fill(_private, value, start, count);

        public void Punch(int start, int count)
        {
            for (int i = start; i < Math.Min(Pages, start + count); i++)
            {
                _present[i] = _launched[i] = false;
            }
        }

        public int Update(SnpPageType type, int start, int count, int from)
        {
            bool hasSource = from >= 0 && type != SnpPageType.ZERO;
            int done = 0;
            while (done < count && start + done < Pages)
            {
                int page = start + done;
                bool mapped = from + done < 8;
                if (profile == K72 && hasSource && !mapped)
                {
                    break;
                }
                // The page is made before anything about it is checked.
                _present[page] = true;
                if (!_private[page] || _launched[page] || (type != SnpPageType.ZERO && !hasSource) || (hasSource && !mapped))
                {
                    break;
                }
                _launched[page] = true;
                byte[] hash = new byte[48];
                SnpLaunchDigest.ContentHash(type, hasSource ? Vmm.Content((byte)(0x30 + from + done)) : new byte[4096], hash);
                _digest.Extend(type, (Gfn + (ulong)page) << 12, hash);
                Measured++;
                done++;
            }
            return done;
        }
    }
}
