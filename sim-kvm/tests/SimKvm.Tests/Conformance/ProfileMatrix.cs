using Xunit;

namespace SimKvm.Tests.Conformance;

/// <summary>profile-matrix.csv: what each kernel generation does, by behaviour and profile.</summary>
internal static class ProfileMatrix
{
    private const string Absent = "-";

    private static readonly string[][] Rows = [.. File.ReadLines(Path.Combine(AppContext.BaseDirectory, "Conformance", "profile-matrix.csv"))
        .Where(line => line.Length > 0 && line[0] != '#').Select(line => line.Split(';'))];

    public static IReadOnlyList<string> Profiles => Rows[0][2..];

    public static IEnumerable<string> Behaviours => Rows.Skip(1).Select(row => row[1]);

    public static IEnumerable<string[]> AllRows => Rows;

    /// <summary>Behaviour, profile, what it does, and whether a source says so.</summary>
    public static TheoryData<string, string, string, bool> Cells
    {
        get
        {
            var data = new TheoryData<string, string, string, bool>();
            foreach (string[] row in Rows.Skip(1))
            {
                for (int column = 2; column < row.Length; column++)
                {
                    bool confirmed = !row[column].EndsWith('?');
                    if (row[column] != Absent)
                    {
                        data.Add(row[1], Rows[0][column], confirmed ? row[column] : row[column][..^1], confirmed);
                    }
                }
            }
            return data;
        }
    }
}
