using System.Globalization;
using System.Reflection;

namespace SimKvm.Profiles;

/// <summary>The kernel generations that a host can run, each its parent with what changed.</summary>
public static class KernelProfiles
{
    /// <summary>Linux 6.16.</summary>
    public static KernelProfile K616 { get; } = new()
    {
        Id = "K616",
        Title = "Linux 6.16",
        GuestMemfdFlags = 0,
        GuestMemfdForEveryVm = false,
        BindOverlap = Errno.EINVAL,
        BindOffsetSigned = true,
        GuestMemfdToggleRefused = false,
        UnbindOfDyingFile = false,
        PunchHoleFilterByFile = false,
        Populate = PopulateDesign.WholeLoop,
        PopulatePinsWritable = false,
        SnpZeroLengthRefused = false,
        SnpSourceMustBeAligned = false,
        SnpPolicyMask = 0x1b_ffff,
        SnpPolicyAndCertificateAttributes = false,
        SnpFinishLocksVcpus = false,
    };

    /// <summary>Mainline at f8479adb, after 7.1.</summary>
    public static KernelProfile K72 { get; } = K616 with
    {
        Id = "K72",
        Title = "Linux mainline after 7.1 (f8479adb)",
        Parent = K616,
        GuestMemfdFlags = 3,
        GuestMemfdForEveryVm = true,
        BindOverlap = Errno.EEXIST,
        BindOffsetSigned = false,
        GuestMemfdToggleRefused = true,
        UnbindOfDyingFile = true,
        PunchHoleFilterByFile = true,
        Populate = PopulateDesign.PerPage,
        PopulatePinsWritable = true,
        SnpZeroLengthRefused = true,
        SnpSourceMustBeAligned = true,
        SnpPolicyMask = 0x3fb_ffff,
        SnpPolicyAndCertificateAttributes = true,
        SnpFinishLocksVcpus = true,
    };

    public static KernelProfile Default => K72;

    /// <summary>All profiles, oldest first.</summary>
    public static IReadOnlyList<KernelProfile> All { get; } = [K616, K72];

    /// <summary>The profile of that id, or null.</summary>
    public static KernelProfile? Find(string id) => All.FirstOrDefault(profile => profile.Id.Equals(id, StringComparison.OrdinalIgnoreCase));

    /// <summary>The behaviours in which two profiles differ.</summary>
    public static IEnumerable<BehaviourDelta> Differences(KernelProfile from, KernelProfile to)
    {
        foreach (PropertyInfo property in typeof(KernelProfile).GetProperties())
        {
            if (property.GetCustomAttribute<SourceAttribute>() is { } source)
            {
                object? before = property.GetValue(from);
                object? after = property.GetValue(to);
                if (!Equals(before, after))
                {
                    yield return new BehaviourDelta(property.Name, Show(before), Show(after), source.Source);
                }
            }
        }
    }

    private static string Show(object? value) => value switch
    {
        ulong number => "0x" + number.ToString("x", CultureInfo.InvariantCulture),
        bool flag => flag ? "yes" : "no",
        _ => value?.ToString() ?? "",
    };
}

/// <summary>A behaviour in which two profiles differ, with where the newer one is known from.</summary>
public readonly record struct BehaviourDelta(string Name, string Before, string After, string Source);
