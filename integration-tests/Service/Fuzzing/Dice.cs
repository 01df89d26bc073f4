using Google.Protobuf;

namespace VmmService.IntegrationTests.Service.Fuzzing;

/// <summary>Random numbers of the kind that break things. All follow from the seed.</summary>
internal sealed class Dice(int seed)
{
    private static readonly ulong[] s_numbers =
    [
        0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 63, 64, 255, 256, 4095, 4096, 4097, 8192, 0x1000_0, 2 << 20, 1 << 30, int.MaxValue, 1UL << 31, uint.MaxValue, 1UL << 32, 1UL << 40, 1UL << 43,
        (1UL << 48) - 4096, 1UL << 48, 1UL << 52, 0x7f00_0000_0000, 0x7fff_ffff_f000, long.MaxValue, (1UL << 63) - 4096, 1UL << 63, ulong.MaxValue - 4095, ulong.MaxValue,
    ];

    private readonly Random _random = new(seed);

    public int Next(int below) => _random.Next(below);

    public bool OneIn(int chances) => _random.Next(chances) == 0;

    public T Pick<T>(IReadOnlyList<T> from) => from[_random.Next(from.Count)];

    public ulong Number() => _random.Next(6) switch
    {
        0 => (ulong)_random.NextInt64(),
        1 => (ulong)_random.Next(64),
        2 => (ulong)_random.Next(64) << 12,
        _ => s_numbers[_random.Next(s_numbers.Length)],
    };

    public byte[] Bytes()
    {
        byte[] bytes = new byte[Pick([0, 1, 7, 16, 32, 96, 512, 4095, 4096, 4097, 8192])];
        if (_random.Next(2) == 0)
        {
            _random.NextBytes(bytes);
        }
        return bytes;
    }

    /// <summary>Bytes of a structure: zeros with numbers here and there.</summary>
    public byte[] Struct(int size)
    {
        byte[] bytes = new byte[size];
        for (int at = 0; at < size; at += 4)
        {
            if (_random.Next(3) == 0)
            {
                byte[] number = BitConverter.GetBytes(Number());
                int length = Math.Min(_random.Next(2) == 0 ? 4 : 8, size - at);
                number.AsSpan(0, length).CopyTo(bytes.AsSpan(at));
            }
        }
        return bytes;
    }

    public string Text() => Pick(["", "/dev/kvm", "/dev/sev", "K72", "K618", "h1", "\0", "ä€𝄞", "../../etc/passwd", new string('x', 65536), "vmmservice.v1.VmService"]);

    public ByteString ByteString() => Google.Protobuf.ByteString.CopyFrom(Bytes());
}
