using System.Buffers.Binary;
using System.Security.Cryptography;
using SimMachine.Addressing;
using SimMachine.Amd.Legacy;
using SimMachine.Stepping;

namespace SimMachine.Amd;

// SEV and SEV-ES (SEV API): guests known by handle, memory encrypted where it is. Order of checks where the manual does not say: see not-modelled.md.
public sealed partial class Psp
{
    private const int MeasurementSize = SevSession.MacSize + SevSession.KeySize;
    private const int SevBlock = 16;

    private const int PdhScalarSize = 48;

    public static readonly Rule NoSuchHandle = new(
        "psp.sev.handle", "there is no guest of that handle", "55766, chapter 6", "use the handle that LAUNCH_START gave", "handle#");

    public static readonly Rule WrongSevState = new(
        "psp.sev.state", "the guest is in a state that does not take this command", "55766, chapter 6",
        "the order is LAUNCH_START, LAUNCH_UPDATE_DATA, LAUNCH_UPDATE_VMSA, LAUNCH_MEASURE, LAUNCH_SECRET, LAUNCH_FINISH", "command", "state#");

    public static readonly Rule SevPolicyTooNew = new(
        "psp.sev.policy-version", "the policy asks for a firmware newer than this, or has reserved bits", "55766, LAUNCH_START", "lower API_MAJOR and API_MINOR in the policy", "policy");

    public static readonly Rule KeySharingForbidden = new(
        "psp.sev.no-key-sharing", "the policy of the guest whose key is asked for forbids sharing it", "55766, LAUNCH_START: NOKS", "launch with handle 0", "handle#", "policy");

    public static readonly Rule BadDhCertificate = new(
        "psp.sev.dh-certificate", "the guest owner's certificate has no P-384 Diffie-Hellman key", "55766, LAUNCH_START", "give a SEV certificate of 2084 bytes", "length#");

    public static readonly Rule BadSession = new(
        "psp.sev.session", "a MAC of the session is wrong: it was made for another platform, key or policy", "55766, LAUNCH_START", "make the session for this platform's PDH and this policy", "length#");

    public static readonly Rule UnalignedUpdate = new(
        "psp.sev.alignment", "address and length must be multiples of 16", "55766, LAUNCH_UPDATE_DATA", "align both to 16", "address", "length");

    public static readonly Rule NotSevEs = new("psp.sev.no-es", "the policy does not have the ES bit", "55766, LAUNCH_UPDATE_VMSA", "launch with policy bit 2", "policy");

    public static readonly Rule AsidOfAnotherPolicy = new(
        "psp.sev.asid", "the ASID does not go with the policy: guests with the ES bit use those below min_sev_asid, others those from there to max_asid", "55766, ACTIVATE",
        "set policy bit 2 on a SEV-ES VM, and on no other", "asid#", "min_sev_asid#", "policy");

    public static readonly Rule MeasureLength = new(
        "psp.sev.measure-length", "the buffer is too small; its size comes back", "55766, LAUNCH_MEASURE", "give 48 bytes", "length#", "needed#");

    public static readonly Rule BadSecret = new(
        "psp.sev.secret", "the packet's MAC is wrong, it is compressed, or its sizes do not fit", "55766, LAUNCH_SECRET",
        "make the packet with this launch's TIK, TEK and MEASURE; header 52 bytes, body a multiple of 16", "flags", "guest_length#", "length#");

    public static readonly Rule DebugForbidden = new("psp.sev.nodbg", "the policy forbids debugging", "55766, DBG_DECRYPT: NODBG", "launch without policy bit 0", "policy");

    private readonly SortedDictionary<uint, SevGuest> _sevGuests = [];
    private uint _lastHandle;

    /// <summary>The platform's Diffie-Hellman key: public point, 48 bytes each, big-endian. Derived from the machine's seed.</summary>
    public (byte[] X, byte[] Y) PdhPublicKey
    {
        get
        {
            ECPoint point = PdhPoint;
            return (point.X!, point.Y!);
        }
    }

    /// <summary>LAUNCH_START: a new guest, or one that shares another's key.</summary>
    /// <param name="handle">In: 0 for a key of its own, or the guest whose key to share. Out: the new guest.</param>
    /// <param name="dhCertificate">The guest owner's, 2084 bytes; empty without a session.</param>
    /// <param name="session">128 bytes; empty for keys that nobody outside knows.</param>
    public SevStatus LaunchStart(SimThread thread, ref uint handle, uint policy, ReadOnlySpan<byte> dhCertificate, ReadOnlySpan<byte> session) =>
        CreateGuest(thread, PspCommand.LAUNCH_START, SevGuestState.LAUNCH_UPDATE, ref handle, policy, dhCertificate, session);

    // LAUNCH_START and RECEIVE_START, which differ in what comes next.
    private SevStatus CreateGuest(
        SimThread thread, PspCommand command, SevGuestState state, ref uint handle, uint policy, ReadOnlySpan<byte> dhCertificate, ReadOnlySpan<byte> session)
    {
        thread.Step(CommandStep, (ulong)command, handle);
        if (!_initialised)
        {
            return thread.Fail(SevStatus.INVALID_PLATFORM_STATE, PlatformNotInitialised, (ulong)command);
        }
        MachineConfig config = _machine.Config;
        uint wanted = (((policy >> 16) & 0xff) << 8) | (policy >> 24);
        if (wanted > ((uint)config.ApiMajor << 8 | config.ApiMinor) || (policy & SevPolicy.Reserved) != 0)
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, SevPolicyTooNew, policy);
        }
        SevGuest? other = null;
        if (handle != 0)
        {
            if (!_sevGuests.TryGetValue(handle, out other))
            {
                return thread.Fail(SevStatus.INVALID_GUEST, NoSuchHandle, handle);
            }
            if ((other.Policy & SevPolicy.NOKS) != 0 || other.Policy != policy)
            {
                return thread.Fail(SevStatus.POLICY_FAILURE, KeySharingForbidden, handle, other.Policy);
            }
        }
        SevStatus status = SessionKeys(thread, policy, dhCertificate, session, out byte[] tek, out byte[] tik);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        handle = ++_lastHandle;
        _sevGuests.Add(handle, new SevGuest { Handle = handle, Policy = policy, Tek = tek, Tik = tik, KeyOwner = other, State = state });
        return SevStatus.SUCCESS;
    }

    /// <summary>ACTIVATE: binds an ASID to the guest.</summary>
    public SevStatus Activate(SimThread thread, uint handle, uint asid)
    {
        SevStatus status = EnterSev(thread, PspCommand.ACTIVATE, handle, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.Asid != 0)
        {
            return thread.Fail(SevStatus.ACTIVE, AlreadyActive, guest.Asid);
        }
        bool es = (guest.Policy & SevPolicy.ES) != 0;
        if (asid == 0 || asid > _machine.Config.MaxAsid || es != (asid < _machine.Config.MinSevAsid))
        {
            return thread.Fail(SevStatus.INVALID_ASID, AsidOfAnotherPolicy, asid, _machine.Config.MinSevAsid, guest.Policy);
        }
        if (_asidOwners.ContainsKey(asid))
        {
            return thread.Fail(SevStatus.ASID_OWNED, AsidInUse, asid);
        }
        if (_asidsToFlush.Contains(asid))
        {
            return thread.Fail(SevStatus.DFFLUSH_REQUIRED, AsidNotFlushed, asid);
        }
        _asidOwners.Add(asid, handle);
        guest.Asid = asid;
        return SevStatus.SUCCESS;
    }

    /// <summary>DEACTIVATE and DECOMMISSION: the guest is forgotten, its ASID may be used again after a flush.</summary>
    public SevStatus Decommission(SimThread thread, uint handle)
    {
        SevStatus status = EnterSev(thread, PspCommand.DECOMMISSION, handle, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.Asid != 0)
        {
            _asidOwners.Remove(guest.Asid);
            _asidsToFlush.Add(guest.Asid);
        }
        _sevGuests.Remove(handle);
        guest.Dispose();
        return SevStatus.SUCCESS;
    }

    /// <summary>LAUNCH_UPDATE_DATA: measures memory and encrypts it where it is.</summary>
    /// <param name="page">The first frame; the others follow it.</param>
    /// <param name="offset">First byte in it.</param>
    /// <param name="length">Bytes.</param>
    public SevStatus LaunchUpdateData(SimThread thread, uint handle, Pfn page, int offset, ulong length) =>
        UpdateInPlace(thread, PspCommand.LAUNCH_UPDATE_DATA, handle, page, offset, length, requireEs: false);

    /// <summary>LAUNCH_UPDATE_VMSA: the same for the page of a vCPU's state.</summary>
    public SevStatus LaunchUpdateVmsa(SimThread thread, uint handle, Pfn page) =>
        UpdateInPlace(thread, PspCommand.LAUNCH_UPDATE_VMSA, handle, page, 0, PageSize.Bytes, requireEs: true);

    /// <summary>LAUNCH_MEASURE: MEASURE and MNONCE, 48 bytes. The first one ends the updates; later ones give the same.</summary>
    /// <param name="length">In: bytes of the buffer. Out, when it is too small: bytes needed.</param>
    public SevStatus LaunchMeasure(SimThread thread, uint handle, ref uint length, out byte[] measurement)
    {
        measurement = [];
        SevStatus status = EnterSev(thread, PspCommand.LAUNCH_MEASURE, handle, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State is not (SevGuestState.LAUNCH_UPDATE or SevGuestState.LAUNCH_SECRET))
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongSevState, (ulong)PspCommand.LAUNCH_MEASURE, (ulong)guest.State);
        }
        if (length < MeasurementSize)
        {
            uint given = length;
            length = MeasurementSize;
            return thread.Fail(SevStatus.INVALID_LEN, MeasureLength, given, MeasurementSize);
        }
        if (guest.Measurement is null)
        {
            byte[] nonce = new byte[SevSession.KeySize];
            _machine.Entropy.Draw("sev mnonce", nonce);
            guest.Freeze();
            MachineConfig config = _machine.Config;
            guest.Measurement = [.. SevSession.Measure(guest.Tik, (config.ApiMajor, config.ApiMinor, config.Build), guest.Policy, guest.Digest, nonce), .. nonce];
            guest.State = SevGuestState.LAUNCH_SECRET;
        }
        length = MeasurementSize;
        measurement = guest.Measurement;
        return SevStatus.SUCCESS;
    }

    /// <summary>LAUNCH_SECRET: decrypts a packet of the guest owner into guest memory.</summary>
    public SevStatus LaunchSecret(SimThread thread, uint handle, ReadOnlySpan<byte> header, ReadOnlySpan<byte> body, Pfn page, int offset, uint guestLength)
    {
        SevStatus status = EnterSev(thread, PspCommand.LAUNCH_UPDATE_SECRET, handle, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State != SevGuestState.LAUNCH_SECRET)
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongSevState, (ulong)PspCommand.LAUNCH_UPDATE_SECRET, (ulong)guest.State);
        }
        if (header.Length != SevSession.HeaderSize || guestLength == 0 || guestLength % SevBlock != 0 || body.Length != guestLength)
        {
            return thread.Fail(SevStatus.INVALID_LEN, BadSecret, 0, guestLength, (ulong)body.Length);
        }
        uint flags = BinaryPrimitives.ReadUInt32LittleEndian(header);
        if (flags != 0)
        {
            return thread.Fail(SevStatus.UNSUPPORTED, BadSecret, flags, guestLength, (ulong)body.Length);
        }
        if (!SevSession.TryOpenSecret(guest.Tek, guest.Tik, header, body, guestLength, guest.Measurement.AsSpan(0, SevSession.MacSize), out byte[] secret))
        {
            return thread.Fail(SevStatus.BAD_MEASUREMENT, BadSecret, flags, guestLength, (ulong)body.Length);
        }
        WriteGuestMemory(guest, page, offset, secret);
        return SevStatus.SUCCESS;
    }

    // Over the ends of pages, which follow each other.
    private void WriteGuestMemory(SevGuest guest, Pfn page, int offset, ReadOnlySpan<byte> content)
    {
        for (int done = 0; done < content.Length;)
        {
            int at = (offset + done) % PageSize.Bytes;
            int take = Math.Min(content.Length - done, PageSize.Bytes - at);
            _machine.Memory.Write(page + (ulong)((offset + done) / PageSize.Bytes), at, content.Slice(done, take), guest.Key);
            done += take;
        }
    }

    /// <summary>LAUNCH_FINISH: the guest can run.</summary>
    public SevStatus LaunchFinish(SimThread thread, uint handle)
    {
        SevStatus status = EnterSev(thread, PspCommand.LAUNCH_FINISH, handle, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State is not (SevGuestState.LAUNCH_UPDATE or SevGuestState.LAUNCH_SECRET))
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongSevState, (ulong)PspCommand.LAUNCH_FINISH, (ulong)guest.State);
        }
        guest.Freeze();
        guest.State = SevGuestState.RUNNING;
        return SevStatus.SUCCESS;
    }

    /// <summary>DBG_DECRYPT and DBG_ENCRYPT: bytes of a guest's memory, in plain or encrypted, from one frame to another.</summary>
    public SevStatus Debug(SimThread thread, uint handle, bool decrypt, Pfn source, int sourceOffset, Pfn target, int targetOffset, int length)
    {
        PspCommand command = decrypt ? PspCommand.DBG_DECRYPT : PspCommand.DBG_ENCRYPT;
        SevStatus status = EnterSev(thread, command, handle, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if ((guest.Policy & SevPolicy.NODBG) != 0)
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, DebugForbidden, guest.Policy);
        }
        Span<byte> bytes = stackalloc byte[PageSize.Bytes];
        bytes = bytes[..length];
        _machine.Memory.Read(source, sourceOffset, bytes, decrypt ? guest.Key : Machine.HostKey);
        _machine.Memory.Write(target, targetOffset, bytes, decrypt ? Machine.HostKey : guest.Key);
        return SevStatus.SUCCESS;
    }

    /// <summary>GUEST_STATUS.</summary>
    public SevStatus GuestStatus(SimThread thread, uint handle, out SevGuestStatus? guest)
    {
        SevStatus status = EnterSev(thread, PspCommand.GUEST_STATUS, handle, out _);
        guest = SevStatusOf(handle);
        return status;
    }

    /// <summary>Number of the key that encrypts a guest's memory; 0 where there is no such guest.</summary>
    public uint SevKeyOf(uint handle) => _sevGuests.TryGetValue(handle, out SevGuest? guest) ? guest.Key : 0;

    /// <summary>What GUEST_STATUS tells, and the digest that the ABI keeps to itself. Null where there is no such guest.</summary>
    public SevGuestStatus? SevStatusOf(uint handle) => _sevGuests.TryGetValue(handle, out SevGuest? guest)
        ? new SevGuestStatus(guest.Handle, guest.Policy, guest.State, guest.Asid, guest.Key, guest.Digest)
        : null;

    private SevStatus UpdateInPlace(SimThread thread, PspCommand command, uint handle, Pfn page, int offset, ulong length, bool requireEs)
    {
        SevStatus status = EnterSev(thread, command, handle, out SevGuest guest);
        if (status != SevStatus.SUCCESS)
        {
            return status;
        }
        if (guest.State != SevGuestState.LAUNCH_UPDATE)
        {
            return thread.Fail(SevStatus.INVALID_GUEST_STATE, WrongSevState, (ulong)command, (ulong)guest.State);
        }
        if (requireEs && (guest.Policy & SevPolicy.ES) == 0)
        {
            return thread.Fail(SevStatus.POLICY_FAILURE, NotSevEs, guest.Policy);
        }
        if (guest.Asid == 0)
        {
            return thread.Fail(SevStatus.INACTIVE, GuestInactive, handle);
        }
        if (offset % SevBlock != 0 || length % SevBlock != 0)
        {
            return thread.Fail(offset % SevBlock != 0 ? SevStatus.INVALID_ADDRESS : SevStatus.INVALID_LEN, UnalignedUpdate, page.ToAddress() + (ulong)offset, length);
        }
        Span<byte> bytes = stackalloc byte[PageSize.Bytes];
        for (ulong done = 0; done < length;)
        {
            ulong at = (ulong)offset + done;
            Pfn frame = page + (at >> PageSize.Shift);
            int inFrame = (int)(at & PageSize.OffsetMask);
            Span<byte> part = bytes[..(int)Math.Min(length - done, (ulong)(PageSize.Bytes - inFrame))];
            _machine.Memory.Read(frame, inFrame, part, Machine.HostKey);
            guest.Absorb(part);
            _machine.Memory.Write(frame, inFrame, part, guest.Key);
            done += (ulong)part.Length;
        }
        return SevStatus.SUCCESS;
    }

    private SevStatus SessionKeys(SimThread thread, uint policy, ReadOnlySpan<byte> dhCertificate, ReadOnlySpan<byte> session, out byte[] tek, out byte[] tik)
    {
        tek = new byte[SevSession.KeySize];
        tik = new byte[SevSession.KeySize];
        if (session.IsEmpty)
        {
            _machine.Entropy.Draw("sev tek", tek);
            _machine.Entropy.Draw("sev tik", tik);
            return SevStatus.SUCCESS;
        }
        if (session.Length != SevSession.BlobSize)
        {
            return thread.Fail(SevStatus.INVALID_LEN, BadSession, (ulong)session.Length);
        }
        if (!TryAgree(dhCertificate, out byte[] z))
        {
            return thread.Fail(SevStatus.INVALID_CERTIFICATE, BadDhCertificate, (ulong)dhCertificate.Length);
        }
        OpenedSevSession opened = SevSession.Open(z, session, policy);
        (tek, tik) = (opened.Tek, opened.Tik);
        return opened.Holds ? SevStatus.SUCCESS : thread.Fail(SevStatus.BAD_MEASUREMENT, BadSession, (ulong)session.Length);
    }

    // Z: the x coordinate of the Diffie-Hellman point, 48 bytes. Of the certificate only the key counts: whoever knows the platform's key may own a guest.
    private bool TryAgree(ReadOnlySpan<byte> certificate, out byte[] z)
    {
        z = [];
        if (!SevCertificate.TryRead(certificate, out SevCertificate read) || !read.TryGetKey(out ECParameters key))
        {
            return false;
        }
        using ECDiffieHellman pdh = PdhKey();
        using var owner = ECDiffieHellman.Create(key);
        z = pdh.DeriveRawSecretAgreement(owner.PublicKey);
        return true;
    }

    private ECDiffieHellman PdhKey()
    {
        byte[] d = new byte[PdhScalarSize];
        _machine.Entropy.Derive(_pdhGeneration == 0 ? "sev pdh" : $"sev pdh/{_pdhGeneration}", d);
        // Below the order of the group for certain, and not zero.
        d[0] = 0;
        d[^1] |= 1;
        return ECDiffieHellman.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP384, D = d });
    }

    private SevStatus EnterSev(SimThread thread, PspCommand command, uint handle, out SevGuest guest)
    {
        thread.Step(CommandStep, (ulong)command, handle);
        guest = null!;
        if (!_initialised)
        {
            return thread.Fail(SevStatus.INVALID_PLATFORM_STATE, PlatformNotInitialised, (ulong)command);
        }
        if (!_sevGuests.TryGetValue(handle, out SevGuest? found))
        {
            return thread.Fail(SevStatus.INVALID_GUEST, NoSuchHandle, handle);
        }
        guest = found;
        return SevStatus.SUCCESS;
    }
}
