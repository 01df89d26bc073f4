using System.CommandLine;
using System.Globalization;
using System.Numerics;

namespace VmmService.Vmm;

/// <summary>Numbers on the command line, decimal or with 0x hexadecimal, and how numbers are written.</summary>
internal static class Numbers
{
    /// <summary>An option that takes such a number.</summary>
    /// <param name="name">With its dashes.</param>
    /// <param name="description">For --help.</param>
    /// <param name="helpName">Placeholder for --help.</param>
    /// <param name="value">Default; null for none.</param>
    /// <param name="max">Largest legal value.</param>
    public static Option<T?> Option<T>(string name, string description, string helpName, T? value = null, T? max = null)
        where T : struct, IBinaryInteger<T>, IMinMaxValue<T>
    {
        T limit = max ?? T.MaxValue;
        return new Option<T?>(name)
        {
            Description = description,
            HelpName = helpName,
            DefaultValueFactory = value is null ? null : _ => value,
            CustomParser = result =>
            {
                string text = result.Tokens[0].Value;
                if (TryParse(text, out T number) && number <= limit)
                    return number;

                result.AddError($"{name} {text}: not a number from 0 to {limit} (0x{limit:x}); decimal and 0x hexadecimal are understood");
                return null;
            },
        };
    }

    public static bool TryParse<T>(string text, out T number)
        where T : struct, IBinaryInteger<T> =>
        text.StartsWith("0x", StringComparison.OrdinalIgnoreCase)
            ? T.TryParse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out number)
            : T.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out number);

    public static string Hex(ulong value) => $"0x{value.ToString("x", CultureInfo.InvariantCulture)}";

    /// <summary>Bytes for a person: 128 KiB, 2 MiB, 84 KiB, 100 B.</summary>
    public static string Size(ulong bytes)
    {
        string[] units = ["B", "KiB", "MiB", "GiB", "TiB"];
        int unit = 0;
        while (unit < units.Length - 1 && bytes != 0 && bytes % 1024 == 0)
        {
            bytes /= 1024;
            unit++;
        }
        return $"{bytes.ToString(CultureInfo.InvariantCulture)} {units[unit]}";
    }
}
