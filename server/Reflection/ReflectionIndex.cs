using Google.Protobuf.Reflection;
using Grpc.Core;
using Grpc.Reflection.V1;
using ServiceDescriptor = Google.Protobuf.Reflection.ServiceDescriptor;

namespace VmmService.Server.Reflection;

/// <summary>
/// Answers what can be asked about the protos of a set of services. Next door are the two gRPC services that carry the questions: v1 and, with the
/// same
/// messages under an older name, v1alpha. All is collected when the index is made and nothing changes afterwards, so any number of calls may ask at
/// once.
/// Every name that an answer mentions can be asked about in turn: the index covers the files of the services and all that they import.
/// </summary>
public sealed class ReflectionIndex
{
    private readonly string[] _services;
    private readonly SortedDictionary<string, FileDescriptor> _files = new(StringComparer.Ordinal);
    private readonly Dictionary<string, FileDescriptor> _symbols = new(StringComparer.Ordinal);

    /// <summary>The extensions of each message, by number. A message without extensions is there, with an empty list.</summary>
    private readonly Dictionary<string, SortedDictionary<int, FileDescriptor>> _extensions = new(StringComparer.Ordinal);

    /// <param name="services">The services to tell of. Reflection is not among them by itself: list it to have it told.</param>
    public ReflectionIndex(IEnumerable<ServiceDescriptor> services)
    {
        ArgumentNullException.ThrowIfNull(services);
        var all = services.ToArray();
        _services = [.. all.Select(service => service.FullName).Distinct(StringComparer.Ordinal).Order(StringComparer.Ordinal)];
        foreach (var service in all)
        {
            foreach (var file in WithImports(service.File)) _files.TryAdd(file.Name, file);
        }

        foreach (var file in _files.Values) AddSymbols(file);
        // After the symbols: a file may extend a message of a file that comes later in the alphabet.
        foreach (var file in _files.Values) AddExtensions(file);
    }

    /// <summary>The answer to one request. What is not found is an answer too, with the code NOT_FOUND.</summary>
    public ServerReflectionResponse Answer(ServerReflectionRequest request)
    {
        ArgumentNullException.ThrowIfNull(request);
        var response = new ServerReflectionResponse { ValidHost = request.Host, OriginalRequest = request };
        switch (request.MessageRequestCase)
        {
            case ServerReflectionRequest.MessageRequestOneofCase.ListServices:
                response.ListServicesResponse = new ListServiceResponse();
                response.ListServicesResponse.Service.AddRange(_services.Select(name => new ServiceResponse { Name = name }));
                break;

            case ServerReflectionRequest.MessageRequestOneofCase.FileByFilename:
                SetFile(response, _files.GetValueOrDefault(request.FileByFilename), $"No file is named '{request.FileByFilename}'.");
                break;

            case ServerReflectionRequest.MessageRequestOneofCase.FileContainingSymbol:
                var symbol = request.FileContainingSymbol;
                SetFile(response, _symbols.GetValueOrDefault(symbol), $"No service, method, message, field or enum is named '{symbol}'.");
                break;

            case ServerReflectionRequest.MessageRequestOneofCase.FileContainingExtension:
                var (type, number) = (request.FileContainingExtension.ContainingType, request.FileContainingExtension.ExtensionNumber);
                var declaredIn = _extensions.TryGetValue(type, out var ofType) ? ofType.GetValueOrDefault(number) : null;
                SetFile(response, declaredIn, $"No extension {number} of '{type}' is known.");
                break;

            case ServerReflectionRequest.MessageRequestOneofCase.AllExtensionNumbersOfType:
                var baseType = request.AllExtensionNumbersOfType;
                if (_extensions.TryGetValue(baseType, out var extensions))
                {
                    response.AllExtensionNumbersResponse = new ExtensionNumberResponse { BaseTypeName = baseType };
                    response.AllExtensionNumbersResponse.ExtensionNumber.AddRange(extensions.Keys);
                }
                else
                {
                    SetError(response, StatusCode.NotFound, $"No message is named '{baseType}'.");
                }

                break;

            default:
                SetError(response, StatusCode.InvalidArgument, "The request asks nothing: set one field of message_request.");
                break;
        }

        return response;
    }

    private static void SetFile(ServerReflectionResponse response, FileDescriptor? file, string otherwise)
    {
        if (file is null)
        {
            SetError(response, StatusCode.NotFound, otherwise);
            return;
        }

        // The imports come along, so that a client can link the file without asking again for each.
        response.FileDescriptorResponse = new FileDescriptorResponse();
        response.FileDescriptorResponse.FileDescriptorProto.AddRange(WithImports(file).Select(part => part.SerializedData));
    }

    private static void SetError(ServerReflectionResponse response, StatusCode code, string message) =>
        response.ErrorResponse = new ErrorResponse { ErrorCode = (int)code, ErrorMessage = message };

    /// <summary>The file itself first, then everything it imports, directly or not, once each.</summary>
    private static List<FileDescriptor> WithImports(FileDescriptor file)
    {
        List<FileDescriptor> found = [file];
        for (var i = 0; i < found.Count; i++)
        {
            foreach (var import in found[i].Dependencies)
            {
                if (!found.Exists(known => known.Name == import.Name)) found.Add(import);
            }
        }

        return found;
    }

    private void AddSymbols(FileDescriptor file)
    {
        foreach (var service in file.Services)
        {
            _symbols.TryAdd(service.FullName, file);
            foreach (var method in service.Methods) _symbols.TryAdd(method.FullName, file);
        }

        foreach (var message in file.MessageTypes) AddMessage(message);
        foreach (var type in file.EnumTypes) AddEnum(type);
    }

    private void AddMessage(MessageDescriptor message)
    {
        _symbols.TryAdd(message.FullName, message.File);
        _extensions.TryAdd(message.FullName, []);
        foreach (var field in message.Fields.InDeclarationOrder()) _symbols.TryAdd(field.FullName, message.File);
        foreach (var oneof in message.Oneofs) _symbols.TryAdd(oneof.FullName, message.File);
        foreach (var nested in message.NestedTypes) AddMessage(nested);
        foreach (var type in message.EnumTypes) AddEnum(type);
    }

    private void AddEnum(EnumDescriptor type)
    {
        _symbols.TryAdd(type.FullName, type.File);
        // In protobuf a value is a sibling of its enum, not a member: pkg.VALUE, not pkg.Enum.VALUE.
        var scope = type.FullName[..^type.Name.Length];
        foreach (var value in type.Values) _symbols.TryAdd(scope + value.Name, type.File);
    }

    private void AddExtensions(FileDescriptor file)
    {
        foreach (var extension in file.Extensions.UnorderedExtensions) AddExtension(extension);
        foreach (var message in file.MessageTypes) AddNestedExtensions(message);
    }

    private void AddNestedExtensions(MessageDescriptor message)
    {
        foreach (var extension in message.Extensions.UnorderedExtensions) AddExtension(extension);
        foreach (var nested in message.NestedTypes) AddNestedExtensions(nested);
    }

    private void AddExtension(FieldDescriptor extension)
    {
        _symbols.TryAdd(extension.FullName, extension.File);
        _extensions[extension.ExtendeeType.FullName].TryAdd(extension.FieldNumber, extension.File);
    }
}
