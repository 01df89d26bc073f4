using System.Text.Json;

namespace VmmService.Server.Verification.Intel;

/// <summary>What Intel says of a security version, and of those above it up to the next one that it says something of.</summary>
/// <param name="Date">Of the version, as it stands there.</param>
/// <param name="Status">UpToDate, OutOfDate, Revoked, SWHardeningNeeded and others.</param>
/// <param name="Advisories">INTEL-SA-...</param>
internal sealed record TcbStatusText(string Date, string Status, IReadOnlyList<string> Advisories)
{
    private const string UpToDate = "UpToDate";

    public static TcbStatusText Read(JsonFields fields, JsonElement level) =>
        new(fields.Text(level, "tcbDate"), fields.Text(level, "tcbStatus"), fields.OptionalTexts(level, "advisoryIDs"));

    /// <summary>What speaks against relying on it; null where nothing does.</summary>
    /// <param name="what">Whose version it is, with its values.</param>
    public string? Problem(string what) =>
        Status == UpToDate ? null : $"{what} is at the level of {Date}, which is {Status}{(Advisories.Count == 0 ? "" : $" ({string.Join(", ", Advisories)})")}";
}

/// <summary>A level of one security version: of an enclave, of a TDX module.</summary>
internal sealed record IsvLevel(ushort IsvSvn, TcbStatusText Status)
{
    public static IsvLevel[] ReadAll(JsonFields fields, JsonElement from) =>
        [.. fields.Objects(from, "tcbLevels").Select(each => new IsvLevel(fields.Number(fields.Object(each, "tcb"), "isvsvn"), TcbStatusText.Read(fields, each)))];

    /// <summary>What speaks against a version: the first level that it reaches decides.</summary>
    public static string? Problem(IReadOnlyList<IsvLevel> levels, string what, ushort isvSvn)
    {
        IsvLevel? level = levels.FirstOrDefault(each => isvSvn >= each.IsvSvn);
        return level is null ? $"{what} with ISVSVN {isvSvn} reaches no level" : level.Status.Problem($"{what} with ISVSVN {isvSvn}");
    }
}

/// <summary>A level of a platform, which is reached when every version in it is.</summary>
internal sealed record PlatformLevel(byte[] SgxComponents, ushort PceSvn, byte[] TdxComponents, TcbStatusText Status)
{
    private const int Components = 16;

    public static PlatformLevel Read(JsonFields fields, JsonElement level)
    {
        JsonElement tcb = fields.Object(level, "tcb");
        return new(Svns(fields, tcb, "sgxtcbcomponents"), fields.Number(tcb, "pcesvn"), Svns(fields, tcb, "tdxtcbcomponents"), TcbStatusText.Read(fields, level));
    }

    /// <param name="teeTcbSvn">16 bytes.</param>
    /// <param name="firstTdx">The first of them that counts.</param>
    public bool IsReachedBy(PckExtension platform, ReadOnlySpan<byte> teeTcbSvn, int firstTdx) =>
        platform.PceSvn >= PceSvn && Reaches(platform.SgxComponents.Span, SgxComponents) && Reaches(teeTcbSvn[firstTdx..], TdxComponents.AsSpan(firstTdx));

    private static bool Reaches(ReadOnlySpan<byte> versions, ReadOnlySpan<byte> level)
    {
        for (int i = 0; i < versions.Length; i++)
        {
            if (versions[i] < level[i])
            {
                return false;
            }
        }
        return true;
    }

    private static byte[] Svns(JsonFields fields, JsonElement tcb, string name)
    {
        ushort[] svns = [.. fields.Objects(tcb, name).Select(each => fields.Number(each, "svn"))];
        fields.Demand(svns.Length == Components && svns.All(svn => svn <= byte.MaxValue), $"its {name} are not {Components} versions from 0 to {byte.MaxValue}");
        return fields.Problem is null ? [.. svns.Select(svn => (byte)svn)] : new byte[Components];
    }
}
