using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Arm;

/// <summary>To whom the hypervisor says a page belongs (enum pkvm_page_state, of the host's and the guest's stage 2 together).</summary>
public enum PageOwnership
{
    /// <summary>The host's, and nobody else's. Every page begins so.</summary>
    HostOwned,

    /// <summary>A guest's: the host has no mapping of it.</summary>
    GuestOwned,

    /// <summary>A guest's that it lets the host use.</summary>
    SharedByGuest,
}

/// <summary>What a hypercall to EL2 answers: 0 or a negative errno of the hypervisor, here its name.</summary>
public enum El2Result
{
    OK,

    /// <summary>The page is not in the state that the transition starts from.</summary>
    EPERM,

    /// <summary>The guest has no page there.</summary>
    ENOENT,
}

/// <summary>
/// The hypervisor of protected KVM at EL2: who owns each page, enforced by the host's own stage 2 (arch/arm64/kvm/hyp/nvhe/mem_protect.c). The host gives a page to a guest and
/// takes it back when the guest is gone; in between only the guest decides whether the host may look.
/// </summary>
/// <remarks>
/// <code>
///                    donate (host)                     share (guest)
///   HostOwned ───────────────────────▶ GuestOwned ────────────────────▶ SharedByGuest
///       ▲                                 │   ▲                              │
///       │      reclaim, wiped (dying)     │   └──────── unshare (guest) ─────┤
///       └─────────────────────────────────┴──────────── reclaim, not wiped ──┘
/// </code>
/// Invariant: a page that a guest owns stands at one guest address of one guest, and that address has no other page.
/// </remarks>
public sealed class El2
{
    private static readonly StepLabel DonateStep = new("el2 host donate guest");
    private static readonly StepLabel ShareStep = new("el2 guest share host");
    private static readonly StepLabel UnshareStep = new("el2 guest unshare host");
    private static readonly StepLabel ReclaimStep = new("el2 reclaim dying guest page");

    public static readonly Rule NotHostOwned = new(
        "el2.donate.not-host-owned", "the host gives away a page that is not its own", "__pkvm_host_donate_guest", "give each page to one guest once", "pfn", "state#");

    public static readonly Rule AddressTaken = new(
        "el2.donate.address-taken", "the guest has a page at the address", "__pkvm_host_donate_guest", "nothing is to be done: the guest uses that page", "ipa");

    public static readonly Rule NoPage = new(
        "el2.guest.no-page", "the guest has no page at the address", "get_valid_guest_pte", "the guest touches the page first; KVM does it for the guest when it shares", "ipa");

    public static readonly Rule WrongState = new(
        "el2.guest.state", "the guest shares a page that it shares already, or takes back one that it does not share", "__pkvm_guest_share_host, __pkvm_guest_unshare_host",
        "share a page once, and unshare it once", "ipa", "state#");

    private readonly Machine _machine;
    private readonly PageTree<byte> _states = new();

    // (guest, ipa page) to frame, in order.
    private readonly SortedDictionary<(uint Guest, ulong Ipa), Pfn> _guestPages = [];

    internal El2(Machine machine) => _machine = machine;

    /// <summary>See <see cref="Machine.SharedState"/>.</summary>
    internal IEnumerable<object> SharedState => [this, _guestPages];

    /// <summary>Who owns a frame.</summary>
    public PageOwnership StateOf(Pfn pfn)
    {
        _machine.Reading(this, pfn.Value, pfn.Value + 1);
        return (PageOwnership)_states[pfn.Value];
    }

    /// <summary>The host's stage 2 maps the frame: loads and stores of the host pass.</summary>
    public bool HostMayAccess(Pfn pfn) => StateOf(pfn) != PageOwnership.GuestOwned;

    /// <summary>__pkvm_host_donate_guest: the page is the guest's, at one of its addresses.</summary>
    public El2Result Donate(SimThread thread, uint guest, Gfn ipa, Pfn pfn)
    {
        thread.Step(DonateStep, ipa.Value, pfn.Value);
        if (StateOf(pfn) != PageOwnership.HostOwned)
        {
            return Fail(thread, El2Result.EPERM, NotHostOwned, pfn.Value, (ulong)StateOf(pfn));
        }
        if (TryGetGuestPage(guest, ipa, out _))
        {
            return Fail(thread, El2Result.EPERM, AddressTaken, ipa.ToGpa().Value);
        }
        _machine.Writing(_guestPages, ipa.Value, ipa.Value + 1);
        _guestPages.Add((guest, ipa.Value), pfn);
        Set(pfn, PageOwnership.GuestOwned);
        return El2Result.OK;
    }

    /// <summary>__pkvm_guest_share_host, from the guest's hypercall.</summary>
    public El2Result Share(SimThread thread, uint guest, Gfn ipa)
    {
        thread.Step(ShareStep, ipa.Value);
        return Change(thread, guest, ipa, PageOwnership.GuestOwned, PageOwnership.SharedByGuest);
    }

    /// <summary>__pkvm_guest_unshare_host: the host has to leave it again. The content stays.</summary>
    public El2Result Unshare(SimThread thread, uint guest, Gfn ipa)
    {
        thread.Step(UnshareStep, ipa.Value);
        return Change(thread, guest, ipa, PageOwnership.SharedByGuest, PageOwnership.GuestOwned);
    }

    /// <summary>__pkvm_reclaim_dying_guest_page for every page of a guest: what it had for itself is cleared first, what it shared the host has seen anyway.</summary>
    /// <returns>The frames, which are the host's again, in the order of guest addresses.</returns>
    public IReadOnlyList<Pfn> ReclaimAll(SimThread thread, uint guest)
    {
        _machine.Reading(_guestPages);
        (uint, ulong)[] addresses = [.. _guestPages.Keys.Where(key => key.Guest == guest)];
        var frames = new List<Pfn>(addresses.Length);
        foreach ((uint, ulong Ipa) address in addresses)
        {
            _machine.Writing(_guestPages, address.Ipa, address.Ipa + 1);
            _guestPages.Remove(address, out Pfn pfn);
            thread.Step(ReclaimStep, address.Ipa, pfn.Value);
            if (StateOf(pfn) == PageOwnership.GuestOwned)
            {
                _machine.Memory.Zero(pfn, Machine.HostKey);
            }
            Set(pfn, PageOwnership.HostOwned);
            frames.Add(pfn);
        }
        return frames;
    }

    /// <summary>The page that a guest has at an address.</summary>
    public bool TryGetGuestPage(uint guest, Gfn ipa, out Pfn pfn)
    {
        // Of every guest: two that have a page at the same address are rare.
        _machine.Reading(_guestPages, ipa.Value, ipa.Value + 1);
        return _guestPages.TryGetValue((guest, ipa.Value), out pfn);
    }

    private El2Result Change(SimThread thread, uint guest, Gfn ipa, PageOwnership from, PageOwnership to)
    {
        if (!TryGetGuestPage(guest, ipa, out Pfn pfn))
        {
            return Fail(thread, El2Result.ENOENT, NoPage, ipa.ToGpa().Value);
        }
        if (StateOf(pfn) != from)
        {
            return Fail(thread, El2Result.EPERM, WrongState, ipa.ToGpa().Value, (ulong)StateOf(pfn));
        }
        Set(pfn, to);
        return El2Result.OK;
    }

    private void Set(Pfn pfn, PageOwnership state)
    {
        _machine.Writing(this, pfn.Value, pfn.Value + 1);
        _states.Set(pfn.Value, (byte)state);
    }

    private static El2Result Fail(SimThread thread, El2Result result, Rule rule, params ReadOnlySpan<ulong> operands)
    {
        thread.Refuse(rule, result.ToString(), operands);
        return result;
    }
}
