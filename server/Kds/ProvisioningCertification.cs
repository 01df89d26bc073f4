using System.Collections.Concurrent;
using System.Globalization;
using System.Security.Cryptography;
using SimMachine.Intel;
using SimMachine.Intel.Attestation;

namespace VmmService.Server.Kds;

/// <summary>
/// The paths of Intel's provisioning certification service, version 4, with simulated collateral in the formats of the real one: JSON that is signed, lists and certificates with
/// their issuers' chain in a header. So a verifier that is pointed here instead works unmodified.
/// </summary>
/// <remarks>
/// Collateral is a function of a host's seed, so no host has to be there. The paths alone are for seed 0, which a host has if it is given none; those of another stand below
/// <c>/seed/N</c>. Families of silicon are not found.
/// </remarks>
internal static class ProvisioningCertification
{
    // Seeds whose keys and answers are kept; others are made anew for each request.
    private const int MaxKept = 64;

    private const string Json = "application/json";
    private const string Pem = "application/x-pem-file";
    private const string Crl = "application/pkix-crl";

    public static void Map(WebApplication app)
    {
        var kept = new ConcurrentDictionary<ulong, TdxCollateral>();
        foreach (string prefix in (ReadOnlySpan<string>)["", "/seed/{seed}"])
        {
            Get("/tdx/certification/v4/tcb", Tcb);
            Get("/tdx/certification/v4/qe/identity", (collateral, http) => SignedByTcbSigner(collateral, http, "SGX-Enclave-Identity-Issuer-Chain", collateral.QeIdentity));
            Get("/sgx/certification/v4/pckcrl", PckCrl);
            Get("/sgx/certification/v4/pckcert", PckCert);
            // The caching service answers hexadecimal digits here.
            Get("/sgx/certification/v4/rootcacrl", (collateral, _) => Results.Text(Convert.ToHexStringLower(collateral.Authority.RootCrl.Span)));
            // What certificates name as the place of the root's list.
            Get("/IntelSGXRootCA.der", (collateral, _) => Results.Bytes(collateral.Authority.RootCrl, Crl));

            void Get(string path, Func<TdxCollateral, HttpContext, IResult> answer) =>
                app.MapGet(prefix + path, (HttpContext http) => TryReadSeed(http, out ulong seed) ? answer(Of(seed), http) : BadRequest("the seed is a decimal number below 2^64"));
        }

        // Anybody may ask for any number of seeds.
        TdxCollateral Of(ulong seed) => kept.TryGetValue(seed, out TdxCollateral? found) || kept.Count >= MaxKept ? found ?? Make(seed) : kept.GetOrAdd(seed, Make);

        static TdxCollateral Make(ulong seed) => TdxCollateral.Of(TdxAuthority.Of(seed));
    }

    private static IResult Tcb(TdxCollateral collateral, HttpContext http)
    {
        string fmspc = http.Request.Query["fmspc"].ToString();
        string own = Convert.ToHexString(collateral.Fmspc.Span);
        if (fmspc.Length != own.Length || !fmspc.All(char.IsAsciiHexDigit))
        {
            return BadRequest($"fmspc must be {own.Length} hexadecimal digits");
        }
        return string.Equals(fmspc, own, StringComparison.OrdinalIgnoreCase)
            ? SignedByTcbSigner(collateral, http, "TCB-Info-Issuer-Chain", collateral.TcbInfo)
            : Results.Text($"{fmspc} is no family of the simulated platform of this seed, which has {own}.\n", statusCode: StatusCodes.Status404NotFound);
    }

    private static IResult PckCrl(TdxCollateral collateral, HttpContext http)
    {
        string ca = http.Request.Query["ca"].ToString();
        string encoding = http.Request.Query["encoding"].ToString();
        if (ca != "platform")
        {
            return BadRequest("ca must be platform: simulated machines have no processor CA");
        }
        if (encoding is not ("" or "pem" or "der"))
        {
            return BadRequest("encoding must be pem or der");
        }
        TdxAuthority authority = collateral.Authority;
        SetChain(http, "SGX-PCK-CRL-Issuer-Chain", authority.PlatformCa, authority.Root);
        return encoding == "der" ? Results.Bytes(authority.PckCrl, Crl) : Results.Text(PemEncoding.WriteString("X509 CRL", authority.PckCrl.Span) + "\n", Pem);
    }

    // Which platform asks is the seed's to say, so the encrypted PPID of the real service is not needed and not looked at.
    private static IResult PckCert(TdxCollateral collateral, HttpContext http)
    {
        IQueryCollection query = http.Request.Query;
        byte[] cpuSvn = new byte[TdxModuleConfig.SvnSize];
        byte[] pceSvn = new byte[2];
        if (!TryReadHex(query["cpusvn"], cpuSvn) || !TryReadHex(query["pcesvn"], pceSvn) || !string.Equals(query["pceid"], Convert.ToHexString(PckPlatform.PceId), StringComparison.Ordinal))
        {
            return BadRequest("cpusvn must be 32 hexadecimal digits, pcesvn 4 (little-endian), pceid 0000");
        }
        TdxAuthority authority = collateral.Authority;
        var config = new TdxModuleConfig { CpuSvn = cpuSvn, PceSvn = (ushort)(pceSvn[0] | (pceSvn[1] << 8)) };
        SetChain(http, "SGX-PCK-Certificate-Issuer-Chain", authority.PlatformCa, authority.Root);
        http.Response.Headers["SGX-FMSPC"] = Convert.ToHexString(authority.Fmspc.Span);
        http.Response.Headers["SGX-PCK-Certificate-CA-Type"] = "platform";
        http.Response.Headers["SGX-TCBm"] = Convert.ToHexString([.. cpuSvn, .. pceSvn]);
        return Results.Text(ToPem(authority.IssuePck(authority.Platform(config))), Pem);
    }

    private static IResult SignedByTcbSigner(TdxCollateral collateral, HttpContext http, string header, ReadOnlyMemory<byte> content)
    {
        SetChain(http, header, collateral.Authority.TcbSigning, collateral.Authority.Root);
        return Results.Bytes(content, Json);
    }

    private static void SetChain(HttpContext http, string header, ReadOnlyMemory<byte> signer, ReadOnlyMemory<byte> root) =>
        http.Response.Headers[header] = Uri.EscapeDataString(ToPem(signer) + ToPem(root));

    private static bool TryReadSeed(HttpContext http, out ulong seed)
    {
        seed = 0;
        return http.Request.RouteValues["seed"] is not string text || ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out seed);
    }

    private static bool TryReadHex(string? text, Span<byte> bytes) =>
        text?.Length == 2 * bytes.Length && Convert.FromHexString(text, bytes, out _, out _) == System.Buffers.OperationStatus.Done;

    private static IResult BadRequest(string problem) => Results.Text(problem + ".\n", statusCode: StatusCodes.Status400BadRequest);

    private static string ToPem(ReadOnlyMemory<byte> der) => PemEncoding.WriteString("CERTIFICATE", der.Span) + "\n";
}
