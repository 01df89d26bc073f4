using System.Globalization;

namespace VmmService.Server.Scripts;

/// <summary>A value of a variable or of a step's result.</summary>
internal abstract record ScriptValue
{
    /// <summary>As a person would write it.</summary>
    public abstract string Show();

    public static NumberValue Of(Int128 number) => new(number);

    public static TextValue Of(string text) => new(text);

    public static BytesValue Of(ReadOnlyMemory<byte> bytes) => new(bytes);
}

/// <summary>A number with room for every signed and unsigned 64-bit one; a field says which of them it takes.</summary>
internal sealed record NumberValue(Int128 Number) : ScriptValue
{
    public override string Show() => Number < 0x10000 ? Number.ToString(CultureInfo.InvariantCulture)
        : "0x" + Number.ToString("x", CultureInfo.InvariantCulture);
}

internal sealed record TextValue(string Text) : ScriptValue
{
    public override string Show() => Text;
}

/// <summary>One of several texts: an expectation is met by any of them.</summary>
internal sealed record TextsValue(IReadOnlyList<string> Texts) : ScriptValue
{
    public override string Show() => Texts.Count == 0 ? "none" : string.Join(", ", Texts);
}

internal sealed record BytesValue(ReadOnlyMemory<byte> Bytes) : ScriptValue
{
    private const int Shown = 32;

    public override string Show() => Bytes.Length <= Shown
        ? Convert.ToHexStringLower(Bytes.Span)
        : string.Create(CultureInfo.InvariantCulture, $"{Convert.ToHexStringLower(Bytes.Span[..Shown])}... ({Bytes.Length} bytes)");
}
