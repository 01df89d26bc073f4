using System.Text.Json;
using Google.Protobuf;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The daemon's verifier of quotes and the tests' own, which know nothing of each other: they accept the same, and refuse for the same first reason.</summary>
public sealed class QuoteVerifiersAgreeTests(Daemon daemon, ITestOutputHelper output) : IClassFixture<Daemon>
{
    private const int Flips = 900;

    public static TheoryData<QuoteEvidenceKind> Kinds => [.. Enum.GetValues<QuoteEvidenceKind>().Skip(1)];

    public static TheoryData<string> Vectors => TdxVectors.Ids("simulated_quotes");

    [Theory]
    [MemberData(nameof(Kinds))]
    public async Task OnTheCatalogue(QuoteEvidenceKind kind)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection, 3);
        foreach (QuoteFormat format in (QuoteFormat[])[QuoteFormat.V4, QuoteFormat.V5Tdx10, QuoteFormat.V5Tdx15])
        {
            MakeQuoteEvidenceResponse evidence = await host.TdxAttestation.MakeEvidenceAsync(kind, (await QuotedTd.Report(host)).Bytes, format);

            EvidenceFindings findings = await VerifiedQuotes.Ask(daemon, VerifiedQuotes.Request(evidence));

            IReadOnlyList<QuoteRefusal> refusals = QuotedTd.Verify(evidence);
            Assert.Equal(refusals.Select(each => VerifiedQuotes.Ids[each]).FirstOrDefault(), findings.Failed().FirstOrDefault());
            Assert.Equal(refusals.Count == 0 ? EvidenceVerdict.Accepted : EvidenceVerdict.Refused, findings.Verdict);
        }
    }

    [Theory]
    [MemberData(nameof(Vectors))]
    public async Task OnTheMutationsOfTheVectors(string id)
    {
        JsonElement vector = TdxVectors.Get("simulated_quotes", id);
        byte[] root = TdxQuoteVectorTests.Root(vector);
        foreach (JsonElement mutation in vector.GetProperty("mutations").EnumerateArray())
        {
            byte[] quote = TdxVectors.Bytes(vector, "quote_hex");
            quote[mutation.GetProperty("offset").GetInt32()] ^= (byte)mutation.GetProperty("xor").GetInt32();

            EvidenceFindings findings = await VerifiedQuotes.Ask(daemon, VerifiedQuotes.OfVector(quote, root));

            QuoteRefusal first = TdxVerifier.Verify(quote, root, DateTimeOffset.FromUnixTimeSeconds(VerifiedQuotes.OfVector(quote, root).At).UtcDateTime)[0];
            Assert.Equal(VerifiedQuotes.Ids[first], findings.Failed()[0]);
        }
    }

    // A bit anywhere: most break a signature; some are in armour that nobody reads, in the case of a digit, in an algorithm that stands there twice.
    [Fact]
    public async Task OnSoundEvidenceWithOneBitChanged()
    {
        const int seed = 20_261_121;
        output.WriteLine($"seed {seed}");
        var random = new Random(seed);
        await using RemoteHost host = await QuotedTd.CreateHost(daemon.Connection, 4);
        MakeQuoteEvidenceResponse sound = await host.TdxAttestation.MakeEvidenceAsync(QuoteEvidenceKind.Sound, (await QuotedTd.Report(host)).Bytes, QuoteFormat.V5Tdx15);
        int accepted = 0;
        for (int i = 0; i < Flips; i++)
        {
            MakeQuoteEvidenceResponse changed = sound.Clone();
            (string what, int at, int bit) = Flip(changed, random, i);

            EvidenceFindings findings = await VerifiedQuotes.Ask(daemon, VerifiedQuotes.Request(changed));

            bool refused = IsRefused(changed);
            Assert.True(
                (refused ? EvidenceVerdict.Refused : EvidenceVerdict.Accepted) == findings.Verdict, $"seed {seed}, step {i}: bit {bit} of byte 0x{at:x} of {what}: {findings}");
            accepted += refused ? 0 : 1;
        }
        output.WriteLine($"{accepted} of {Flips} are accepted");
        Assert.InRange(accepted, 1, Flips / 4);
    }

    private static (string What, int At, int Bit) Flip(MakeQuoteEvidenceResponse evidence, Random random, int step)
    {
        (string What, int At, int Bit) flip = default;
        switch (step % 8)
        {
            case 0: evidence.PckCrl = Flipped(evidence.PckCrl, "pck_crl"); break;
            case 1: evidence.RootCrl = Flipped(evidence.RootCrl, "root_crl"); break;
            case 2: evidence.TcbInfo = Flipped(evidence.TcbInfo, "tcb_info"); break;
            case 3: evidence.QeIdentity = Flipped(evidence.QeIdentity, "qe_identity"); break;
            case 4: evidence.TcbSigning = Flipped(evidence.TcbSigning, "tcb_signing"); break;
            default: evidence.Quote = Flipped(evidence.Quote, "quote"); break;
        }
        return flip;

        ByteString Flipped(ByteString bytes, string what)
        {
            flip = (what, random.Next(bytes.Length), random.Next(8));
            byte[] copy = bytes.ToByteArray();
            copy[flip.At] ^= (byte)(1 << flip.Bit);
            return ByteString.CopyFrom(copy);
        }
    }

    private static bool IsRefused(MakeQuoteEvidenceResponse evidence)
    {
        try
        {
            return QuotedTd.Verify(evidence).Count > 0;
        }
        catch (Exception)
        {
            // The tests' verifier is for evidence that can be read.
            return true;
        }
    }
}
