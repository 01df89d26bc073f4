using System.Text.Json;

namespace VmmService.Server.Verification.Intel;

/// <summary>Who signed a TDX module, and with which attributes. Of a module of Intel's in production both are zeros.</summary>
/// <param name="Id">TDX_ and two hexadecimal digits, of TEE_TCB_SVN[1]; empty where one identity stands for all.</param>
/// <param name="Levels">Newest first.</param>
internal sealed record TdxModuleIdentity(string Id, byte[] MrSigner, byte[] Attributes, byte[] AttributesMask, IReadOnlyList<IsvLevel> Levels)
{
    /// <summary>Of a module in production, when nothing else is known.</summary>
    public static TdxModuleIdentity Production { get; } = new("", new byte[48], new byte[8], [.. Enumerable.Repeat(byte.MaxValue, 8)], []);

    public static TdxModuleIdentity Read(JsonFields fields, JsonElement module, string id, IReadOnlyList<IsvLevel> levels) =>
        new(id, fields.Hex(module, "mrsigner", 48), fields.Hex(module, "attributes", 8), fields.Hex(module, "attributesMask", 8), levels);
}

/// <summary>TCB information of a family of platforms: its security versions and how they stand, in the form of version 3, which tells of TDX.</summary>
/// <param name="Module">Of modules before 1.5.</param>
/// <param name="Modules">Of those from 1.5 on, one for each major version.</param>
/// <param name="Levels">Newest first.</param>
internal sealed record TcbInfo(
    DateTimeOffset IssueDate, DateTimeOffset NextUpdate, byte[] Fmspc, byte[] PceId, TdxModuleIdentity Module, IReadOnlyList<TdxModuleIdentity> Modules, IReadOnlyList<PlatformLevel> Levels)
{
    public const string Name = "tcbInfo";

    /// <summary>Null for what is not of this form.</summary>
    public static TcbInfo? Read(JsonElement content, out string? problem)
    {
        var fields = new JsonFields(Name);
        string id = fields.Text(content, "id");
        fields.Demand(id == "TDX", $"its id is \"{id}\", not \"TDX\"");
        ushort version = fields.Number(content, "version");
        fields.Demand(version == 3, $"it is of version {version}, not 3");
        var info = new TcbInfo(
            fields.Time(content, "issueDate"),
            fields.Time(content, "nextUpdate"),
            fields.Hex(content, "fmspc", 6),
            fields.Hex(content, "pceId", 2),
            TdxModuleIdentity.Read(fields, fields.Object(content, "tdxModule"), "", []),
            [.. fields.OptionalObjects(content, "tdxModuleIdentities").Select(each => TdxModuleIdentity.Read(fields, each, fields.Text(each, "id"), IsvLevel.ReadAll(fields, each)))],
            [.. fields.Objects(content, "tcbLevels").Select(each => PlatformLevel.Read(fields, each))]);
        problem = fields.Problem;
        return problem is null ? info : null;
    }

    /// <summary>The identity of the module that a TEE_TCB_SVN names; null where nothing is said of it.</summary>
    public TdxModuleIdentity? ModuleOf(ReadOnlySpan<byte> teeTcbSvn)
    {
        string id = $"TDX_{teeTcbSvn[1]:X2}";
        return teeTcbSvn[1] == 0 ? Module : Modules.FirstOrDefault(each => string.Equals(each.Id, id, StringComparison.OrdinalIgnoreCase));
    }

    /// <summary>What speaks against the versions of a platform and its module; null where nothing does.</summary>
    public string? StatusProblem(PckExtension platform, ReadOnlySpan<byte> teeTcbSvn)
    {
        // From 1.5 on the first two say which module it is, and that has levels of its own.
        bool ownLevels = teeTcbSvn[1] > 0;
        string what = $"the platform (components {Convert.ToHexStringLower(platform.SgxComponents.Span)}, PCESVN {platform.PceSvn}, TEE_TCB_SVN {Convert.ToHexStringLower(teeTcbSvn)})";
        PlatformLevel? reached = null;
        foreach (PlatformLevel level in Levels)
        {
            if (level.IsReachedBy(platform, teeTcbSvn, ownLevels ? 2 : 0))
            {
                reached = level;
                break;
            }
        }
        string? problem = reached is null ? $"{what} reaches no level" : reached.Status.Problem(what);
        string? ofModule = !ownLevels ? null
            : ModuleOf(teeTcbSvn) is { } module ? IsvLevel.Problem(module.Levels, $"the TDX module {module.Id}", teeTcbSvn[0])
            : $"nothing is said of the TDX module TDX_{teeTcbSvn[1]:X2}";
        return problem is null ? ofModule : ofModule is null ? problem : $"{problem}; {ofModule}";
    }
}

/// <summary>Which enclave may quote TDs: the identity of Intel's, in the form of version 2.</summary>
/// <param name="Levels">Newest first.</param>
internal sealed record QeIdentity(
    DateTimeOffset IssueDate, DateTimeOffset NextUpdate, byte[] MiscSelect, byte[] MiscSelectMask, byte[] Attributes, byte[] AttributesMask, byte[] MrSigner, ushort IsvProdId,
    IReadOnlyList<IsvLevel> Levels)
{
    public const string Name = "enclaveIdentity";

    /// <summary>Null for what is not of this form.</summary>
    public static QeIdentity? Read(JsonElement content, out string? problem)
    {
        var fields = new JsonFields(Name);
        string id = fields.Text(content, "id");
        fields.Demand(id == "TD_QE", $"its id is \"{id}\", not \"TD_QE\"");
        ushort version = fields.Number(content, "version");
        fields.Demand(version == 2, $"it is of version {version}, not 2");
        var identity = new QeIdentity(
            fields.Time(content, "issueDate"),
            fields.Time(content, "nextUpdate"),
            fields.Hex(content, "miscselect", 4),
            fields.Hex(content, "miscselectMask", 4),
            fields.Hex(content, "attributes", 16),
            fields.Hex(content, "attributesMask", 16),
            fields.Hex(content, "mrsigner", 32),
            fields.Number(content, "isvprodid"),
            IsvLevel.ReadAll(fields, content));
        problem = fields.Problem;
        return problem is null ? identity : null;
    }

    /// <summary>In what a quoting enclave is another one, or how its version stands; null where nothing speaks against it.</summary>
    public string? Problem(QuoteParts quote) => Masked.Problem("MISCSELECT", quote.QeMiscSelect, MiscSelect, MiscSelectMask)
        ?? Masked.Problem("ATTRIBUTES", quote.QeAttributes, Attributes, AttributesMask)
        ?? (quote.QeMrSigner.SequenceEqual(MrSigner) ? null : $"MRSIGNER is {Convert.ToHexStringLower(quote.QeMrSigner)}, not {Convert.ToHexStringLower(MrSigner)}")
        ?? (quote.QeIsvProdId == IsvProdId ? null : $"ISVPRODID is {quote.QeIsvProdId}, not {IsvProdId}")
        ?? IsvLevel.Problem(Levels, "the quoting enclave", quote.QeIsvSvn);
}

/// <summary>Fields of which some bits do not matter.</summary>
internal static class Masked
{
    /// <summary>What was found instead; null where what matters is as it has to be.</summary>
    public static string? Problem(string what, ReadOnlySpan<byte> found, ReadOnlySpan<byte> expected, ReadOnlySpan<byte> mask)
    {
        for (int i = 0; i < found.Length; i++)
        {
            if ((found[i] & mask[i]) != expected[i])
            {
                return $"{what} is {Convert.ToHexStringLower(found)}, and has to be {Convert.ToHexStringLower(expected)} under the mask {Convert.ToHexStringLower(mask)}";
            }
        }
        return null;
    }
}
