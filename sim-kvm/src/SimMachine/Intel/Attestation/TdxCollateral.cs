using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using System.Text.Json;

namespace SimMachine.Intel.Attestation;

/// <summary>How a TCB stands.</summary>
public enum TcbStatus
{
    UpToDate,
    OutOfDate,
}

/// <summary>A platform's versions that have a status: those at or above, in every part, have at least this one.</summary>
/// <param name="SgxComponents">16 security versions.</param>
/// <param name="PceSvn">Of the provisioning certification enclave.</param>
/// <param name="TdxComponents">16 security versions: TEE_TCB_SVN.</param>
/// <param name="Date">When it came out.</param>
/// <param name="Status">What to say of it.</param>
public sealed record TcbLevel(ReadOnlyMemory<byte> SgxComponents, ushort PceSvn, ReadOnlyMemory<byte> TdxComponents, DateTimeOffset Date, TcbStatus Status);

/// <summary>
/// What Intel's provisioning certification service tells of a platform: TCB information and the quoting enclave's identity, JSON signed by the TCB signer, in the form of its
/// version 4. A verifier compares a quote with them; the revocation lists are <see cref="TdxAuthority"/>'s.
/// </summary>
/// <remarks>Of all machines of a family (FMSPC) alike: newest is what a machine with the defaults of <see cref="TdxModuleConfig"/> has, and one step below everything is out of
/// date.</remarks>
public sealed class TdxCollateral
{
    private const int EvaluationNumber = 17;

    private readonly Lazy<byte[]> _tcbInfo;
    private readonly Lazy<byte[]> _qeIdentity;

    /// <param name="authority">Signs.</param>
    /// <param name="levels">Statuses by version, newest first; null for those that the authority publishes.</param>
    /// <param name="nextUpdate">When it is to be asked again; null for the end of the authority.</param>
    /// <param name="fmspc">Of which family; null for the authority's machine.</param>
    internal TdxCollateral(TdxAuthority authority, IReadOnlyList<TcbLevel>? levels = null, DateTimeOffset? nextUpdate = null, ReadOnlyMemory<byte>? fmspc = null)
    {
        Authority = authority;
        Levels = levels ?? PublishedLevels();
        NextUpdate = nextUpdate ?? TdxAuthority.NotAfter;
        Fmspc = fmspc ?? authority.Fmspc;
        _tcbInfo = new(() => Sign("tcbInfo", WriteTcbInfo));
        _qeIdentity = new(() => Sign("enclaveIdentity", WriteQeIdentity));
    }

    public TdxAuthority Authority { get; }

    /// <summary>Newest first.</summary>
    public IReadOnlyList<TcbLevel> Levels { get; }

    public DateTimeOffset NextUpdate { get; }

    public ReadOnlyMemory<byte> Fmspc { get; }

    /// <summary>TCB information, as /tdx/certification/v4/tcb answers it.</summary>
    public ReadOnlyMemory<byte> TcbInfo => _tcbInfo.Value;

    /// <summary>The quoting enclave's identity, as /tdx/certification/v4/qe/identity answers it.</summary>
    public ReadOnlyMemory<byte> QeIdentity => _qeIdentity.Value;

    /// <summary>What is published for the machine of an authority.</summary>
    public static TdxCollateral Of(TdxAuthority authority) => new(authority);

    /// <summary>The status of a platform: that of the first level that it reaches in every part.</summary>
    /// <param name="platform">As its PCK certificate has it.</param>
    /// <param name="teeTcbSvn">TEE_TCB_SVN of the report.</param>
    public TcbStatus StatusOf(PckPlatform platform, ReadOnlySpan<byte> teeTcbSvn)
    {
        foreach (TcbLevel level in Levels)
        {
            if (Reaches(platform.SgxComponents.Span, level.SgxComponents.Span) && platform.PceSvn >= level.PceSvn && Reaches(teeTcbSvn, level.TdxComponents.Span))
            {
                return level.Status;
            }
        }
        return TcbStatus.OutOfDate;
    }

    private static bool Reaches(ReadOnlySpan<byte> versions, ReadOnlySpan<byte> level)
    {
        for (int i = 0; i < level.Length; i++)
        {
            if (versions[i] < level[i])
            {
                return false;
            }
        }
        return true;
    }

    private static TcbLevel[] PublishedLevels()
    {
        var newest = new TdxModuleConfig();
        var date = new DateTimeOffset(2024, 3, 13, 0, 0, 0, TimeSpan.Zero);
        return
        [
            new(newest.CpuSvn, newest.PceSvn, newest.TeeTcbSvn, date, TcbStatus.UpToDate),
            new(new byte[16], 0, new byte[16], date.AddYears(-1), TcbStatus.OutOfDate),
        ];
    }

    private void WriteTcbInfo(Utf8JsonWriter json)
    {
        json.WriteString("id", "TDX");
        json.WriteNumber("version", 3);
        WriteDates(json);
        json.WriteString("fmspc", Hex(Fmspc.Span));
        json.WriteString("pceId", Hex(PckPlatform.PceId));
        json.WriteNumber("tcbType", 0);
        json.WriteNumber("tcbEvaluationDataNumber", EvaluationNumber);
        json.WriteStartObject("tdxModule");
        WriteModule(json);
        json.WriteEndObject();

        // Modules of 1.5 and later are judged by an identity of their own, which byte 1 of TEE_TCB_SVN names.
        json.WriteStartArray("tdxModuleIdentities");
        foreach (IGrouping<byte, TcbLevel> module in Levels.Where(level => level.TdxComponents.Span[1] > 0).GroupBy(level => level.TdxComponents.Span[1]))
        {
            json.WriteStartObject();
            json.WriteString("id", $"TDX_{module.Key:X2}");
            WriteModule(json);
            json.WriteStartArray("tcbLevels");
            foreach (TcbLevel level in module)
            {
                WriteIsvSvn(json, level.TdxComponents.Span[0], level.Date, level.Status);
            }
            if (module.All(level => level.Status == TcbStatus.UpToDate))
            {
                WriteIsvSvn(json, 0, module.First().Date.AddYears(-1), TcbStatus.OutOfDate);
            }
            json.WriteEndArray();
            json.WriteEndObject();
        }
        json.WriteEndArray();

        json.WriteStartArray("tcbLevels");
        foreach (TcbLevel level in Levels)
        {
            json.WriteStartObject();
            json.WriteStartObject("tcb");
            WriteComponents(json, "sgxtcbcomponents", level.SgxComponents.Span);
            json.WriteNumber("pcesvn", level.PceSvn);
            WriteComponents(json, "tdxtcbcomponents", level.TdxComponents.Span);
            json.WriteEndObject();
            WriteStatus(json, level.Date, level.Status);
            json.WriteEndObject();
        }
        json.WriteEndArray();
    }

    private void WriteQeIdentity(Utf8JsonWriter json)
    {
        json.WriteString("id", "TD_QE");
        json.WriteNumber("version", 2);
        WriteDates(json);
        json.WriteNumber("tcbEvaluationDataNumber", EvaluationNumber);
        json.WriteString("miscselect", "00000000");
        json.WriteString("miscselectMask", "FFFFFFFF");
        json.WriteString("attributes", Attributes(QuotingEnclaveIdentity.Flags & QuotingEnclaveIdentity.FlagsMask, 0));
        json.WriteString("attributesMask", Attributes(QuotingEnclaveIdentity.FlagsMask, 0));
        json.WriteString("mrsigner", Hex(QuotingEnclaveIdentity.MrSigner));
        json.WriteNumber("isvprodid", QuotingEnclaveIdentity.IsvProdId);
        json.WriteStartArray("tcbLevels");
        WriteIsvSvn(json, QuotingEnclaveIdentity.IsvSvn, Levels[0].Date, TcbStatus.UpToDate);
        WriteIsvSvn(json, 0, Levels[0].Date.AddYears(-1), TcbStatus.OutOfDate);
        json.WriteEndArray();
    }

    // A production module: no signer but Intel, no attribute.
    private static void WriteModule(Utf8JsonWriter json)
    {
        json.WriteString("mrsigner", Hex(new byte[TdxModuleConfig.MeasurementSize]));
        json.WriteString("attributes", Hex(new byte[8]));
        json.WriteString("attributesMask", "FFFFFFFFFFFFFFFF");
    }

    private static void WriteIsvSvn(Utf8JsonWriter json, ushort isvSvn, DateTimeOffset date, TcbStatus status)
    {
        json.WriteStartObject();
        json.WriteStartObject("tcb");
        json.WriteNumber("isvsvn", isvSvn);
        json.WriteEndObject();
        WriteStatus(json, date, status);
        json.WriteEndObject();
    }

    private static void WriteStatus(Utf8JsonWriter json, DateTimeOffset date, TcbStatus status)
    {
        json.WriteString("tcbDate", Time(date));
        json.WriteString("tcbStatus", status.ToString());
    }

    private static void WriteComponents(Utf8JsonWriter json, string name, ReadOnlySpan<byte> components)
    {
        json.WriteStartArray(name);
        foreach (byte svn in components)
        {
            json.WriteStartObject();
            json.WriteNumber("svn", svn);
            json.WriteEndObject();
        }
        json.WriteEndArray();
    }

    private void WriteDates(Utf8JsonWriter json)
    {
        json.WriteString("issueDate", Time(TdxAuthority.NotBefore));
        json.WriteString("nextUpdate", Time(NextUpdate));
    }

    // The signature is over the bytes of the object as they stand in the answer, so they are written once.
    private byte[] Sign(string name, Action<Utf8JsonWriter> write)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer))
        {
            json.WriteStartObject();
            write(json);
            json.WriteEndObject();
        }
        byte[] content = buffer.ToArray();
        string signature = Convert.ToHexStringLower(Authority.TcbSigningKey.Sign(content));
        return Encoding.UTF8.GetBytes($"{{\"{name}\":{Encoding.UTF8.GetString(content)},\"signature\":\"{signature}\"}}");
    }

    private static string Attributes(ulong flags, ulong xfrm)
    {
        byte[] bytes = new byte[16];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, flags);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(8), xfrm);
        return Hex(bytes);
    }

    private static string Hex(ReadOnlySpan<byte> bytes) => Convert.ToHexString(bytes);

    private static string Time(DateTimeOffset time) => time.ToString("yyyy-MM-dd'T'HH:mm:ss'Z'", CultureInfo.InvariantCulture);
}
