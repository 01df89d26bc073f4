using System.Diagnostics;
using System.Formats.Asn1;
using System.Numerics;
using System.Security.Cryptography;
using System.Text;
using Xunit;

namespace VmmService.IntegrationTests.Attestation;

/// <summary>The openssl command in a folder of its own. A test that runs it is skipped where there is none.</summary>
internal sealed class Openssl : IDisposable
{
    /// <summary>Seconds since 1970 of a day on which everything but the expired is valid.</summary>
    public const string Now = "1906545600";

    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-openssl-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    public Task WriteAsync(string name, byte[] bytes) => File.WriteAllBytesAsync(Path.Combine(_folder, name), bytes);

    public static byte[] Pem(string label, ReadOnlySpan<byte> der) => Encoding.ASCII.GetBytes(PemEncoding.WriteString(label, der) + "\n");

    /// <summary>A signature as openssl takes it, from two numbers.</summary>
    public static byte[] Signature(BigInteger r, BigInteger s)
    {
        var writer = new AsnWriter(AsnEncodingRules.DER);
        using (writer.PushSequence())
        {
            writer.WriteInteger(r);
            writer.WriteInteger(s);
        }
        return writer.Encode();
    }

    /// <summary>Both streams, as a person would see them.</summary>
    public async Task<string> RunAsync(params string[] arguments)
    {
        var start = new ProcessStartInfo("openssl", arguments) { WorkingDirectory = _folder, RedirectStandardOutput = true, RedirectStandardError = true };
        Process? process = null;
        try
        {
            process = Process.Start(start);
        }
        catch (System.ComponentModel.Win32Exception)
        {
            Assert.Skip("openssl is not installed");
        }
        using (process)
        {
            Task<string> error = process!.StandardError.ReadToEndAsync();
            string output = await process.StandardOutput.ReadToEndAsync();
            await process.WaitForExitAsync();
            return (output + await error).Trim();
        }
    }
}
