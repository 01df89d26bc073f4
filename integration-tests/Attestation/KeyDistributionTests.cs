using System.Net;
using System.Security.Cryptography.X509Certificates;
using Microsoft.AspNetCore.Builder;
using VmmService.Client;
using VmmService.Server;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The HTTP paths of the key distribution service: what a verifier fetches there verifies reports, and what cannot be is said.</summary>
public sealed class KeyDistributionTests(KeyDistributionTests.Kds kds) : IClassFixture<KeyDistributionTests.Kds>
{
    private const string Milan = "53494d554c415445442d42592d564d4d534552564943453a00000000000000000000000000000000000000000000000000000000000000000000000000000000";

    [Theory]
    [InlineData(EpycProduct.Milan)]
    [InlineData(EpycProduct.Genoa)]
    [InlineData(EpycProduct.Turin)]
    public async Task WhatAVerifierFetches_VerifiesTheReport(EpycProduct product)
    {
        await using AttestedGuest guest = await AttestedGuest.Launch(kds.Connection.Stubs, new MachineConfig { Product = product });
        MakeEvidenceResponse evidence = await guest.Evidence(EvidenceKind.Sound);
        byte[] report = evidence.Report.ToByteArray();
        bool turin = product == EpycProduct.Turin;
        string hwid = Convert.ToHexStringLower(report.AsSpan(0x1A0, turin ? 8 : 64));
        byte[] tcb = report[0x180..0x188];
        string query = turin
            ? $"fmcSPL={tcb[0]}&blSPL={tcb[1]}&teeSPL={tcb[2]}&snpSPL={tcb[3]}&ucodeSPL={tcb[7]}"
            : $"blSPL={tcb[0]:d2}&teeSPL={tcb[1]:d2}&snpSPL={tcb[6]:d2}&ucodeSPL={tcb[7]:d2}";

        byte[] vcek = await kds.Http.GetByteArrayAsync($"/vcek/v1/{product}/{hwid}?{query}");
        string chain = await kds.Http.GetStringAsync($"/vcek/v1/{product}/cert_chain");
        byte[] crl = await kds.Http.GetByteArrayAsync($"/vcek/v1/{product}/crl");

        var certificates = new X509Certificate2Collection();
        certificates.ImportFromPem(chain);
        Assert.Equal([$"SEV-{product}", $"ARK-{product}"], certificates.Select(each => each.GetNameInfo(X509NameType.SimpleName, forIssuer: false)));
        evidence.Endorsement = Google.Protobuf.ByteString.CopyFrom(vcek);
        evidence.Intermediate = Google.Protobuf.ByteString.CopyFrom(certificates[0].RawData);
        evidence.Ark = Google.Protobuf.ByteString.CopyFrom(certificates[1].RawData);
        evidence.Crl = Google.Protobuf.ByteString.CopyFrom(crl);
        Assert.Empty(AttestedGuest.Verify(evidence));
    }

    [Fact]
    public async Task Vlek_OfAProvider_VerifiesItsReports()
    {
        var machine = new MachineConfig { Product = EpycProduct.Genoa, Attestation = new AttestationConfig { VlekCspId = "my cloud" } };
        await using AttestedGuest guest = await AttestedGuest.Launch(kds.Connection.Stubs, machine);
        MakeEvidenceResponse evidence = await guest.Evidence(EvidenceKind.Sound);

        byte[] vlek = await kds.Http.GetByteArrayAsync("/vlek/v1/Genoa/cert?cspId=my%20cloud&blSPL=3&teeSPL=0&snpSPL=8&ucodeSPL=115");
        var chain = new X509Certificate2Collection();
        chain.ImportFromPem(await kds.Http.GetStringAsync("/vlek/v1/Genoa/cert_chain"));

        Assert.Equal(evidence.Endorsement.ToByteArray(), vlek);
        Assert.Equal(evidence.Intermediate.ToByteArray(), chain[0].RawData);
        Assert.Equal(evidence.Crl.ToByteArray(), await kds.Http.GetByteArrayAsync("/vlek/v1/Genoa/crl"));
    }

    [Theory]
    [InlineData("/vcek/v1/Milan/cert_chain", "application/x-pem-file")]
    [InlineData("/vcek/v1/Milan/crl", "application/pkix-crl")]
    [InlineData($"/vcek/v1/Milan/{Milan}?blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=0", "application/pkix-cert")]
    [InlineData("/vlek/v1/Turin/cert?blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=0", "application/pkix-cert")]
    [InlineData("/vcek/v1/Turin/53494d5500000001?blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=255", "application/pkix-cert")]
    public async Task Answers_HaveTheirTypesAndAreTheSameEachTime(string path, string type)
    {
        using HttpResponseMessage response = await kds.Http.GetAsync(path);

        Assert.Equal((HttpStatusCode.OK, type), (response.StatusCode, response.Content.Headers.ContentType?.MediaType));
        Assert.Equal(await response.Content.ReadAsByteArrayAsync(), await kds.Http.GetByteArrayAsync(path));
    }

    [Theory]
    [InlineData(404, "Rome", "/vcek/v1/Rome/cert_chain")]
    [InlineData(404, "1", "/vcek/v1/1/crl")]
    [InlineData(404, "milan", "/vcek/v1/milan/crl")]
    [InlineData(404, "no id of a simulated", "/vcek/v1/Milan/d49554ec?blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=0")]
    [InlineData(404, "no id of a simulated", "/vcek/v1/Turin/1e550a8ee5cf9f4d?blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=0")] // silicon's
    [InlineData(404, "no id of a simulated", "/vcek/v1/Milan/xyz")]
    [InlineData(404, "no id of a simulated", $"/vcek/v1/Milan/{Milan}00?blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=0")]
    [InlineData(400, "blSPL", $"/vcek/v1/Milan/{Milan}")]
    [InlineData(400, "ucodeSPL", $"/vcek/v1/Milan/{Milan}?blSPL=0&teeSPL=0&snpSPL=0")]
    [InlineData(400, "teeSPL", $"/vcek/v1/Milan/{Milan}?blSPL=0&teeSPL=256&snpSPL=0&ucodeSPL=0")]
    [InlineData(400, "snpSPL", $"/vcek/v1/Milan/{Milan}?blSPL=0&teeSPL=0&snpSPL=-1&ucodeSPL=0")]
    [InlineData(400, "blSPL", $"/vcek/v1/Milan/{Milan}?blSPL=0&blSPL=1&teeSPL=0&snpSPL=0&ucodeSPL=0")]
    [InlineData(400, "fmcSPL", "/vcek/v1/Turin/53494d5500000001?fmcSPL=x&blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=0")]
    [InlineData(400, "cspId", "/vlek/v1/Milan/cert?cspId=&blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=0")]
    [InlineData(400, "cspId", "/vlek/v1/Milan/cert?cspId=%C3%A9&blSPL=0&teeSPL=0&snpSPL=0&ucodeSPL=0")]
    public async Task Requests_ThatCannotBe_AreAnsweredInWords(int status, string says, string path)
    {
        using HttpResponseMessage response = await kds.Http.GetAsync(path);

        Assert.Equal(status, (int)response.StatusCode);
        Assert.Contains(says, await response.Content.ReadAsStringAsync(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(70000)]
    [InlineData(-2)]
    public void APortThatIsNone_IsRefused(int port)
    {
        ServerConfigurationException refused = Assert.Throws<ServerConfigurationException>(() => VmmServer.Build([], options =>
        {
            options.UnixSocket = "";
            options.Port = 0;
            options.KdsPort = port;
        }));

        Assert.Contains("kds-port", refused.Message, StringComparison.Ordinal);
    }

    /// <summary>A daemon that serves both: gRPC on a Unix socket, the key distribution paths on a free port.</summary>
    public sealed class Kds : IAsyncLifetime
    {
        private readonly string _folder = Directory.CreateTempSubdirectory("vmm-kds-").FullName;
        private WebApplication? _app;

        public HttpClient Http { get; private set; } = null!;

        public VmmConnection Connection { get; private set; } = null!;

        public async ValueTask InitializeAsync()
        {
            string socket = Path.Combine(_folder, "vmm.sock");
            _app = VmmServer.Build(["--kds-port", "0"], options =>
            {
                options.UnixSocket = socket;
                options.Port = -1;
                options.Quiet = true;
            });
            await _app.StartAsync();
            Http = new HttpClient { BaseAddress = new Uri(_app.Urls.Single(url => url.StartsWith("http://127.0.0.1:", StringComparison.Ordinal))) };
            Connection = VmmConnection.Connect("unix://" + socket);
        }

        public async ValueTask DisposeAsync()
        {
            Http.Dispose();
            await Connection.DisposeAsync();
            await _app!.StopAsync();
            await _app.DisposeAsync();
            Directory.Delete(_folder, recursive: true);
        }
    }
}
