using Xunit;

namespace VmmService.IntegrationTests.Support;

/// <summary>The checkout that the tests were built from.</summary>
public static class Repository
{
    /// <summary>Folder of VmmService.sln; a test that asks where there is none is skipped.</summary>
    public static string Root
    {
        get
        {
            string? folder = AppContext.BaseDirectory;
            while (folder is not null && !File.Exists(Path.Combine(folder, "VmmService.sln")))
            {
                folder = Path.GetDirectoryName(folder);
            }
            Assert.SkipWhen(folder is null, "the tests run without the repository");
            return folder!;
        }
    }
}
