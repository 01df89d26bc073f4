using System.Reflection;
using Grpc.AspNetCore.Server;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Compression;
using Xunit;

namespace VmmService.IntegrationTests.Contracts;

/// <summary>
/// The contract assemblies have everything that the official gRPC assemblies and our generated code ask of them. The list of what is asked is read
/// from
/// those assemblies each time, so a newer version that asks for more fails here with the name of what is missing and not at run time.
/// </summary>
public sealed class ContractsResolveTests
{
    private static readonly string[] ContractPaths = [typeof(Status).Assembly.Location, typeof(ICompressionProvider).Assembly.Location];
    private static readonly HashSet<string> ContractNames = [.. ContractPaths.Select(path => Path.GetFileNameWithoutExtension(path))];

    public static TheoryData<string> Askers { get; } = new(
        typeof(GrpcChannel).Assembly.Location, typeof(GrpcServiceOptions).Assembly.Location, typeof(Grpc.Health.V1.Health).Assembly.Location);

    [Fact]
    public void Contracts_HaveTheNamesOfTheOfficialAssemblies() =>
        Assert.Equal(["Grpc.Core.Api", "Grpc.Net.Common"], ContractNames.Order(StringComparer.Ordinal));

    [Fact]
    public void Contracts_HaveTheIdentityOfTheOfficialAssemblies()
    {
        var official = typeof(GrpcChannel).Assembly.GetName();
        foreach (var contract in ContractPaths.Select(AssemblyName.GetAssemblyName))
        {
            Assert.Equal(official.Version, contract.Version);
            Assert.Equal(official.GetPublicKey(), contract.GetPublicKey());
        }
    }

    [Theory]
    [MemberData(nameof(Askers))]
    public void EveryTypeAskedFor_IsInAContract(string path)
    {
        using var asker = new AssemblyContract(path);
        var offered = Offers();
        var asked = asker.TypesAskedOf(ContractNames).ToArray();
        Assert.NotEmpty(asked);
        AssertNoneMissing(asked.Except(offered.Keys, StringComparer.Ordinal));
    }

    [Theory]
    [MemberData(nameof(Askers))]
    public void EveryMemberAskedFor_IsInAContract(string path)
    {
        using var asker = new AssemblyContract(path);
        var offered = Offers();
        var asked = asker.MembersAskedOf(ContractNames).Distinct().ToArray();
        Assert.NotEmpty(asked);
        AssertNoneMissing(asked.Where(a => !Has(offered, a.Type, type => type.Members.Contains(a.Member))).Select(a => $"{a.Type}: {a.Member}"));
    }

    [Theory]
    [MemberData(nameof(Askers))]
    public void EveryOverride_HasAVirtualMethodToOverride(string path)
    {
        using var asker = new AssemblyContract(path);
        var offered = Offers();
        // Object's own virtual methods are not in a contract.
        string[] ofObject = ["String ToString()", "Boolean Equals(Object)", "Int32 GetHashCode()", "Void Finalize()"];
        var overrides = asker.OverridesOf(ContractNames).Where(o => !ofObject.Contains(o.Member)).ToArray();
        AssertNoneMissing(overrides
            .Where(o => !Has(offered, o.Type, type => type.Virtuals.Any(slot => AssemblyContract.Close(slot, o.Arguments) == o.Member)))
            .Select(o => $"{o.Type}: {o.Member}"));
    }

    /// <summary>Abstract members nobody implements, and type arguments that break a constraint, come out only when the types load.</summary>
    [Theory]
    [MemberData(nameof(Askers))]
    public void EveryTypeOfAnAsker_Loads(string path)
    {
        Assert.NotEmpty(Assembly.LoadFrom(path).GetTypes());
    }

    /// <summary>Compilers write the numbers of enum members into what they compile, so a reference tells nothing of them.</summary>
    [Theory]
    [InlineData(
        typeof(StatusCode),
        "OK=0 Cancelled=1 Unknown=2 InvalidArgument=3 DeadlineExceeded=4 NotFound=5 AlreadyExists=6 PermissionDenied=7 ResourceExhausted=8 "
        + "FailedPrecondition=9 Aborted=10 OutOfRange=11 Unimplemented=12 Internal=13 Unavailable=14 DataLoss=15 Unauthenticated=16")]
    [InlineData(typeof(MethodType), "Unary=0 ClientStreaming=1 ServerStreaming=2 DuplexStreaming=3")]
    [InlineData(typeof(WriteFlags), "BufferHint=1 NoCompress=2")]
    [InlineData(typeof(ConnectivityState), "Idle=0 Connecting=1 Ready=2 TransientFailure=3 Shutdown=4")]
    public void Enums_HaveTheOfficialNumbers(Type type, string expected) =>
        Assert.Equal(expected, string.Join(' ', Enum.GetNames(type).Select(name => $"{name}={(int)Enum.Parse(type, name)}")));

    /// <summary>As text, because an assertion on a list shows only the beginning of each name.</summary>
    private static void AssertNoneMissing(IEnumerable<string> missing) => Assert.Equal("", string.Join('\n', missing));

    private static Dictionary<string, (string Base, HashSet<string> Members, HashSet<string> Virtuals)> Offers()
    {
        var offers = new Dictionary<string, (string, HashSet<string>, HashSet<string>)>(StringComparer.Ordinal);
        foreach (var path in ContractPaths)
        {
            using var contract = new AssemblyContract(path);
            foreach (var (type, above, members, virtuals) in contract.Offers())
            {
                // The two assemblies have one name in common: AsyncStreamReaderExtensions, a part in each.
                if (!offers.TryAdd(type, (above, members, virtuals))) offers[type].Item2.UnionWith(members);
            }
        }

        return offers;
    }

    /// <summary>Whether the type, or one that it derives from, has it.</summary>
    private static bool Has(
        Dictionary<string, (string Base, HashSet<string> Members, HashSet<string> Virtuals)> offered,
        string type,
        Func<(string Base, HashSet<string> Members, HashSet<string> Virtuals), bool> has)
    {
        while (offered.TryGetValue(type, out var found))
        {
            if (has(found)) return true;
            type = found.Base;
        }

        return false;
    }
}
