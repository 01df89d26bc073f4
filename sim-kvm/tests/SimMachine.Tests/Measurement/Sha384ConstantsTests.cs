// The tables of SHA-384 worked out again from what the standard says they are.

using System.Numerics;
using SimMachine.Measurement;
using Xunit;

namespace SimMachine.Tests.Measurement;

public class Sha384ConstantsTests
{
    [Fact]
    public void K_IsTheFractionsOfTheCubeRootsOfTheFirst80Primes() =>
        Assert.Equal(Primes().Take(Sha384Constants.Rounds).Select(prime => FractionOfRoot(prime, 3)), Sha384Constants.K.ToArray());

    [Fact]
    public void InitialState_IsTheFractionsOfTheSquareRootsOfThe9thTo16thPrimes() =>
        Assert.Equal(
            Primes().Skip(8).Take(Sha384Constants.StateWords).Select(prime => FractionOfRoot(prime, 2)), Sha384Constants.InitialState.ToArray());

    private static IEnumerable<int> Primes() =>
        Enumerable.Range(2, 1000).Where(number => Enumerable.Range(2, number - 2).All(divisor => number % divisor != 0));

    // The root of number * 2^(64 * degree) is the root of number, shifted by 64 bits.
    private static ulong FractionOfRoot(int number, int degree)
    {
        BigInteger scaled = (BigInteger)number << (64 * degree);
        BigInteger root = 0;
        for (int bit = 64 + 32; bit >= 0; bit--)
        {
            BigInteger larger = root + (BigInteger.One << bit);
            if (BigInteger.Pow(larger, degree) <= scaled)
            {
                root = larger;
            }
        }
        return (ulong)(root & ulong.MaxValue);
    }
}
