using System.Security.Cryptography;
using System.Text;

namespace VmmService.Server.Verification.Intel;

/// <summary>The certificates of a quote: the platform's key (leaf), the platform CA (intermediate), the root, and whether they have the form of Intel's.</summary>
internal sealed class PckChain
{
    private static readonly (string Role, string CommonName)[] s_members =
        [("leaf", "Intel SGX PCK Certificate"), ("intermediate", "Intel SGX PCK Platform CA"), ("root", "Intel SGX Root CA")];

    // Authority key, CRL distribution points, subject key, key usage, basic constraints, SGX.
    private static readonly string[] s_leafExtensions = ["2.5.29.35", "2.5.29.31", "2.5.29.14", "2.5.29.15", "2.5.29.19", PckExtension.Oid];

    private readonly CertificateFacts?[] _certificates;

    private PckChain(CertificateFacts?[] certificates, string? problem)
    {
        _certificates = certificates;
        Platform = Leaf is { } leaf && leaf.Extensions.TryGetValue(PckExtension.Oid, out ReadOnlyMemory<byte> extension) ? PckExtension.Read(extension) : null;
        FormProblem = problem ?? MemberProblem() ?? LinkProblem();
    }

    /// <summary>No chain: there is no quote that it would be of.</summary>
    public static PckChain None { get; } = new([], "there is none");

    /// <summary>Null where there is none, or it cannot be read; so are the next two.</summary>
    public CertificateFacts? Leaf => Member(0);

    public CertificateFacts? Intermediate => Member(1);

    public CertificateFacts? Root => Member(2);

    /// <summary>What the leaf says of the platform; null where it does not.</summary>
    public PckExtension? Platform { get; }

    /// <summary>What is not as in Intel's chains; null where everything is.</summary>
    public string? FormProblem { get; }

    /// <summary>A certificate says that it is simulated.</summary>
    public bool IsSimulated => _certificates.Any(each => SignedDer.SaysSimulated(each?.Certificate));

    /// <summary>Any bytes are a chain, perhaps one with a problem.</summary>
    public static PckChain Read(ReadOnlyMemory<byte> pem)
    {
        string text = Encoding.Latin1.GetString(pem.Span);
        text = text.EndsWith('\0') ? text[..^1] : text;
        List<CertificateFacts?> certificates = [];
        string? problem = null;
        int at = 0;
        while (certificates.Count < s_members.Length && PemEncoding.TryFind(text.AsSpan(at), out PemFields fields))
        {
            ReadOnlySpan<char> left = text.AsSpan(at);
            (int start, int length) = fields.Location.GetOffsetAndLength(left.Length);
            if (!left[..start].IsWhiteSpace() || !left[fields.Label].SequenceEqual("CERTIFICATE"))
            {
                problem ??= $"at offset 0x{at:x} of the chain there is something else than a certificate";
            }
            byte[] der = new byte[fields.DecodedDataLength];
            certificates.Add(Convert.TryFromBase64Chars(left[fields.Base64Data], der, out int written) ? CertificateFacts.Read(der.AsMemory(0, written)) : null);
            at += start + length;
        }
        // The end of its line belongs to the last block.
        if (certificates.Count == s_members.Length && text[at..] is not ("" or "\n" or "\r\n"))
        {
            problem ??= $"{text.Length - at} bytes stand behind the third certificate, where one NUL may be";
        }
        return new PckChain([.. certificates], problem);
    }

    private CertificateFacts? Member(int index) => index < _certificates.Length ? _certificates[index] : null;

    private string? MemberProblem()
    {
        if (_certificates.Length < s_members.Length)
        {
            return $"it has {_certificates.Length} certificates in PEM, not {s_members.Length}";
        }
        for (int i = 0; i < s_members.Length; i++)
        {
            (string role, string commonName) = s_members[i];
            if (_certificates[i] is not { } each)
            {
                return $"the {role} is no certificate";
            }
            string? problem = each switch
            {
                _ when each.CommonName != commonName => $"has the common name \"{each.CommonName}\", not \"{commonName}\"",
                { Version: not 3 } => $"is of X.509 version {each.Version}, not 3",
                { Algorithm: not CertificateFacts.EcdsaWithSha256 } => $"is signed with the algorithm {each.Algorithm}, not ECDSA with SHA-256",
                { PublicKey: null } => "has no P-256 key",
                _ when each.IsAuthority != (i > 0) => each.IsAuthority ? "may sign certificates" : "may not sign certificates",
                _ => null,
            };
            if (problem is not null)
            {
                return $"the {role} {problem}";
            }
        }
        return null;
    }

    private string? LinkProblem()
    {
        for (int i = 0; i < s_members.Length; i++)
        {
            int issuer = Math.Min(i + 1, s_members.Length - 1);
            if (_certificates[i]!.Issuer != _certificates[issuer]!.Subject)
            {
                return $"the {s_members[i].Role} names \"{_certificates[i]!.Issuer}\" as its issuer, and the {s_members[issuer].Role} is \"{_certificates[issuer]!.Subject}\"";
            }
        }
        IReadOnlyDictionary<string, ReadOnlyMemory<byte>> extensions = Leaf!.Extensions;
        return !s_leafExtensions.ToHashSet().SetEquals(extensions.Keys)
            ? $"the leaf has the extensions {string.Join(", ", extensions.Keys.Order(StringComparer.Ordinal))}, not {string.Join(", ", s_leafExtensions)}"
            : Platform is null ? "the SGX extension of the leaf cannot be read, or has not all of its values"
            : null;
    }
}
