using System.Net;
using System.Security.Cryptography.X509Certificates;
using Google.Protobuf;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The HTTP paths of the provisioning certification service: what a verifier fetches there verifies quotes, and what cannot be is said.</summary>
public sealed class ProvisioningCertificationTests(KeyDistributionTests.Kds kds) : IClassFixture<KeyDistributionTests.Kds>
{
    private const string Fmspc0 = "53494D";

    [Theory]
    [InlineData(0ul, "")]
    [InlineData(41ul, "/seed/41")]
    public async Task WhatAVerifierFetches_VerifiesTheQuote(ulong seed, string prefix)
    {
        await using RemoteHost host = await QuotedTd.CreateHost(kds.Connection, seed);
        TdxReport report = await QuotedTd.Report(host);
        ByteString quote = (await host.TdxAttestation.GetQuoteAsync(report.Bytes)).Quote;
        using var leaf = X509Certificate2.CreateFromPem(TdxQuote.Parse(quote.Memory).PckChainPem);
        string fmspc = Convert.ToHexString(TdxVerifier.SgxExtensionOf(leaf)["4"]);
        Assert.StartsWith(Fmspc0, fmspc, StringComparison.Ordinal);

        (byte[] tcbInfo, X509Certificate2Collection tcbChain) = await Get($"{prefix}/tdx/certification/v4/tcb?fmspc={fmspc}", "TCB-Info-Issuer-Chain");
        (byte[] identity, X509Certificate2Collection identityChain) = await Get($"{prefix}/tdx/certification/v4/qe/identity", "SGX-Enclave-Identity-Issuer-Chain");
        (byte[] pckCrl, X509Certificate2Collection crlChain) = await Get($"{prefix}/sgx/certification/v4/pckcrl?ca=platform&encoding=der", "SGX-PCK-CRL-Issuer-Chain");
        byte[] rootCrl = Convert.FromHexString(await kds.Http.GetStringAsync($"{prefix}/sgx/certification/v4/rootcacrl"));

        Assert.Equal(rootCrl, await kds.Http.GetByteArrayAsync($"{prefix}/IntelSGXRootCA.der"));
        Assert.Equal(tcbChain[0].RawData, identityChain[0].RawData);
        Assert.Equal(["Intel SGX PCK Platform CA", "Intel SGX Root CA"], crlChain.Select(each => each.GetNameInfo(X509NameType.SimpleName, forIssuer: false)));
        var collateral = new GetQuoteCollateralResponse
        {
            Root = ByteString.CopyFrom(tcbChain[1].RawData),
            TcbSigning = ByteString.CopyFrom(tcbChain[0].RawData),
            TcbInfo = ByteString.CopyFrom(tcbInfo),
            QeIdentity = ByteString.CopyFrom(identity),
            PckCrl = ByteString.CopyFrom(pckCrl),
            RootCrl = ByteString.CopyFrom(rootCrl),
        };
        Assert.Empty(QuotedTd.Verify(quote, collateral, report));

        string pem = await kds.Http.GetStringAsync($"{prefix}/sgx/certification/v4/pckcrl?ca=platform");
        Assert.StartsWith("-----BEGIN X509 CRL-----", pem, StringComparison.Ordinal);
    }

    [Fact]
    public async Task PckCertificate_OfThePlatformsVersions_IsThatOfTheQuote()
    {
        await using RemoteHost host = await QuotedTd.CreateHost(kds.Connection);
        TdxReport report = await QuotedTd.Report(host);
        GetQuoteCollateralResponse collateral = await host.TdxAttestation.GetCollateralAsync();

        using HttpResponseMessage response = await kds.Http.GetAsync(
            $"/sgx/certification/v4/pckcert?encrypted_ppid=00&cpusvn={Convert.ToHexString(report.CpuSvn.Span)}&pcesvn=0D00&pceid=0000");

        using var pck = X509Certificate2.CreateFromPem(await response.Content.ReadAsStringAsync());
        Assert.Equal(collateral.Pck.ToByteArray(), pck.RawData);
        Assert.Equal([Convert.ToHexString(collateral.Fmspc.Span)], response.Headers.GetValues("SGX-FMSPC"));
        Assert.Equal([Convert.ToHexString(report.CpuSvn.Span) + "0D00"], response.Headers.GetValues("SGX-TCBm"));
    }

    [Theory]
    [InlineData(404, "no family", "/tdx/certification/v4/tcb?fmspc=00906ED50000")] // silicon's
    [InlineData(400, "fmspc", "/tdx/certification/v4/tcb")]
    [InlineData(400, "fmspc", "/tdx/certification/v4/tcb?fmspc=00906ED5000")]
    [InlineData(400, "fmspc", "/tdx/certification/v4/tcb?fmspc=00906ED5000x")]
    [InlineData(400, "ca must be", "/sgx/certification/v4/pckcrl")]
    [InlineData(400, "ca must be", "/sgx/certification/v4/pckcrl?ca=processor")]
    [InlineData(400, "encoding", "/sgx/certification/v4/pckcrl?ca=platform&encoding=xml")]
    [InlineData(400, "cpusvn", "/sgx/certification/v4/pckcert")]
    [InlineData(400, "pcesvn", "/sgx/certification/v4/pckcert?cpusvn=00000000000000000000000000000000&pcesvn=0D&pceid=0000")]
    [InlineData(400, "pceid", "/sgx/certification/v4/pckcert?cpusvn=00000000000000000000000000000000&pcesvn=0D00&pceid=0001")]
    [InlineData(400, "seed", "/seed/x/tdx/certification/v4/qe/identity")]
    [InlineData(400, "seed", "/seed/18446744073709551616/tdx/certification/v4/qe/identity")]
    public async Task Requests_ThatCannotBe_AreAnsweredInWords(int status, string says, string path)
    {
        using HttpResponseMessage response = await kds.Http.GetAsync(path);
        Assert.Equal(status, (int)response.StatusCode);
        Assert.Contains(says, await response.Content.ReadAsStringAsync(), StringComparison.Ordinal);
    }

    private async Task<(byte[] Content, X509Certificate2Collection Chain)> Get(string path, string header)
    {
        using HttpResponseMessage response = await kds.Http.GetAsync(path);
        Assert.Equal(HttpStatusCode.OK, response.StatusCode);
        var chain = new X509Certificate2Collection();
        chain.ImportFromPem(Uri.UnescapeDataString(response.Headers.GetValues(header).Single()));
        return (await response.Content.ReadAsByteArrayAsync(), chain);
    }
}
