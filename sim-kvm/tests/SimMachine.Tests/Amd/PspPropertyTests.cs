using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Measurement;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Amd;

/// <summary>
/// Random firmware commands and RMPUPDATEs on a handful of pages against a model that is the state machine of snp.md 10.1 written down: status, state of the
/// page, state and ASID of the guest, number of measured pages.
/// </summary>
public sealed class PspPropertyTests
{
    private const int Pages = 8;
    private const ulong Policy = 0x30000;

    public static TheoryData<int> Seeds => [1, 7, 49, 343, 2401, 16807];

    [Theory]
    [MemberData(nameof(Seeds))]
    public void RandomCommands_MatchTheModel(int seed)
    {
        // Two ASIDs, so that they run out and come back.
        using var machine = new Machine(new MachineConfig { MinSevAsid = 3 }, 1);
        var thread = new MachineThread(machine);
        var random = new Random(seed);
        var frames = new Pfn[Pages];
        for (int i = 0; i < Pages; i++)
        {
            Assert.True(machine.TryAllocateFrame(out frames[i]));
        }
        var model = new Model();
        var seen = new HashSet<(string, SevStatus)>();
        for (int step = 0; step < 12000; step++)
        {
            // Mostly what the command is for: a context where one is wanted, a page that can be launched.
            int kind = random.Next(step < 20 ? 9 : 10);
            int page = Pick(random, kind is >= 1 and <= 6 ? i => model.Guests[i] is not null : i => model.Guests[i] is null);
            int target = Pick(random, i => model.Rmp[i] == RmpPageState.PreGuest);
            uint asid = (uint)random.Next(4);
            string what;
            SevStatus expected;
            SevStatus actual;
            switch (kind)
            {
                case 0:
                    if (model.Guests.Count(guest => guest is not null) > 2)
                    {
                        // Leave pages for the guests that there are.
                        continue;
                    }
                    what = "GCTX_CREATE";
                    expected = model.Create(page);
                    actual = machine.Psp.SnpGctxCreate(thread, frames[page]);
                    break;
                case 1:
                    ulong policy = random.Next(5) == 0 ? Policy | 0xffff : Policy;
                    what = "START";
                    expected = model.Start(page, policy == Policy);
                    actual = machine.Psp.SnpLaunchStart(thread, frames[page], policy, new byte[16]);
                    break;
                case 2:
                    what = $"ACTIVATE {asid}";
                    expected = model.Activate(page, asid);
                    actual = machine.Psp.SnpActivate(thread, frames[page], asid);
                    break;
                case 3:
                    if (random.Next(4) != 0)
                    {
                        continue;
                    }
                    what = "FINISH";
                    expected = model.Finish(page);
                    actual = machine.Psp.SnpLaunchFinish(thread, frames[page], [], [], false, false, new byte[32]);
                    break;
                case 4:
                    // The host takes the pages of a guest back before it forgets the guest.
                    if (random.Next(3) != 0 || model.OwnsPages(page))
                    {
                        continue;
                    }
                    what = "DECOMMISSION";
                    expected = model.Decommission(page);
                    actual = machine.Psp.SnpDecommission(thread, frames[page]);
                    break;
                case 5:
                    if (random.Next(20) != 0)
                    {
                        continue;
                    }
                    what = "DF_FLUSH";
                    expected = model.Flush();
                    actual = machine.Psp.SnpDfFlush(thread);
                    break;
                case 6:
                    what = $"UPDATE with {target}";
                    expected = model.Update(page, target);
                    actual = machine.Psp.SnpLaunchUpdate(thread, frames[page], frames[target], PageLevel.Page4K, SnpPageType.ZERO);
                    break;
                case 7:
                    if (model.Rmp[page] == RmpPageState.Context)
                    {
                        continue;
                    }
                    what = "RECLAIM";
                    expected = model.Reclaim(page);
                    actual = machine.Psp.SnpPageReclaim(thread, frames[page], PageLevel.Page4K);
                    break;
                case 8:
                    RmpPageState wanted = random.Next(3) switch { 0 => RmpPageState.Hypervisor, 1 => RmpPageState.Firmware, _ => RmpPageState.PreGuest };
                    uint owner = wanted == RmpPageState.PreGuest ? (uint)random.Next(1, 3) : 0;
                    if (owner != 0 && !model.IsActive(owner))
                    {
                        // Pages are given to an ASID that a guest has; what ACTIVATE says of others is a test of its own.
                        continue;
                    }
                    what = $"RMPUPDATE to {wanted}";
                    bool done = model.RmpUpdate(page, wanted, owner);
                    RmpState state = wanted == RmpPageState.Hypervisor
                        ? RmpState.Shared(PageLevel.Page4K)
                        : new RmpState(true, PageLevel.Page4K, true, owner, owner == 0 ? 0 : 0x8000UL);
                    expected = SevStatus.SUCCESS;
                    Assert.True(
                        machine.Rmp.Update(thread, frames[page], state) == (done ? RmpResult.OK : RmpResult.FAIL_PERMISSION), $"seed {seed}, step {step}: {what}");
                    actual = expected;
                    break;
                default:
                    what = "INIT";
                    expected = model.Init();
                    actual = machine.Psp.SnpInit(thread);
                    break;
            }
            string where = $"seed {seed}, step {step}, {what} of page {page}";
            Assert.True(expected == actual, $"{where}: model {expected}, firmware {actual}");
            seen.Add((what.Split(' ')[0], actual));
            for (int i = 0; i < Pages; i++)
            {
                Assert.True(machine.Rmp.Entry(frames[i]).State == model.Rmp[i], $"{where}: page {i} is {machine.Rmp.Entry(frames[i]).State}, in the model {model.Rmp[i]}");
                SnpGuestStatus? guest = machine.Psp.GuestStatus(frames[i]);
                Assert.True((guest is null) == (model.Guests[i] is null), $"{where}: guest {i}");
                if (guest is not null)
                {
                    Assert.True((guest.State, guest.Asid, guest.Transcript.Count) == model.Guests[i], $"{where}: guest {i} is {guest}, in the model {model.Guests[i]}");
                }
            }
        }
        machine.Rmp.CheckInvariants();
        Assert.Empty(machine.Findings.All);
        // The walk came to the rare places, too.
        Assert.Contains(("UPDATE", SevStatus.SUCCESS), seen);
        Assert.Contains(("UPDATE", SevStatus.INVALID_PAGE_OWNER), seen);
        Assert.Contains(("ACTIVATE", SevStatus.DFFLUSH_REQUIRED), seen);
        Assert.Contains(("ACTIVATE", SevStatus.ASID_OWNED), seen);
        Assert.Contains(("FINISH", SevStatus.SUCCESS), seen);
    }

    private static int Pick(Random random, Func<int, bool> preferred)
    {
        int[] candidates = [.. Enumerable.Range(0, Pages).Where(preferred)];
        return candidates.Length == 0 || random.Next(4) == 0 ? random.Next(Pages) : candidates[random.Next(candidates.Length)];
    }

    private sealed class Model
    {
        private readonly HashSet<uint> _toFlush = [];
        private readonly uint[] _owner = new uint[Pages];
        private bool _initialised;

        public RmpPageState[] Rmp { get; } = new RmpPageState[Pages];

        public (GuestContextState State, uint Asid, long Measured)?[] Guests { get; } = new (GuestContextState, uint, long)?[Pages];

        public bool IsActive(uint asid) => Guests.Any(guest => guest?.Asid == asid);

        public bool OwnsPages(int page) => Guests[page] is { Asid: not 0 } guest && _owner.Contains(guest.Asid);

        public SevStatus Init()
        {
            _initialised = true;
            return SevStatus.SUCCESS;
        }

        public SevStatus Create(int page)
        {
            if (!_initialised || Rmp[page] != RmpPageState.Firmware)
            {
                return _initialised ? SevStatus.INVALID_PAGE_STATE : SevStatus.INVALID_PLATFORM_STATE;
            }
            Rmp[page] = RmpPageState.Context;
            Guests[page] = (GuestContextState.Init, 0, 0);
            return SevStatus.SUCCESS;
        }

        public SevStatus Start(int page, bool goodPolicy)
        {
            SevStatus status = Enter(page, GuestContextState.Init);
            if (status == SevStatus.SUCCESS && goodPolicy)
            {
                Guests[page] = (GuestContextState.Launch, 0, 0);
            }
            return status == SevStatus.SUCCESS && !goodPolicy ? SevStatus.POLICY_FAILURE : status;
        }

        public SevStatus Activate(int page, uint asid)
        {
            SevStatus status = Enter(page, GuestContextState.Launch, GuestContextState.Running);
            if (status != SevStatus.SUCCESS)
            {
                return status;
            }
            (GuestContextState state, uint has, long measured) = Guests[page]!.Value;
            if (has != 0)
            {
                return SevStatus.ACTIVE;
            }
            if (asid is 0 or >= 3)
            {
                return SevStatus.INVALID_ASID;
            }
            if (IsActive(asid))
            {
                return SevStatus.ASID_OWNED;
            }
            if (_toFlush.Contains(asid))
            {
                return SevStatus.DFFLUSH_REQUIRED;
            }
            Guests[page] = (state, asid, measured);
            return SevStatus.SUCCESS;
        }

        public SevStatus Finish(int page)
        {
            SevStatus status = Enter(page, GuestContextState.Launch);
            if (status == SevStatus.SUCCESS)
            {
                Guests[page] = Guests[page]!.Value with { State = GuestContextState.Running };
            }
            return status;
        }

        public SevStatus Decommission(int page)
        {
            SevStatus status = Enter(page, GuestContextState.Init, GuestContextState.Launch, GuestContextState.Running);
            if (status == SevStatus.SUCCESS)
            {
                if (Guests[page]!.Value.Asid is var asid and not 0)
                {
                    _toFlush.Add(asid);
                }
                Guests[page] = null;
                Rmp[page] = RmpPageState.Firmware;
            }
            return status;
        }

        public SevStatus Flush()
        {
            if (!_initialised)
            {
                return SevStatus.INVALID_PLATFORM_STATE;
            }
            _toFlush.Clear();
            return SevStatus.SUCCESS;
        }

        public SevStatus Update(int page, int target)
        {
            SevStatus status = Enter(page, GuestContextState.Launch);
            if (status != SevStatus.SUCCESS)
            {
                return status;
            }
            (GuestContextState state, uint asid, long measured) = Guests[page]!.Value;
            if (asid == 0)
            {
                return SevStatus.INACTIVE;
            }
            if (Rmp[target] != RmpPageState.PreGuest)
            {
                return SevStatus.INVALID_PAGE_STATE;
            }
            if (_owner[target] != asid)
            {
                return SevStatus.INVALID_PAGE_OWNER;
            }
            Rmp[target] = RmpPageState.GuestValid;
            Guests[page] = (state, asid, measured + 1);
            return SevStatus.SUCCESS;
        }

        public SevStatus Reclaim(int page)
        {
            if (!_initialised)
            {
                return SevStatus.INVALID_PLATFORM_STATE;
            }
            if (Rmp[page] is not (RmpPageState.PreGuest or RmpPageState.Firmware))
            {
                return SevStatus.INVALID_PAGE_STATE;
            }
            Rmp[page] = RmpPageState.Reclaim;
            _owner[page] = 0;
            return SevStatus.SUCCESS;
        }

        public bool RmpUpdate(int page, RmpPageState wanted, uint owner)
        {
            if (Rmp[page] is RmpPageState.Firmware or RmpPageState.Context or RmpPageState.PreGuest)
            {
                return false;
            }
            Rmp[page] = wanted;
            _owner[page] = owner;
            return true;
        }

        private SevStatus Enter(int page, params GuestContextState[] states)
        {
            if (!_initialised)
            {
                return SevStatus.INVALID_PLATFORM_STATE;
            }
            if (Guests[page] is not { } guest)
            {
                return SevStatus.INVALID_GUEST;
            }
            return states.Contains(guest.State) ? SevStatus.SUCCESS : SevStatus.INVALID_GUEST_STATE;
        }
    }
}
