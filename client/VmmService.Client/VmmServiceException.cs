using Google.Protobuf;
using Google.Protobuf.Reflection;
using Google.Protobuf.WellKnownTypes;
using Google.Rpc;
using Grpc.Core;

namespace VmmService.Client;

/// <summary>
/// The daemon could not be reached or could not do what was asked: unknown host, quota, malformed request. What the simulated kernel refuses is a
/// <see cref="KvmException"/>. The google.rpc details that came along are decoded.
/// </summary>
public sealed class VmmServiceException : Exception
{
    // The standard trailer: a google.rpc.Status, serialised.
    private const string DetailsTrailer = "grpc-status-details-bin";

    private static readonly TypeRegistry KnownDetails = TypeRegistry.FromFiles(
        ErrorDetailsReflection.Descriptor, StatusReflection.Descriptor, V1.OutcomeReflection.Descriptor, V1.ScriptReflection.Descriptor);

    /// <summary>An exception for what gRPC reported.</summary>
    public VmmServiceException(RpcException inner, string address)
        : this(inner, address, DetailsOf(inner))
    {
    }

    private VmmServiceException(RpcException inner, string address, IReadOnlyList<IMessage> details)
        : base(MessageOf(inner, address, details), inner)
    {
        StatusCode = inner.StatusCode;
        Address = address;
        Details = details;
    }

    /// <summary>Why, as gRPC counts reasons. Unavailable: nobody answered at <see cref="Address"/>.</summary>
    public StatusCode StatusCode { get; }

    /// <summary>The address of the daemon, as given to <see cref="VmmConnection.Connect(string, VmmConnectionOptions?)"/>.</summary>
    public string Address { get; }

    /// <summary>The details whose type is known here (google.rpc, and Outcome and ScriptError of this service), in order.</summary>
    public IReadOnlyList<IMessage> Details { get; }

    /// <summary>Fields of the request that were refused.</summary>
    public IReadOnlyList<BadRequest.Types.FieldViolation> FieldViolations => [.. Details.OfType<BadRequest>().SelectMany(each => each.FieldViolations)];

    /// <summary>Limits of the daemon that were met.</summary>
    public IReadOnlyList<QuotaFailure.Types.Violation> QuotaViolations => [.. Details.OfType<QuotaFailure>().SelectMany(each => each.Violations)];

    /// <summary>The reason for programs, if one was given.</summary>
    public ErrorInfo? ErrorInfo => Details.OfType<ErrorInfo>().FirstOrDefault();

    /// <summary>Where a script is wrong.</summary>
    public V1.ScriptError? ScriptError => Details.OfType<V1.ScriptError>().FirstOrDefault();

    /// <summary>What does not exist, for StatusCode.NotFound.</summary>
    public ResourceInfo? ResourceInfo => Details.OfType<ResourceInfo>().FirstOrDefault();

    private static List<IMessage> DetailsOf(RpcException inner)
    {
        List<IMessage> details = [];
        if (inner.Trailers.GetValueBytes(DetailsTrailer) is not { } bytes)
            return details;

        try
        {
            foreach (Any packed in Google.Rpc.Status.Parser.ParseFrom(bytes).Details)
            {
                if (packed.Unpack(KnownDetails) is { } message)
                    details.Add(message);
            }
        }
        catch (InvalidProtocolBufferException)
        {
            // Whatever sits between us and the daemon wrote a trailer of its own: the status alone has to do.
        }
        return details;
    }

    private static string MessageOf(RpcException inner, string address, IReadOnlyList<IMessage> details)
    {
        string detail = inner.Status.Detail;
        string message = inner.StatusCode switch
        {
            // gRPC wraps the socket's words in its own; the innermost exception says what happened.
            StatusCode.Unavailable => $"No daemon answers at {address}: {Innermost(inner.Status.DebugException)?.Message ?? detail}",
            StatusCode.Unimplemented => $"The daemon at {address} does not know this call ({detail}); it is older than this client, or it is no VmmService",
            _ => $"{inner.StatusCode} from the daemon at {address}: {detail}",
        };

        // The daemon repeats the first violation in the status; further ones are only in the details.
        foreach (BadRequest.Types.FieldViolation violation in details.OfType<BadRequest>().SelectMany(each => each.FieldViolations))
        {
            if (!message.Contains(violation.Description, StringComparison.Ordinal))
                message += $"; {violation.Field}: {violation.Description}";
        }
        return message;
    }

    private static Exception? Innermost(Exception? exception)
    {
        while (exception?.InnerException is { } inner)
            exception = inner;
        return exception;
    }
}
