using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
using VmmService.Server.Reflection;
using Xunit;
using ReflectionV1 = Grpc.Reflection.V1;
using ReflectionV1Alpha = Grpc.Reflection.V1Alpha;
using Request = Grpc.Reflection.V1.ServerReflectionRequest;
using Response = Grpc.Reflection.V1.ServerReflectionResponse;

namespace VmmService.IntegrationTests.Contracts;

/// <summary>
/// Reflection: what the index answers, over a proto that has one of everything, and both versions of the service through their clients.
/// </summary>
public sealed class ReflectionTests
{
    private static readonly ReflectionIndex Index = new([Zoo()]);

    [Fact]
    public void ListServices_NamesThemInOrder()
    {
        var index = new ReflectionIndex([Zoo(), Grpc.Health.V1.Health.Descriptor, Grpc.Health.V1.Health.Descriptor]);
        var answer = index.Answer(new Request { ListServices = "*" });
        Assert.Equal(["grpc.health.v1.Health", "zoo.Keeper"], answer.ListServicesResponse.Service.Select(service => service.Name));
    }

    [Theory]
    [InlineData("zoo.Keeper", "zoo.proto")]
    [InlineData("zoo.Keeper.Feed", "zoo.proto")]
    [InlineData("zoo.Animal", "zoo.proto")]
    [InlineData("zoo.Animal.name", "zoo.proto")]
    [InlineData("zoo.Animal.skin", "zoo.proto")]
    [InlineData("zoo.Animal.Leg", "zoo.proto")]
    [InlineData("zoo.Animal.Leg.toes", "zoo.proto")]
    [InlineData("zoo.Animal.Leg.Side", "zoo.proto")]
    [InlineData("zoo.Animal.Leg.LEFT", "zoo.proto")]
    [InlineData("zoo.Diet", "zoo.proto")]
    [InlineData("zoo.GRASS", "zoo.proto")]
    [InlineData("zoo.weight", "zoo.proto")]
    [InlineData("zoo.Animal.age", "zoo.proto")]
    [InlineData("base.Thing", "base.proto")]
    public void FileContainingSymbol_FindsTheFile(string symbol, string file)
    {
        var answer = Index.Answer(new Request { FileContainingSymbol = symbol });
        Assert.Equal(file, Files(answer)[0].Name);
    }

    [Theory]
    [InlineData("zoo")]
    [InlineData("zoo.Nobody")]
    [InlineData("zoo.Diet.GRASS")]
    [InlineData("")]
    public void FileContainingSymbol_Unknown_IsNotFound(string symbol) =>
        AssertError(StatusCode.NotFound, symbol, Index.Answer(new Request { FileContainingSymbol = symbol }));

    [Fact]
    public void FileByFilename_BringsTheImportsAfterTheFile()
    {
        var answer = Index.Answer(new Request { FileByFilename = "zoo.proto" });
        Assert.Equal(["zoo.proto", "base.proto"], Files(answer).Select(file => file.Name));
    }

    [Fact]
    public void FileByFilename_OfAnImport_IsFound()
    {
        var answer = Index.Answer(new Request { FileByFilename = "base.proto" });
        Assert.Equal(["base.proto"], Files(answer).Select(file => file.Name));
    }

    [Fact]
    public void FileByFilename_Unknown_IsNotFound() =>
        AssertError(StatusCode.NotFound, "none.proto", Index.Answer(new Request { FileByFilename = "none.proto" }));

    [Theory]
    [InlineData("base.Thing", 100)]
    [InlineData("base.Thing", 101)]
    public void FileContainingExtension_FindsTheFile(string type, int number)
    {
        var answer = Index.Answer(new Request { FileContainingExtension = new() { ContainingType = type, ExtensionNumber = number } });
        Assert.Equal("zoo.proto", Files(answer)[0].Name);
    }

    [Theory]
    [InlineData("base.Thing", 102)]
    [InlineData("zoo.Animal", 100)]
    [InlineData("zoo.Nobody", 100)]
    public void FileContainingExtension_Unknown_IsNotFound(string type, int number) => AssertError(
        StatusCode.NotFound,
        type,
        Index.Answer(new Request { FileContainingExtension = new() { ContainingType = type, ExtensionNumber = number } }));

    [Theory]
    [InlineData("base.Thing", new[] { 100, 101 })]
    [InlineData("zoo.Animal", new int[0])]
    public void AllExtensionNumbers_AreListed(string type, int[] numbers)
    {
        var answer = Index.Answer(new Request { AllExtensionNumbersOfType = type });
        Assert.Equal(type, answer.AllExtensionNumbersResponse.BaseTypeName);
        Assert.Equal(numbers, answer.AllExtensionNumbersResponse.ExtensionNumber);
    }

    [Fact]
    public void AllExtensionNumbers_OfUnknownType_IsNotFound() =>
        AssertError(StatusCode.NotFound, "zoo.Nobody", Index.Answer(new Request { AllExtensionNumbersOfType = "zoo.Nobody" }));

    [Fact]
    public void RequestThatAsksNothing_IsInvalid() =>
        AssertError(StatusCode.InvalidArgument, "message_request", Index.Answer(new Request()));

    [Fact]
    public void Answer_RepeatsHostAndRequest()
    {
        var request = new Request { Host = "here", ListServices = "" };
        var answer = Index.Answer(request);
        Assert.Equal("here", answer.ValidHost);
        Assert.Equal(request, answer.OriginalRequest);
    }

    [Theory]
    [InlineData("unix")]
    [InlineData("tcp")]
    public async Task V1_AnswersEachRequestOfAStream(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        using var call = new ReflectionV1.ServerReflection.ServerReflectionClient(channel).ServerReflectionInfo();
        Request[] requests =
        [
            new() { ListServices = "" }, new() { FileContainingSymbol = "grpc.health.v1.Health" }, new() { FileContainingSymbol = "no.Such" },
        ];
        List<Response> answers = [];
        foreach (var request in requests)
        {
            await call.RequestStream.WriteAsync(request);
            Assert.True(await call.ResponseStream.MoveNext());
            answers.Add(call.ResponseStream.Current);
        }

        await call.RequestStream.CompleteAsync();
        Assert.False(await call.ResponseStream.MoveNext());
        Assert.Equal(
            ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"],
            answers[0].ListServicesResponse.Service.Select(service => service.Name));
        Assert.Equal("grpc/health/v1/health.proto", Files(answers[1])[0].Name);
        AssertError(StatusCode.NotFound, "no.Such", answers[2]);
    }

    [Theory]
    [InlineData("unix")]
    [InlineData("tcp")]
    public async Task V1Alpha_AnswersAsV1(string transport)
    {
        await using var server = await ContractServer.StartAsync();
        using var channel = server.Connect(transport);
        using var newer = new ReflectionV1.ServerReflection.ServerReflectionClient(channel).ServerReflectionInfo();
        using var older = new ReflectionV1Alpha.ServerReflection.ServerReflectionClient(channel).ServerReflectionInfo();
        Request[] requests =
        [
            new() { ListServices = "" }, new() { FileByFilename = "grpc/reflection/v1/reflection.proto" }, new() { FileContainingSymbol = "no.Such" }, new(),
            new() { AllExtensionNumbersOfType = "grpc.health.v1.HealthCheckRequest" },
        ];
        foreach (var request in requests)
        {
            await newer.RequestStream.WriteAsync(request);
            await older.RequestStream.WriteAsync(ReflectionV1Alpha.ServerReflectionRequest.Parser.ParseFrom(request.ToByteString()));
            Assert.True(await newer.ResponseStream.MoveNext());
            Assert.True(await older.ResponseStream.MoveNext());
            Assert.Equal(newer.ResponseStream.Current.ToByteString(), older.ResponseStream.Current.ToByteString());
        }
    }

    private static List<FileDescriptorProto> Files(Response answer)
    {
        Assert.Equal(Response.MessageResponseOneofCase.FileDescriptorResponse, answer.MessageResponseCase);
        return [.. answer.FileDescriptorResponse.FileDescriptorProto.Select(FileDescriptorProto.Parser.ParseFrom)];
    }

    private static void AssertError(StatusCode code, string mentions, Response answer)
    {
        Assert.Equal(Response.MessageResponseOneofCase.ErrorResponse, answer.MessageResponseCase);
        Assert.Equal((int)code, answer.ErrorResponse.ErrorCode);
        Assert.Contains(mentions, answer.ErrorResponse.ErrorMessage, StringComparison.Ordinal);
    }

    /// <summary>A service whose file has one of everything that has a name, and extends a message of a file that it imports.</summary>
    private static ServiceDescriptor Zoo()
    {
        var @base = new FileDescriptorProto
        {
            Name = "base.proto",
            Package = "base",
            Syntax = "proto2",
            MessageType =
            {
                new DescriptorProto { Name = "Thing", ExtensionRange = { new DescriptorProto.Types.ExtensionRange { Start = 100, End = 200 } } },
            },
        };
        var zoo = new FileDescriptorProto
        {
            Name = "zoo.proto",
            Package = "zoo",
            Syntax = "proto2",
            Dependency = { "base.proto" },
            MessageType =
            {
                new DescriptorProto
                {
                    Name = "Animal",
                    Field = { Field("name", 1, oneofIndex: null), Field("fur", 2, 0), Field("scales", 3, 0) },
                    OneofDecl = { new OneofDescriptorProto { Name = "skin" } },
                    NestedType =
                    {
                        new DescriptorProto
                        {
                            Name = "Leg",
                            Field = { Field("toes", 1, oneofIndex: null) },
                            EnumType = { Enumeration("Side", "LEFT") },
                        },
                    },
                    Extension = { Extension("age", 101) },
                },
            },
            EnumType = { Enumeration("Diet", "GRASS") },
            Extension = { Extension("weight", 100) },
            Service =
            {
                new ServiceDescriptorProto
                {
                    Name = "Keeper",
                    Method = { new MethodDescriptorProto { Name = "Feed", InputType = ".zoo.Animal", OutputType = ".base.Thing" } },
                },
            },
        };
        return FileDescriptor.BuildFromByteStrings([@base.ToByteString(), zoo.ToByteString()])[1].Services[0];

        static FieldDescriptorProto Field(string name, int number, int? oneofIndex)
        {
            var field = new FieldDescriptorProto
            {
                Name = name,
                Number = number,
                Type = FieldDescriptorProto.Types.Type.Int32,
                Label = FieldDescriptorProto.Types.Label.Optional,
            };
            if (oneofIndex is { } index) field.OneofIndex = index;
            return field;
        }

        static FieldDescriptorProto Extension(string name, int number)
        {
            var extension = Field(name, number, oneofIndex: null);
            extension.Extendee = ".base.Thing";
            return extension;
        }

        static EnumDescriptorProto Enumeration(string name, string value) =>
            new() { Name = name, Value = { new EnumValueDescriptorProto { Name = value, Number = 0 } } };
    }
}
