using System.Security.Cryptography;

namespace SimMachine.Amd.Legacy;

/// <summary>State of a SEV or SEV-ES guest (SEV API, chapter 6); the numbers are those of GUEST_STATUS.</summary>
public enum SevGuestState
{
    UNINIT = 0,
    LAUNCH_UPDATE = 1,
    LAUNCH_SECRET = 2,
    RUNNING = 3,
    SEND_UPDATE = 4,
    RECEIVE_UPDATE = 5,

    /// <summary>It was sent to another machine (UNVERIFIED number). Nothing but its end is left.</summary>
    SENT = 6,
}

/// <summary>Bits of the guest policy of SEV and SEV-ES.</summary>
public static class SevPolicy
{
    public const uint NODBG = 1 << 0;
    public const uint NOKS = 1 << 1;
    public const uint ES = 1 << 2;
    public const uint NOSEND = 1 << 3;
    public const uint DOMAIN = 1 << 4;
    public const uint SEV = 1 << 5;
    public const uint Reserved = 0xffc0;
}

/// <summary>What firmware keeps of one SEV or SEV-ES guest, known by its handle.</summary>
internal sealed class SevGuest : IDisposable
{
    private readonly IncrementalHash _sha256 = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
    private byte[]? _final;

    public required uint Handle { get; init; }

    public required uint Policy { get; init; }

    /// <summary>Transport keys: the owner's for launch, those of the machines that it is sent between afterwards.</summary>
    public required byte[] Tek { get; set; }

    public required byte[] Tik { get; set; }

    public SevGuestState State { get; set; } = SevGuestState.LAUNCH_UPDATE;

    /// <summary>0 until ACTIVATE.</summary>
    public uint Asid { get; set; }

    /// <summary>The guest whose key this one uses, where it shares one.</summary>
    public SevGuest? KeyOwner { get; init; }

    /// <summary>Number of the key that encrypts the guest's memory: the ASID of the guest that had it first.</summary>
    public uint Key => KeyOwner?.Key ?? Asid;

    /// <summary>MEASURE and MNONCE, 48 bytes, once measured.</summary>
    public byte[]? Measurement { get; set; }

    /// <summary>The launch digest so far, 32 bytes.</summary>
    public byte[] Digest => _final ?? _sha256.GetCurrentHash();

    public void Absorb(ReadOnlySpan<byte> plaintext) => _sha256.AppendData(plaintext);

    /// <summary>No more is measured.</summary>
    public void Freeze() => _final = _sha256.GetCurrentHash();

    public void Dispose() => _sha256.Dispose();
}

/// <summary>For people and GUEST_STATUS.</summary>
/// <param name="Key">Number of the key that encrypts its memory.</param>
/// <param name="LaunchDigest">32 bytes.</param>
public sealed record SevGuestStatus(uint Handle, uint Policy, SevGuestState State, uint Asid, uint Key, byte[] LaunchDigest);
