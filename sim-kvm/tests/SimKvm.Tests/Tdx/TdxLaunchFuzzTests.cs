using SimKvm.Tests.Support;
using Xunit;

namespace SimKvm.Tests.Tdx;

/// <summary>
/// Random orders of all TDX commands, with right and wrong arguments in every state, against a second model of the state machine: both agree on every answer and on MRTD, and the
/// host is whole after each call.
/// </summary>
public sealed class TdxLaunchFuzzTests : KvmTest
{
    private const int Calls = 120;

    public static TheoryData<string, int> Seeds
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (string profile in new[] { "K616", "K618", "K619", "K70", "K72" })
            {
                for (int seed = 0; seed < 40; seed++)
                {
                    data.Add(profile, seed);
                }
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomLaunch_AgreesWithTheModel(string profile, int seed)
    {
        TestHost host = Boot(profile, TestVm.IntelMachine());
        host.Expect("vm-bugged");
        var dice = new Random(seed);
        var model = new TdxModel(host.Profile);
        var kernel = new TdxRun(host);
        var told = new List<string>();
        for (int call = 0; call < Calls; call++)
        {
            TdxOp op = TdxOp.Draw(dice, call, model.VcpuCount);
            if (!IsPossible(op, model))
            {
                continue;
            }
            told.Add(op.ToString());

            TdxAnswer expected = model.Do(op, place => kernel.Content(op, place));
            TdxAnswer actual = kernel.Do(op);

            Assert.True(Agree(op, expected, actual), $"{profile}, seed {seed}, call {told.Count}: expected {expected}, got {actual}\n{string.Join('\n', told)}");
            host.Host.CheckInvariants();
        }
        if (model.IsInitialized)
        {
            Assert.Equal(model.Mrtd, kernel.Mrtd);
        }
    }

    /// <summary>That both agree means something only if the draws come to all of these.</summary>
    [Theory]
    [InlineData("K616", Errno.EEXIST)]
    [InlineData("K619", Errno.EEXIST)]
    [InlineData("K72", Errno.EIO)]
    public void Draws_ReachEveryAnswer(string profile, Errno addedTwice)
    {
        var seen = new HashSet<(TdxDo, Errno)>();
        for (int seed = 0; seed < 40; seed++)
        {
            var dice = new Random(seed);
            var model = new TdxModel(SimKvm.Profiles.KernelProfiles.Find(profile)!);
            for (int call = 0; call < Calls; call++)
            {
                TdxOp op = TdxOp.Draw(dice, call, model.VcpuCount);
                if (IsPossible(op, model))
                {
                    seen.Add((op.Do, model.Do(op, _ => new byte[4096]).Errno));
                }
            }
        }
        (TdxDo, Errno)[] wanted =
        [
            (TdxDo.SplitIrqchip, Errno.OK), (TdxDo.SplitIrqchip, Errno.EEXIST), (TdxDo.Capabilities, Errno.OK), (TdxDo.Capabilities, Errno.E2BIG), (TdxDo.InitVm, Errno.OK),
            (TdxDo.InitVm, Errno.EINVAL), (TdxDo.CreateVcpu, Errno.OK), (TdxDo.CreateVcpu, Errno.EIO), (TdxDo.CreateVcpu, Errno.EEXIST), (TdxDo.CreateVcpu, Errno.EINVAL),
            (TdxDo.InitVcpu, Errno.OK), (TdxDo.InitVcpu, Errno.EINVAL), (TdxDo.InitMemRegion, Errno.OK), (TdxDo.InitMemRegion, Errno.EINVAL), (TdxDo.InitMemRegion, Errno.EFAULT),
            (TdxDo.InitMemRegion, addedTwice), (TdxDo.FinalizeVm, Errno.OK), (TdxDo.FinalizeVm, Errno.EINVAL), (TdxDo.FinalizeVm, Errno.EIO), (TdxDo.GetCpuid, Errno.OK),
            (TdxDo.PreFault, Errno.OK), (TdxDo.PreFault, Errno.EOPNOTSUPP), (TdxDo.PreFault, Errno.ENOENT), (TdxDo.GuestAccept, Errno.OK), (TdxDo.GuestAccept, Errno.EFAULT),
            (TdxDo.GuestAccept, Errno.EINVAL), (TdxDo.GuestRead, Errno.OK), (TdxDo.GuestRead, Errno.EIO),
        ];
        Assert.Empty(wanted.Except(seen));
    }

    private static bool IsPossible(TdxOp op, TdxModel model)
    {
        bool needsVcpu = op.Do is >= TdxDo.SetCpuid and not TdxDo.FinalizeVm and not TdxDo.SetAttribute and not TdxDo.PunchHole;
        return (!needsVcpu || op.Vcpu < model.VcpuCount) && (op.Do != TdxDo.PunchHole || op.Page < TdxModel.PagesWithSlot);
    }

    // hw_error comes back from commands of the VM fd that were run; what is left of a region, from where pages were added.
    private static bool Agree(TdxOp op, TdxAnswer expected, TdxAnswer actual)
    {
        bool tellsHwError = op.Do is TdxDo.InitVm or TdxDo.FinalizeVm && expected.Errno != Errno.EFAULT;
        return expected.Errno == actual.Errno
            && (!tellsHwError || (op.HwError != 0 ? actual.HwError == op.HwError : expected.HwError == actual.HwError))
            && (expected.Left is null || expected.Left == actual.Left)
            && expected.Rax == actual.Rax;
    }
}
