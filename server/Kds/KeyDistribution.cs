using System.Collections.Concurrent;
using System.Globalization;
using System.Security.Cryptography;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;

namespace VmmService.Server.Kds;

/// <summary>
/// The paths of AMD's key distribution service (57230 chapter 4), with simulated certificates in the formats of the real one: DER for endorsement
/// certificates and revocation lists, PEM (intermediate, then root) for chains. So a verifier that is pointed here instead works unmodified.
/// </summary>
/// <remarks>
/// A key is a function of chip id and TCB version, so no host has to be there: any daemon answers for the chips of any other. Chip ids of silicon are not
/// found. The certificate of a VLEK needs a provider's credentials at AMD; here the provider is named by <c>cspId</c>.
/// </remarks>
internal static class KeyDistribution
{
    /// <summary>The provider of a VLEK request that names none.</summary>
    public const string DefaultCspId = "SIMULATED-CSP";

    private const int MaxCspId = 64;

    // A certificate takes a tenth of a second to sign; those that were asked for are kept, up to a bound.
    private const int MaxKept = 1024;

    private const string Certificate = "application/pkix-cert";
    private const string Crl = "application/pkix-crl";
    private const string Pem = "application/x-pem-file";

    private static readonly string[] Products = Enum.GetNames<EpycProduct>();

    public static void Map(WebApplication app)
    {
        var kept = new Certificates();
        foreach ((string service, EndorsementKeyKind kind) in (ReadOnlySpan<(string, EndorsementKeyKind)>)[("vcek", EndorsementKeyKind.Vcek), ("vlek", EndorsementKeyKind.Vlek)])
        {
            app.MapGet($"/{service}/v1/{{product}}/cert_chain", (string product) => Find(product) is { } found ? ChainOf(found, kind) : UnknownProduct(product));
            app.MapGet(
                $"/{service}/v1/{{product}}/crl",
                (string product) => Find(product) is { } found ? Results.Bytes(SimulatedAuthority.Of(found).Crl, Crl) : UnknownProduct(product));
        }
        app.MapGet(
            "/vcek/v1/{product}/{hwid}",
            (string product, string hwid, HttpRequest request) => Find(product) is { } found ? Vcek(found, hwid, request.Query, kept) : UnknownProduct(product));
        app.MapGet(
            "/vlek/v1/{product}/cert",
            (string product, HttpRequest request) => Find(product) is { } found ? Vlek(found, request.Query, kept) : UnknownProduct(product));
    }

    private static IResult ChainOf(EpycProduct product, EndorsementKeyKind kind)
    {
        var authority = SimulatedAuthority.Of(product);
        return Results.Text($"{ToPem(authority.Intermediate(kind))}{ToPem(authority.Ark)}", Pem);
    }

    private static IResult Vcek(EpycProduct product, string hwid, IQueryCollection query, Certificates kept)
    {
        byte[] chip = new byte[ChipId.Size];
        bool isHex = hwid.Length <= 2 * ChipId.Size && Convert.FromHexString(hwid, chip, out _, out _) == System.Buffers.OperationStatus.Done;
        if (!isHex || !ChipId.IsSimulated(product, chip.AsSpan(0, hwid.Length / 2)))
        {
            return Results.Text(
                $"{hwid} is no id of a simulated {product} chip. It is CHIP_ID of a report, {2 * ChipId.SignificantBytes(product)} hexadecimal digits.\n",
                statusCode: StatusCodes.Status404NotFound);
        }
        return TryReadTcb(product, query, out TcbVersion tcb) is { } problem
            ? problem
            : kept.Get($"{product}/{hwid.ToUpperInvariant()}/{tcb.Encode(product)}", () => EndorsementKey.Vcek(product, chip, tcb));
    }

    private static IResult Vlek(EpycProduct product, IQueryCollection query, Certificates kept)
    {
        string csp = query.TryGetValue("cspId", out var given) ? given.ToString() : DefaultCspId;
        if (csp.Length is 0 or > MaxCspId || csp.Any(letter => letter is < ' ' or > '~'))
        {
            return BadRequest($"cspId must be 1 to {MaxCspId} printable ASCII characters");
        }
        return TryReadTcb(product, query, out TcbVersion tcb) is { } problem
            ? problem
            : kept.Get($"{product}/vlek {csp}/{tcb.Encode(product)}", () => EndorsementKey.Vlek(product, csp, tcb));
    }

    // The four parts that every product has must be there; the one that only Turin has may be left out, as verifiers written before it do.
    private static IResult? TryReadTcb(EpycProduct product, IQueryCollection query, out TcbVersion tcb)
    {
        string[] names = ["blSPL", "teeSPL", "snpSPL", "ucodeSPL", "fmcSPL"];
        byte[] parts = new byte[names.Length];
        tcb = default;
        for (int i = 0; i < names.Length; i++)
        {
            bool isFmc = i == names.Length - 1;
            if (isFmc && (!TcbVersion.HasFmc(product) || !query.ContainsKey(names[i])))
            {
                continue;
            }
            if (!byte.TryParse(query[names[i]].ToString(), NumberStyles.None, CultureInfo.InvariantCulture, out parts[i]))
            {
                return BadRequest($"{names[i]} must be a number from 0 to 255; a query names {string.Join(", ", names[..^1])}{(TcbVersion.HasFmc(product) ? " and fmcSPL" : "")}");
            }
        }
        tcb = new TcbVersion(parts[0], parts[1], parts[2], parts[3], parts[4]);
        return null;
    }

    private static EpycProduct? Find(string product) => Products.Contains(product, StringComparer.Ordinal) ? Enum.Parse<EpycProduct>(product) : null;

    private static IResult UnknownProduct(string product) =>
        Results.Text($"{product} is not a product; there are {string.Join(", ", Products)}.\n", statusCode: StatusCodes.Status404NotFound);

    private static IResult BadRequest(string problem) => Results.Text(problem + ".\n", statusCode: StatusCodes.Status400BadRequest);

    private static string ToPem(ReadOnlyMemory<byte> der) => PemEncoding.WriteString("CERTIFICATE", der.Span) + "\n";

    private sealed class Certificates
    {
        private readonly ConcurrentDictionary<string, ReadOnlyMemory<byte>> _kept = new();
        private readonly Lock _signing = new();

        // One at a time: whoever asks for many keeps one core busy, not all.
        public IResult Get(string name, Func<EndorsementKey> key)
        {
            if (!_kept.TryGetValue(name, out ReadOnlyMemory<byte> certificate))
            {
                lock (_signing)
                {
                    certificate = key().Certificate;
                }
                if (_kept.Count < MaxKept)
                {
                    _kept[name] = certificate;
                }
            }
            return Results.Bytes(certificate, Certificate);
        }
    }
}
