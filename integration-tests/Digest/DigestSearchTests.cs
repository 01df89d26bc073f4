using System.Security.Cryptography;
using System.Text;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.IntegrationTests.Launch.Planning;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Digest;

/// <summary>
/// A search finds every way in which a launch can have been other than it was thought of. The digests looked for are measured by <see cref="PlanReferee"/>, from pages put together here.
/// </summary>
public sealed class DigestSearchTests
{
    private const string Append = "console=ttyS0 ro";

    // Each changes one thing of a launch; the knob and how its choice begins.
    private static readonly Dictionary<string, (string Choice, Func<Launch, Launch> Change)> s_changes = new(StringComparer.Ordinal)
    {
        ["vCPUs"] = ("3", launch => launch with { Vcpus = 3 }),
        ["vCPU type"] = ("signature 0x00a10f10 (EPYC-Genoa)", launch => launch with { Signature = new(0xa10f10) }),
        ["guest features"] = ("0x21", launch => launch with { Features = 0x21 }),
        ["kernel hashes"] = ("of the kernel without the initrd", launch => launch with { Initrd = [] }),
        ["command line"] = ("without the NUL behind it", launch => launch with { Cmdline = Append }),
        ["VMM"] = ("gce", launch => launch with { Flavor = VmmFlavor.Gce }),
        ["firmware"] = ("other.fd", launch => launch with { Firmware = Other }),
        ["zero pages"] = ("as NORMAL pages of zeros", launch => launch with { ZeroAsNormal = true }),
        ["section order"] = ("CPUID last", launch => launch with { CpuidLast = true }),
        ["sections"] = ("SVSM_CAA left out", launch => launch with { LeftOut = "SVSM_CAA" }),
        ["AP start"] = ("at the reset vector", launch => launch with { ApsLikeBsp = true }),
        ["VMSA address"] = ("0xffffffffff000", launch => launch with { VmsaGpa = 0xf_ffff_ffff_f000 }),
    };

    private static readonly FirmwareImage s_firmware = FirmwareImage.Parse(TestInputs.Require("synfw-hash"), "asked.fd");

    public static TheoryData<string> Knobs => new(s_changes.Keys);

    // The VMM that is changed to does not measure the vCPU type, so that pair is one change.
    public static TheoryData<string, string> Pairs => new(
        from first in s_changes.Keys
        from second in s_changes.Keys
        where string.CompareOrdinal(first, second) < 0 && (first, second) != ("VMM", "vCPU type")
        select (first, second));

    public static TheoryData<string, string> OtherChoices => new()
    {
        { "kernel hashes", "none" },
        { "command line", "with a line feed and the NUL behind it" },
        { "command line", "with a line feed instead of the NUL" },
        { "command line", "with a space and the NUL behind it" },
        { "command line", "with two NULs behind it" },
        { "command line", "none" },
        { "VMM", "ec2" },
        { "VMM", "ec2 with RDX 0" },
        { "sections", "none launched" },
        { "section order", "by address" },
    };

    private static FirmwareImage Other
    {
        get
        {
            byte[] bytes = s_firmware.Bytes.ToArray();
            bytes[0] ^= 1;
            return FirmwareImage.Parse(bytes, "other.fd");
        }
    }

    [Fact]
    public void AsAsked_IsFoundFirst()
    {
        DigestSearchResult result = Search(new Launch());

        Assert.Equal((2, 0), (result.Finding!.Vcpus, result.Finding.Changes.Count));
        Assert.Equal((ulong)Question().Vcpus.Count, result.Tried);
    }

    [Theory]
    [MemberData(nameof(Knobs))]
    public void OneChange_IsFoundAndNamed(string knob)
    {
        DigestFinding? finding = Search(s_changes[knob].Change(new Launch())).Finding;

        KnobChange change = Assert.Single(finding!.Changes);
        Assert.Equal(knob, change.Knob);
        Assert.StartsWith(s_changes[knob].Choice, change.Found, StringComparison.Ordinal);
        Assert.NotEqual(change.Asked, change.Found);
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void TwoChanges_AreFoundAndNamed(string first, string second)
    {
        Launch launch = s_changes[second].Change(s_changes[first].Change(new Launch()));

        DigestFinding? finding = Search(launch).Finding;

        Assert.Equal(new[] { first, second }.Order(StringComparer.Ordinal), finding!.Changes.Select(change => change.Knob).Order(StringComparer.Ordinal));
        Assert.All(finding.Changes, change => Assert.StartsWith(s_changes[change.Knob].Choice, change.Found, StringComparison.Ordinal));
    }

    [Theory]
    [MemberData(nameof(OtherChoices))]
    public void OtherChoices_AreFoundToo(string knob, string choice)
    {
        var launch = new Launch();
        launch = choice switch
        {
            "none" when knob == "kernel hashes" => launch with { Kernel = null },
            "with a line feed and the NUL behind it" => launch with { Cmdline = Append + "\n\0" },
            "with a line feed instead of the NUL" => launch with { Cmdline = Append + "\n" },
            "with a space and the NUL behind it" => launch with { Cmdline = Append + " \0" },
            "with two NULs behind it" => launch with { Cmdline = Append + "\0\0" },
            "none" => launch with { Cmdline = "\0" },
            "ec2" => launch with { Flavor = VmmFlavor.Ec2 },
            "ec2 with RDX 0" => launch with { Flavor = VmmFlavor.Ec2 with { Rdx = 0 } },
            "none launched" => launch with { LeftOut = "*" },
            _ => launch with { ByAddress = true },
        };

        KnobChange change = Assert.Single(Search(launch).Finding!.Changes);

        Assert.Equal((knob, choice), (change.Knob, change.Found));
    }

    [Fact]
    public void BeforeTheVcpus_IsToldAsSuch()
    {
        DigestFinding? finding = Search(new Launch { Vcpus = 0 }).Finding;

        Assert.Equal(0, finding!.Vcpus);
        Assert.Equal("none measured", Assert.Single(finding.Changes).Found);
    }

    [Fact]
    public void WhatTheVmmDoesNotMeasure_IsToldToMakeNoDifference()
    {
        DigestQuestion question = Question() with { Flavors = [VmmFlavor.Ec2] };

        DigestFinding? finding = DigestSearch.Run(new Launch { Flavor = VmmFlavor.Ec2 }.Digest(), question).Finding;

        Assert.Contains("vCPU type", finding!.Indifferent);
        Assert.DoesNotContain("guest features", finding.Indifferent);
    }

    [Theory]
    [InlineData("vCPUs")]
    [InlineData("vcpus")]
    [InlineData("guest features")]
    public void KeptKnob_IsNotVaried(string knob)
    {
        string name = s_changes.Keys.Single(each => string.Equals(each, knob, StringComparison.OrdinalIgnoreCase));
        byte[] target = s_changes[name].Change(new Launch()).Digest();

        Assert.Null(DigestSearch.Run(target, Question() with { Keep = [knob, "zero pages", "sections", "section order", "VMM"] }).Finding);
    }

    [Fact]
    public void Limit_IsKeptAndTold()
    {
        DigestSearchResult result = DigestSearch.Run(new byte[48], Question(), maxCombinations: 1000);

        Assert.Null(result.Finding);
        Assert.False(result.Complete);
        Assert.InRange(result.Tried, 1000ul - (ulong)Question().Vcpus.Count, 1000ul);
    }

    [Fact]
    public void NothingFits_EveryCombinationIsTriedOnce()
    {
        DigestQuestion question = Question() with { Vcpus = [1, 2], SevFeatures = [1, 0x21], Signatures = [new(0x800f12)], Flavors = [VmmFlavor.Qemu, VmmFlavor.Ec2] };

        DigestSearchResult result = DigestSearch.Run(new byte[48], question);

        Assert.True(result.Complete);
        Assert.Equal(result.Knobs.Aggregate(2ul, (product, knob) => product * (ulong)knob.Choices.Count), result.Tried);
    }

    [Fact]
    public void Cancelled_Stops()
    {
        using var cancellation = new CancellationTokenSource();
        cancellation.Cancel();

        Assert.Throws<OperationCanceledException>(() => DigestSearch.Run(new byte[48], Question(), cancellation: cancellation.Token));
    }

    [Fact]
    public void FirmwareWithoutPlaceForHashes_IsToldAsImpossible()
    {
        DigestQuestion question = Question() with { Firmwares = [FirmwareImage.Parse(TestInputs.Require("synfw-nohash"), "nohash.fd")] };

        DigestSearchResult result = DigestSearch.Run(new byte[48], question);

        Assert.Contains("nohash.fd doesn't include an SNP_KERNEL_HASHES section", Assert.Single(result.Impossible), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("mode", false)]
    [InlineData("vCPUs", true)]
    [InlineData("guest features", true)]
    [InlineData("kernel hashes", true)]
    [InlineData("command line", true)]
    public void Legacy_EachChangeIsFound(string knob, bool encrypted)
    {
        var launch = new Launch { Features = 0 };
        if (knob == "guest features")
            launch = launch with { Features = 0x20 };
        else if (knob != "mode")
            launch = s_changes[knob].Change(launch);
        byte[] hashed = [.. s_firmware.Bytes.Span, .. launch.KernelHashes()!.BuildTable(), .. encrypted ? launch.Vmsas().SelectMany(vmsa => vmsa) : []];

        DigestFinding? finding = DigestSearch.Run(SHA256.HashData(hashed), Question() with { SevFeatures = [0, 0x20] }).Finding;

        Assert.Equal(knob == "mode" ? ["vCPUs", "mode"] : [knob], finding!.Changes.Select(change => change.Knob));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(47)]
    [InlineData(64)]
    public void TargetOfAnotherLength_IsRefused(int length) => Assert.Throws<ArgumentException>(() => DigestSearch.Run(new byte[length], Question()));

    private static DigestSearchResult Search(Launch launch) => DigestSearch.Run(launch.Digest(), Question());

    private static DigestQuestion Question() => new()
    {
        Firmwares = [s_firmware, Other],
        Kernel = new Launch().KernelHashes(),
        HasInitrd = true,
        Append = Append,
        Signatures = [new(0x800f12), new(0xa00f11), new(0xa10f10)],
        SevFeatures = [0x1, 0x21, 0x201],
        Vcpus = [2, 1, 3, 4],
    };

    // A launch put together by hand, so that what finds it is not what made it.
    private sealed record Launch
    {
        public FirmwareImage Firmware { get; init; } = s_firmware;

        public VmmFlavor Flavor { get; init; } = VmmFlavor.Qemu;

        public byte[]? Kernel { get; init; } = [1, 2, 3];

        public byte[] Initrd { get; init; } = [4, 5];

        /// <summary>As it is hashed.</summary>
        public string Cmdline { get; init; } = Append + '\0';

        public int Vcpus { get; init; } = 2;

        public CpuSignature Signature { get; init; } = new(0x800f12);

        public ulong Features { get; init; } = 1;

        public bool ZeroAsNormal { get; init; }

        public bool CpuidLast { get; init; }

        public bool ByAddress { get; init; }

        public string? LeftOut { get; init; }

        public bool ApsLikeBsp { get; init; }

        public ulong VmsaGpa { get; init; } = 0xffff_ffff_f000;

        public KernelHashes? KernelHashes() => Kernel is null
            ? null
            : VmmService.Client.Launch.KernelHashes.Of(SHA256.HashData(Kernel), SHA256.HashData(Initrd), SHA256.HashData(Encoding.UTF8.GetBytes(Cmdline)));

        public IEnumerable<byte[]> Vmsas() => Enumerable.Range(0, Vcpus).Select(i => PlanReferee.Vmsa(
            i == 0 || ApsLikeBsp ? Flavor.Bsp(Signature) : Flavor.Ap(Signature, Firmware.SevEsResetEip!.Value), Features));

        public byte[] Digest()
        {
            SnpLaunchPlan plan = SnpLaunchPlan.Create(Firmware, Flavor, KernelHashes(), 1, Signature);
            IEnumerable<LaunchRegion> sections = plan.Regions.Skip(1).Where(region => LeftOut != "*" && region.Label != LeftOut);
            if (CpuidLast)
                sections = sections.OrderBy(region => region.Label == "CPUID");
            if (ByAddress)
                sections = sections.OrderBy(region => region.Gpa);
            if (ZeroAsNormal)
            {
                sections = sections.Select(region => region.PageType is SnpPageType.ZERO or SnpPageType.UNMEASURED
                    ? region with { PageType = SnpPageType.NORMAL, Content = new byte[region.Size] }
                    : region);
            }

            return Convert.FromHexString(PlanReferee.Measure([plan.Regions[0], .. sections], Vmsas(), VmsaGpa).Digest);
        }
    }
}
