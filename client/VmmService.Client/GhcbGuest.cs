using System.Buffers.Binary;
using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>Steps of SEV-ES and SNP guests that need the hypervisor: the GHCB MSR protocol, events by a GHCB, messages to firmware. Next door: <see cref="Guest"/>.</summary>
public static class GhcbGuest
{
    private const ulong GfnMask = 0xff_ffff_ffff;

    /// <summary>PVALIDATE: takes a private page as the guest's own, or gives it up.</summary>
    public static GuestStep Pvalidate(ulong gpa, bool validate = true, bool large = false) =>
        new() { Pvalidate = new GuestPvalidate { Gpa = gpa, Validate = validate, Large = large } };

    /// <summary>RMPADJUST: gives a less privileged VMPL rights to a page (bit 0 read, 1 write, 2 execute-user, 3 execute-supervisor), or makes the page a VMSA.</summary>
    public static GuestStep Rmpadjust(ulong gpa, uint targetVmpl, uint permissions, bool vmsa = false, bool large = false) =>
        new() { Rmpadjust = new GuestRmpadjust { Gpa = gpa, TargetVmpl = targetVmpl, Permissions = permissions, Vmsa = vmsa, Large = large } };

    /// <summary>VMGEXIT with the GHCB MSR set; rax of the result is the MSR afterwards.</summary>
    public static GuestStep Vmgexit(ulong ghcbMsr) => new() { Vmgexit = new GuestVmgexit { GhcbMsr = ghcbMsr } };

    /// <summary>Versions of the protocol and the position of the C-bit: answer bits 63:48 newest, 47:32 oldest, 31:24 C-bit.</summary>
    public static GuestStep SevInfo() => Vmgexit(0x002);

    /// <summary>CPUID: one register (0 EAX to 3 EDX) of a function; answer bits 63:32.</summary>
    public static GuestStep Cpuid(uint function, uint register) => Vmgexit(((ulong)function << 32) | ((ulong)(register & 3) << 30) | 0x004);

    /// <summary>Where the hypervisor would like the GHCB; KVM does not mind.</summary>
    public static GuestStep PreferredGhcb() => Vmgexit(0x010);

    /// <summary>Registers a GHCB, which SNP guests must before they use it.</summary>
    public static GuestStep RegisterGhcb(ulong gpa) => Vmgexit((gpa & ~0xfffUL) | 0x012);

    /// <summary>Asks for one page to become private or shared, by the MSR.</summary>
    public static GuestStep PageState(ulong gpa, bool isPrivate) => Vmgexit((((gpa >> 12) & GfnMask) << 12) | ((isPrivate ? 1UL : 2UL) << 52) | 0x014);

    /// <summary>What the hypervisor can: answer bit 12 SNP, 13 AP creation.</summary>
    public static GuestStep HypervisorFeatures() => Vmgexit(0x080);

    /// <summary>Asks to be terminated: KVM_EXIT_SYSTEM_EVENT with SEV_TERM.</summary>
    public static GuestStep Terminate(uint reasonSet, uint reason) => Vmgexit(((ulong)(reason & 0xff) << 16) | ((ulong)(reasonSet & 0xf) << 12) | 0x100);

    /// <summary>An event by a GHCB; registers and buffer can be set in the message.</summary>
    public static GuestStep Call(GuestGhcbCall call) => new() { GhcbCall = call };

    /// <summary>Page state changes by a GHCB.</summary>
    /// <param name="ghcbGpa">A registered GHCB.</param>
    /// <param name="entries">The pages, in the order in which they are asked for.</param>
    /// <param name="validate">PVALIDATE as well, as a guest has to.</param>
    public static GuestStep PageStates(ulong ghcbGpa, IEnumerable<PageStateEntry> entries, bool validate = true)
    {
        var change = new GuestPageStateChange { GhcbGpa = ghcbGpa, Validate = validate };
        change.Entries.AddRange(entries);
        return new GuestStep { PageStateChange = change };
    }

    /// <summary>The same for a range in pages of 4 KiB.</summary>
    public static GuestStep PageStates(ulong ghcbGpa, ulong gpa, ulong pages, bool isPrivate, bool validate = true)
    {
        var entries = new PageStateEntry[pages];
        for (ulong i = 0; i < pages; i++)
            entries[i] = new PageStateEntry { Gfn = (gpa >> 12) + i, Operation = isPrivate ? 1u : 2u };

        return PageStates(ghcbGpa, entries, validate);
    }

    /// <summary>A message to firmware.</summary>
    public static GuestStep Request(GuestSnpRequest request) => new() { SnpRequest = request };

    /// <summary>Payload of MSG_REPORT_REQ (type 5).</summary>
    /// <param name="reportData">At most 64 bytes.</param>
    /// <param name="vmpl">0 to 3.</param>
    /// <param name="keySelection">0 the VLEK where one is loaded, 1 the VCEK, 2 the VLEK.</param>
    public static ByteString ReportRequest(ReadOnlySpan<byte> reportData, uint vmpl = 0, uint keySelection = 0)
    {
        byte[] payload = new byte[96];
        reportData.CopyTo(payload.AsSpan(0, 64));
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(0x40), vmpl);
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(0x44), keySelection);
        return ByteString.CopyFrom(payload);
    }

    /// <summary>Payload of MSG_KEY_REQ (type 3).</summary>
    /// <param name="fields">GUEST_FIELD_SELECT: bit 0 policy, 1 image id, 2 family id, 3 measurement, 4 guest SVN, 5 TCB version.</param>
    /// <param name="vmpl">0 to 3.</param>
    /// <param name="fromVmrk">The root is the VM's, not the chip's.</param>
    public static ByteString KeyRequest(ulong fields, uint vmpl = 0, bool fromVmrk = false)
    {
        byte[] payload = new byte[32];
        BinaryPrimitives.WriteUInt32LittleEndian(payload, fromVmrk ? 1u : 0);
        BinaryPrimitives.WriteUInt64LittleEndian(payload.AsSpan(8), fields);
        BinaryPrimitives.WriteUInt32LittleEndian(payload.AsSpan(16), vmpl);
        return ByteString.CopyFrom(payload);
    }
}
