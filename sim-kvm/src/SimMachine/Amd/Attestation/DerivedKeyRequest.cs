using System.Buffers.Binary;
using System.Security.Cryptography;

namespace SimMachine.Amd.Attestation;

/// <summary>
/// MSG_KEY_REQ: which key a guest wants firmware to derive, and the derivation. Silicon does not say how it derives; here it is HKDF with SHA-256 (RFC 5869): the input key is the
/// root, no salt, and info is "simulated derived key", the field selection, the VMPL and every field in the order of the selection's bits, those
/// that are not selected as zeros. Equal inputs give equal keys.
/// </summary>
/// <param name="RootKeySelect">Bit 0: 0 the chip's (or provider's) root, 1 the VM's.</param>
/// <param name="FieldSelect">GUEST_FIELD_SELECT.</param>
/// <param name="Vmpl">0 to 3.</param>
/// <param name="GuestSvn">At most the guest's.</param>
/// <param name="TcbVersion">No part newer than the committed one's.</param>
/// <param name="LaunchMitVector">0 in the short form of the message.</param>
internal readonly record struct DerivedKeyRequest(
    uint RootKeySelect, ulong FieldSelect, uint Vmpl, uint GuestSvn, ulong TcbVersion, ulong LaunchMitVector)
{
    private const int KeySize = 32;
    private const int ShortSize = 32;

    private const ulong PolicyField = 1 << 0;
    private const ulong ImageIdField = 1 << 1;
    private const ulong FamilyIdField = 1 << 2;
    private const ulong MeasurementField = 1 << 3;
    private const ulong GuestSvnField = 1 << 4;
    private const ulong TcbVersionField = 1 << 5;
    private const ulong LaunchMitVectorField = 1 << 6;
    private const ulong FieldsBeforeVectors = LaunchMitVectorField - 1;

    /// <summary>The key follows the VM, not the chip.</summary>
    public bool FromVmrk => RootKeySelect == 1;

    /// <summary>No selection bit is set that has no meaning.</summary>
    /// <param name="mitigationVectors">Firmware has them.</param>
    public bool IsKnown(bool mitigationVectors) => RootKeySelect <= 1 && (FieldSelect & ~(FieldsBeforeVectors | (mitigationVectors ? LaunchMitVectorField : 0))) == 0;

    /// <param name="payload">32 or 40 bytes.</param>
    public static DerivedKeyRequest Read(ReadOnlySpan<byte> payload) => new(
        BinaryPrimitives.ReadUInt32LittleEndian(payload),
        BinaryPrimitives.ReadUInt64LittleEndian(payload[8..]),
        BinaryPrimitives.ReadUInt32LittleEndian(payload[16..]),
        BinaryPrimitives.ReadUInt32LittleEndian(payload[20..]),
        BinaryPrimitives.ReadUInt64LittleEndian(payload[24..]),
        payload.Length > ShortSize ? BinaryPrimitives.ReadUInt64LittleEndian(payload[ShortSize..]) : 0);

    public byte[] Derive(ReadOnlySpan<byte> root, GuestContext guest)
    {
        byte[] info =
        [
            .. "simulated derived key"u8,
            .. Number(FieldSelect),
            .. Number(Vmpl),
            .. Number(Selected(PolicyField, guest.Policy)),
            .. Selected(ImageIdField, guest.IdBlock.ImageId.Span),
            .. Selected(FamilyIdField, guest.IdBlock.FamilyId.Span),
            .. Selected(MeasurementField, guest.Digest.Current),
            .. Number(Selected(GuestSvnField, GuestSvn)),
            .. Number(Selected(TcbVersionField, TcbVersion)),
            .. Number(Selected(LaunchMitVectorField, LaunchMitVector)),
        ];
        return HKDF.DeriveKey(HashAlgorithmName.SHA256, root.ToArray(), KeySize, salt: [], info);
    }

    private ulong Selected(ulong field, ulong value) => (FieldSelect & field) != 0 ? value : 0;

    private byte[] Selected(ulong field, ReadOnlySpan<byte> value) => (FieldSelect & field) != 0 ? value.ToArray() : new byte[value.Length];

    private static byte[] Number(ulong value)
    {
        byte[] bytes = new byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        return bytes;
    }
}
