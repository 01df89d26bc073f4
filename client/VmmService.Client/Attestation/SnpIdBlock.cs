using System.Buffers.Binary;
using System.Security.Cryptography;
using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client.Attestation;

/// <summary>
/// What the owner of an SNP guest signs before its launch: the digest and the policy that it must have, and who it is (ID block), with the signatures and keys that firmware checks
/// (ID authentication; snp.md 10.3). A launch that comes out otherwise is refused at KVM_SEV_SNP_LAUNCH_FINISH, and reports carry the digests of the keys.
/// </summary>
/// <param name="Block">96 bytes.</param>
/// <param name="Authentication">4096 bytes.</param>
/// <param name="HasAuthor">The ID key is signed by an author key.</param>
public sealed record SnpIdBlock(ReadOnlyMemory<byte> Block, ReadOnlyMemory<byte> Authentication, bool HasAuthor)
{
    /// <summary>Bytes of a key in its public form, of which reports have the SHA-384.</summary>
    public const int KeySize = 0x404;

    private const int BlockSize = 96;
    private const int DigestSize = 48;
    private const int IdSize = 16;
    private const int AuthenticationSize = 4096;
    private const int BlockSignatureAt = 0x40;
    private const int IdKeyAt = 0x240;
    private const int IdKeySignatureAt = 0x680;
    private const int AuthorKeyAt = 0x880;
    private const int IntegerSize = 72;
    private const int FieldSize = 48;
    private const uint Version = 1;
    private const uint EcdsaP384Sha384 = 1;
    private const uint CurveP384 = 2;

    /// <summary>ID_KEY_DIGEST of reports, 48 bytes.</summary>
    public byte[] IdKeyDigest => SHA384.HashData(Authentication.Span.Slice(IdKeyAt, KeySize));

    /// <summary>AUTHOR_KEY_DIGEST of reports, 48 bytes; zeros without an author.</summary>
    public byte[] AuthorKeyDigest => HasAuthor ? SHA384.HashData(Authentication.Span.Slice(AuthorKeyAt, KeySize)) : new byte[DigestSize];

    /// <summary>Makes an ID block and signs it.</summary>
    /// <param name="launchDigest">The digest that the launch must have, 48 bytes.</param>
    /// <param name="policy">The policy that the guest must have.</param>
    /// <param name="idKey">Signs the block; P-384.</param>
    /// <param name="authorKey">Signs the ID key; P-384, or null for none.</param>
    /// <param name="familyId">16 bytes, or empty for zeros.</param>
    /// <param name="imageId">16 bytes, or empty for zeros.</param>
    /// <param name="guestSvn">Security version of the guest.</param>
    public static SnpIdBlock Sign(
        ReadOnlySpan<byte> launchDigest, ulong policy, ECDsa idKey, ECDsa? authorKey = null, ReadOnlySpan<byte> familyId = default, ReadOnlySpan<byte> imageId = default, uint guestSvn = 0)
    {
        ArgumentNullException.ThrowIfNull(idKey);
        if (launchDigest.Length != DigestSize)
            throw new ArgumentException($"a launch digest has {DigestSize} bytes and not {launchDigest.Length}", nameof(launchDigest));
        if (familyId.Length is not (0 or IdSize) || imageId.Length is not (0 or IdSize))
            throw new ArgumentException($"a family id and an image id have {IdSize} bytes each, or are left out", nameof(familyId));

        byte[] block = new byte[BlockSize];
        launchDigest.CopyTo(block);
        familyId.CopyTo(block.AsSpan(0x30));
        imageId.CopyTo(block.AsSpan(0x40));
        BinaryPrimitives.WriteUInt32LittleEndian(block.AsSpan(0x50), Version);
        BinaryPrimitives.WriteUInt32LittleEndian(block.AsSpan(0x54), guestSvn);
        BinaryPrimitives.WriteUInt64LittleEndian(block.AsSpan(0x58), policy);

        byte[] authentication = new byte[AuthenticationSize];
        BinaryPrimitives.WriteUInt32LittleEndian(authentication, EcdsaP384Sha384);
        PutKey(idKey, authentication.AsSpan(IdKeyAt));
        PutSignature(idKey, block, authentication.AsSpan(BlockSignatureAt));
        if (authorKey is not null)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(authentication.AsSpan(4), EcdsaP384Sha384);
            PutKey(authorKey, authentication.AsSpan(AuthorKeyAt));
            PutSignature(authorKey, authentication.AsSpan(IdKeyAt, KeySize), authentication.AsSpan(IdKeySignatureAt));
        }
        return new SnpIdBlock(block, authentication, authorKey is not null);
    }

    /// <summary>The parameters of KVM_SEV_SNP_LAUNCH_FINISH with this block.</summary>
    public KvmSevSnpLaunchFinish ToFinish() => new() { IdBlock = ByteString.CopyFrom(Block.Span), IdAuth = ByteString.CopyFrom(Authentication.Span), AuthKeyEn = HasAuthor };

    private static void PutKey(ECDsa key, Span<byte> destination)
    {
        ECParameters parameters = key.ExportParameters(includePrivateParameters: false);
        if (parameters.Q.X?.Length != FieldSize)
            throw new ArgumentException("the key is not of P-384", nameof(key));

        BinaryPrimitives.WriteUInt32LittleEndian(destination, CurveP384);
        PutReversed(parameters.Q.X, destination[4..]);
        PutReversed(parameters.Q.Y, destination[(4 + IntegerSize)..]);
    }

    private static void PutSignature(ECDsa key, ReadOnlySpan<byte> content, Span<byte> destination)
    {
        byte[] signature = key.SignData(content, HashAlgorithmName.SHA384, DSASignatureFormat.IeeeP1363FixedFieldConcatenation);
        PutReversed(signature.AsSpan(0, FieldSize), destination);
        PutReversed(signature.AsSpan(FieldSize), destination[IntegerSize..]);
    }

    private static void PutReversed(ReadOnlySpan<byte> bigEndian, Span<byte> destination)
    {
        bigEndian.CopyTo(destination);
        destination[..bigEndian.Length].Reverse();
    }
}
