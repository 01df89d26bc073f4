using System.Numerics;
using System.Security.Cryptography;
using System.Text;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using Xunit;

namespace SimMachine.Tests.Attestation;

/// <summary>Keys whose signatures are functions of key and message, judged by the platform's cryptography and by RFC 6979.</summary>
public sealed class KeyTests
{
    // RFC 6979 A.2.6, SHA-384.
    private static readonly byte[] Rfc6979Key =
        Convert.FromHexString("6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5");

    public static TheoryData<EpycProduct, string, int> Authorities =>
    [
        .. from product in Enum.GetValues<EpycProduct>()
           from role in new[] { (Name: "ARK", At: 0), (Name: "ASK", At: 2), (Name: "ASVK", At: 4) }
           select (product, role.Name, role.At),
    ];

    [Theory]
    [InlineData(
        "sample",
        "94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C81A648152E44ACF96E36DD1E80FABE46",
        "99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94FA329C145786E679E7B82C71A38628AC8")]
    [InlineData(
        "test",
        "8203B63D3C853E8D77227FB377BCF7B7B772E97892A80F36AB775D509D7A5FEB0542A7F0812998DA8F1DD3CA3CF023DB",
        "DDD0760448D42D8A43AF45AF836FCE4DE8BE06B485E9B61B827C2F13173923E06A739F040649A667BF3B828246BAA5A5")]
    public void Ecdsa_SignsAsRfc6979(string message, string r, string s)
    {
        var key = EcdsaP384Key.FromScalar(Rfc6979Key);

        (byte[] actualR, byte[] actualS) = key.SignDigest(SHA384.HashData(Encoding.ASCII.GetBytes(message)));

        Assert.Equal((r, s), (Convert.ToHexString(actualR), Convert.ToHexString(actualS)));
    }

    [Fact]
    public void Ecdsa_SignaturesVerify()
    {
        for (int i = 0; i < 50; i++)
        {
            var key = EcdsaP384Key.FromBytes(SHA512.HashData(BitConverter.GetBytes(i)));
            byte[] message = new byte[i];
            (byte[] r, byte[] s) = key.SignDigest(SHA384.HashData(message));

            using ECDsa publicKey = key.CreatePublic();
            Assert.True(publicKey.VerifyData(message, (byte[])[.. r, .. s], HashAlgorithmName.SHA384), $"key and message {i}");
        }
    }

    [Fact]
    public void Ecdsa_ScalarsAndBytesThatCannotBeKeys_AreRefused()
    {
        Assert.Throws<ArgumentException>(() => EcdsaP384Key.FromScalar(new byte[48]));
        Assert.Throws<ArgumentException>(() => EcdsaP384Key.FromScalar([.. Enumerable.Repeat((byte)0xFF, 48)]));
        Assert.Throws<ArgumentException>(() => EcdsaP384Key.FromBytes(new byte[55]));
        Assert.NotNull(EcdsaP384Key.FromBytes(new byte[56]).Point.X);
    }

    [Fact]
    public void RsaPss_SignaturesVerifyAndAreFunctionsOfTheMessage()
    {
        int[] steps = SimulatedAuthority.SearchSteps[EpycProduct.Milan];
        RsaPssKey key = new("ARK/Milan", steps[0], steps[1]), again = new("ARK/Milan", steps[0], steps[1]);
        using RSA publicKey = key.CreatePublic();

        for (int size = 0; size < 4; size++)
        {
            byte[] message = new byte[size];
            byte[] signature = key.SignData(message, HashAlgorithmName.SHA384);
            Assert.Equal(signature, again.SignData(message, HashAlgorithmName.SHA384));
            Assert.True(publicKey.VerifyData(message, signature, HashAlgorithmName.SHA384, RSASignaturePadding.Pss));
            Assert.False(publicKey.VerifyData((byte[])[.. message, 0], signature, HashAlgorithmName.SHA384, RSASignaturePadding.Pss));
        }
    }

    [Theory]
    [MemberData(nameof(Authorities))]
    public void RsaKeys_AreMadeOfPrimes(EpycProduct product, string role, int at)
    {
        int[] steps = SimulatedAuthority.SearchSteps[product];

        Assert.True(IsFound(RsaPssKey.Candidate($"{role}/{product}/p", steps[at])));
        Assert.True(IsFound(RsaPssKey.Candidate($"{role}/{product}/q", steps[at + 1])));
    }

    // The shortest of the searches, done again: nothing before its end is a prime.
    [Fact]
    public void RsaPrimes_AreTheFirstOfTheirSearch()
    {
        int steps = SimulatedAuthority.SearchSteps[EpycProduct.Turin][0];

        Assert.Equal(steps, Enumerable.Range(0, steps + 1).First(step => IsFound(RsaPssKey.Candidate("ARK/Turin/p", step))));
    }

    // Not divisible by small primes, then Miller and Rabin with a few bases: at 2048 bits a composite that passes by chance is out of the question.
    private static bool IsFound(BigInteger candidate)
    {
        foreach (int small in (int[])[3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97])
        {
            if (candidate % small == 0)
                return false;
        }
        BigInteger odd = candidate - 1;
        int twos = 0;
        for (; odd.IsEven; odd >>= 1)
            twos++;
        return new[] { 2, 3 }.All(PassesMillerRabin) && (candidate - 1) % 65537 != 0;

        bool PassesMillerRabin(int witness)
        {
            var x = BigInteger.ModPow(witness, odd, candidate);
            if (x.IsOne || x == candidate - 1)
                return true;
            for (int i = 1; i < twos; i++)
            {
                x = x * x % candidate;
                if (x == candidate - 1)
                    return true;
            }
            return false;
        }
    }
}
