using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Xunit;

namespace VmmService.IntegrationTests.Support;

/// <summary>
/// Builds or finds the input files of the vectors, by the recipes that the vector file states, and checks their SHA-256. What cannot be had on this machine skips
/// the test that asks for it, with the reason.
/// </summary>
public static class TestInputs
{
    private const string FixturesVariable = "VMMSERVICE_FIXTURES";

    /// <summary>The bytes of an input, or a skipped test.</summary>
    public static byte[] Get(string id)
    {
        JsonElement input = SnpVectors.Inputs.GetProperty(id);
        byte[]? bytes = Obtain(id, input, out string reason);
        Assert.SkipWhen(bytes is null, reason);
        string sha256 = input.GetProperty("sha256").GetString()!;
        string actual = Convert.ToHexStringLower(SHA256.HashData(bytes!));
        bool fromOutside = input.GetProperty("kind").GetString() is "debian-package" or "git-fixture";
        Assert.SkipWhen(fromOutside && actual != sha256, $"input {id} on this machine is another version: SHA-256 {actual}, the vectors were made with {sha256}");
        Assert.Equal(sha256, actual);
        return bytes!;
    }

    private static byte[]? Obtain(string id, JsonElement input, out string reason)
    {
        reason = "";
        switch (input.GetProperty("kind").GetString())
        {
            case "empty":
                return [];
            case "sha256-ctr":
                return Stream(input.GetProperty("label").GetString()!, input.GetProperty("size").GetInt32());
            case "synfw":
                return SyntheticFirmware(input.GetProperty("params"));
            case "debian-package":
                string installed = "/" + input.GetProperty("path_in_package").GetString();
                reason = $"input {id} needs the Debian package {input.GetProperty("package")} ({installed} is not there)";
                return File.Exists(installed) ? File.ReadAllBytes(installed) : null;
            case "git-fixture":
                string name = Path.GetFileName(input.GetProperty("path_in_repo").GetString()!);
                string? folder = Environment.GetEnvironmentVariable(FixturesVariable);
                reason = $"input {id} is a file of another project ({input.GetProperty("repo")}, {name}) that is not redistributed here; put it into a folder and set {FixturesVariable} to it";
                return folder is null
                    ? null
                    : new[] { id, name }.Select(each => Path.Combine(folder, each)).Where(File.Exists).Select(File.ReadAllBytes).FirstOrDefault();
            default:
                reason = $"input {id} is of a kind that these tests do not know";
                return null;
        }
    }

    /// <summary>SHA-256 of label and counter, concatenated and cut to size.</summary>
    private static byte[] Stream(string label, int size)
    {
        byte[] bytes = new byte[size];
        byte[] message = [.. Encoding.ASCII.GetBytes(label), 0, 0, 0, 0];
        Span<byte> block = stackalloc byte[32];
        for (int i = 0; i * 32 < size; i++)
        {
            BinaryPrimitives.WriteInt32LittleEndian(message.AsSpan(message.Length - 4), i);
            SHA256.HashData(message, block);
            block[..Math.Min(32, size - (i * 32))].CopyTo(bytes.AsSpan(i * 32));
        }
        return bytes;
    }

    // The recipe "synfw" of the vector file.
    private static byte[] SyntheticFirmware(JsonElement recipe)
    {
        int size = recipe.GetProperty("size").GetInt32();
        byte[] image = Stream(recipe.GetProperty("label").GetString()!, size);
        uint fromEnd = recipe.TryGetProperty("meta_from_end", out JsonElement meta) ? meta.GetUInt32() : 0x600;
        bool hasSections = recipe.TryGetProperty("sections", out JsonElement sections);
        var table = new List<byte>();
        void Entry(string guid, params uint[] values)
        {
            foreach (uint value in values)
            {
                table.AddRange(BitConverter.GetBytes(value));
            }
            table.AddRange(BitConverter.GetBytes((ushort)((values.Length * 4) + 18)));
            table.AddRange(new Guid(guid).ToByteArray());
        }

        if (recipe.TryGetProperty("svsm_start", out JsonElement svsm))
        {
            Entry("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd", svsm.GetUInt32());
        }
        if (hasSections)
        {
            Entry("dc886566-984a-4798-a75e-5585a7bf67cc", fromEnd);
        }
        if (recipe.TryGetProperty("hash_area", out JsonElement hashArea))
        {
            Entry("7255371f-3a3b-4b04-927b-1da6efa8d454", hashArea[0].GetUInt32(), hashArea[1].GetUInt32());
        }
        if (recipe.TryGetProperty("secret_area", out JsonElement secretArea))
        {
            Entry("4c2eb361-7d9b-4cc3-8081-127c90d3d294", secretArea[0].GetUInt32(), secretArea[1].GetUInt32());
        }
        if (recipe.TryGetProperty("reset_eip", out JsonElement resetEip))
        {
            Entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", resetEip.GetUInt32());
        }
        table.AddRange(BitConverter.GetBytes((ushort)(table.Count + 18)));
        table.AddRange(new Guid("96b582de-1fb2-45f7-baea-a366c55a082d").ToByteArray());
        table.CopyTo(image, size - 0x20 - table.Count);

        if (hasSections)
        {
            Span<byte> metadata = image.AsSpan((int)(size - fromEnd));
            int count = sections.GetArrayLength();
            "ASEV"u8.CopyTo(metadata);
            BinaryPrimitives.WriteInt32LittleEndian(metadata[4..], 16 + (12 * count));
            BinaryPrimitives.WriteInt32LittleEndian(metadata[8..], 1);
            BinaryPrimitives.WriteInt32LittleEndian(metadata[12..], count);
            for (int i = 0; i < count * 3; i++)
            {
                BinaryPrimitives.WriteUInt32LittleEndian(metadata[(16 + (4 * i))..], sections[i / 3][i % 3].GetUInt32());
            }
        }
        return image;
    }
}
