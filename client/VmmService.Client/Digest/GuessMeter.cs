using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>
/// Tells with which number of vCPUs a guess has the digest that is looked for. What guesses have in common is hashed once: the firmware, all memory, a VMSA. What measures the same has
/// the same number here, so that a search need not look twice.
/// </summary>
internal abstract class GuessMeter
{
    /// <summary>What of a search's answer means that no number of vCPUs fits.</summary>
    public const int None = -1;

    /// <summary>Number of what is measured before the vCPUs.</summary>
    /// <exception cref="LaunchInputException">The firmware cannot be launched so.</exception>
    public abstract int Memory(LaunchGuess guess);

    /// <summary>Number of what is measured of the vCPUs.</summary>
    public abstract int Vcpus(LaunchGuess guess);

    /// <summary>The number of vCPUs, 0 for a digest without them; <see cref="None"/> if none fits.</summary>
    /// <param name="memory">From <see cref="Memory"/>.</param>
    /// <param name="vcpus">From <see cref="Vcpus"/>.</param>
    /// <param name="counts">Numbers that may fit.</param>
    /// <param name="most">The largest of them.</param>
    public abstract int Find(int memory, int vcpus, IReadOnlySet<int> counts, int most);

    /// <summary>Gives equal things equal numbers.</summary>
    protected sealed class Numbering<T>
        where T : notnull
    {
        private readonly Dictionary<T, int> _numbers = [];

        public List<T> Items { get; } = [];

        public int Of(T item)
        {
            if (!_numbers.TryGetValue(item, out int number))
            {
                number = Items.Count;
                _numbers.Add(item, number);
                Items.Add(item);
            }

            return number;
        }
    }
}

/// <summary>SNP: the digest after the memory, then one PAGE_INFO more for each vCPU.</summary>
internal sealed class SnpGuessMeter(Hash384 target) : GuessMeter
{
    private readonly Dictionary<FirmwareImage, Hash384> _afterFirmware = [];
    private readonly Numbering<Hash384> _afterMemory = new();
    private readonly Numbering<(MeasuredPage Bsp, MeasuredPage? Ap)> _vcpus = new();

    public override int Memory(LaunchGuess guess)
    {
        Hash384 digest = default;
        foreach (LaunchRegion region in guess.Regions())
        {
            // Every launch begins with the firmware, and its hash is nearly all the work.
            digest = region.Source != LaunchSource.Firmware ? Extend(digest, region)
                : _afterFirmware.TryGetValue(guess.Firmware, out Hash384 known) ? known
                : _afterFirmware[guess.Firmware] = Extend(digest, region);
        }

        return _afterMemory.Of(digest);
    }

    public override int Vcpus(LaunchGuess guess) => _vcpus.Of(
        (MeasuredLaunch.Vmsa(guess.Bsp(), guess.SevFeatures, guess.VmsaGpa), guess.Ap() is { } ap ? MeasuredLaunch.Vmsa(ap, guess.SevFeatures, guess.VmsaGpa) : null));

    public override int Find(int memory, int vcpus, IReadOnlySet<int> counts, int most)
    {
        Hash384 digest = _afterMemory.Items[memory];
        if (digest == target)
            return 0;

        (MeasuredPage bsp, MeasuredPage? ap) = _vcpus.Items[vcpus];
        digest = bsp.Extend(digest);
        for (int count = 1; ; count++)
        {
            if (digest == target && counts.Contains(count))
                return count;
            if (count >= most || ap is null)
                return None;
            digest = ap.Value.Extend(digest);
        }
    }

    private static Hash384 Extend(Hash384 digest, LaunchRegion region)
    {
        foreach (MeasuredPage page in MeasuredLaunch.Pages(region))
            digest = page.Extend(digest);
        return digest;
    }
}

/// <summary>SEV and SEV-ES: one SHA-256 over everything, which goes on from what was hashed.</summary>
internal sealed class LegacyGuessMeter(byte[] target) : GuessMeter
{
    private readonly Dictionary<(FirmwareImage Firmware, string Table), int> _numbers = [];
    private readonly List<Sha256State> _afterMemory = [];
    private readonly Numbering<(Hash384 Bsp, Hash384 Ap)> _vcpus = new();
    private readonly List<(byte[] Bsp, byte[]? Ap)?> _vmsas = [];

    public override int Memory(LaunchGuess guess)
    {
        LegacyPart[] parts = [.. LegacyLaunch.Memory(guess.Firmware, guess.Kernel)];
        (FirmwareImage, string) key = (guess.Firmware, parts.Length > 1 ? Convert.ToHexStringLower(parts[1].Content.Span) : "");
        if (!_numbers.TryGetValue(key, out int number))
        {
            number = _afterMemory.Count;
            _numbers.Add(key, number);
            var hash = new Sha256State();
            foreach (LegacyPart part in parts)
                hash.Append(part.Content.Span);
            _afterMemory.Add(hash);
        }

        return number;
    }

    public override int Vcpus(LaunchGuess guess)
    {
        byte[]? bsp = guess.EncryptedState ? VmsaPage.Build(guess.Bsp(), guess.SevFeatures) : null;
        byte[]? ap = bsp is not null && guess.Ap() is { } state ? VmsaPage.Build(state, guess.SevFeatures) : null;
        int number = _vcpus.Of((bsp is null ? default : Hash384.Of(bsp), ap is null ? default : Hash384.Of(ap)));
        if (number == _vmsas.Count)
            _vmsas.Add(bsp is null ? null : (bsp, ap));
        return number;
    }

    public override int Find(int memory, int vcpus, IReadOnlySet<int> counts, int most)
    {
        Sha256State hash = _afterMemory[memory].Copy();
        if (_vmsas[vcpus] is not { } vmsas)
            return Matches(hash) ? 0 : None;

        hash.Append(vmsas.Bsp);
        for (int count = 1; ; count++)
        {
            if (counts.Contains(count) && Matches(hash))
                return count;
            if (count >= most || vmsas.Ap is null)
                return None;
            hash.Append(vmsas.Ap);
        }
    }

    private bool Matches(Sha256State hash)
    {
        Span<byte> digest = stackalloc byte[Sha256State.HashSize];
        hash.GetHash(digest);
        return digest.SequenceEqual(target);
    }
}
