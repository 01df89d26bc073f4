using Google.Protobuf;
using Google.Protobuf.WellKnownTypes;
using Google.Rpc;
using Grpc.Core;

namespace VmmService.Server.Wire;

/// <summary>
/// How the daemon says that it could not do what was asked: gRPC errors with google.rpc details. What the simulated kernel answers is never one of these, it is
/// an outcome.
/// </summary>
internal static class Refusals
{
    public const string Domain = "vmmservice";

    private const string DetailsTrailer = "grpc-status-details-bin";

    // A refusal travels in trailers, for which clients have little room, and may quote what the client sent.
    private const int MaxText = 1024;

    /// <summary>INVALID_ARGUMENT: a field of the request cannot be.</summary>
    public static RpcException BadField(string field, string problem)
    {
        problem = Bounded(problem);
        var details = new BadRequest();
        details.FieldViolations.Add(new BadRequest.Types.FieldViolation { Field = field, Description = problem });
        return With(StatusCode.InvalidArgument, $"{field}: {problem}", details);
    }

    /// <summary>INVALID_ARGUMENT for an enum field that is unset or has no such value: the legal values are listed.</summary>
    public static RpcException BadEnum<T>(string field, T value)
        where T : struct, System.Enum
    {
        IEnumerable<string> legal = System.Enum.GetValues<T>().Where(each => Convert.ToInt32(each, null) != 0).Select(each => $"{each} ({Convert.ToInt32(each, null)})");
        return BadField(field, $"{value} is not a value that can be used; use one of {string.Join(", ", legal)}");
    }

    /// <summary>NOT_FOUND: no such host, process, VM.</summary>
    public static RpcException NotFound(string type, string name, string advice)
    {
        name = Bounded(name);
        return With(StatusCode.NotFound, $"there is no {type} {name}; {advice}", new ResourceInfo { ResourceType = type, ResourceName = name, Description = advice });
    }

    /// <summary>RESOURCE_EXHAUSTED: a limit of the daemon.</summary>
    public static RpcException OverQuota(string subject, string problem)
    {
        var details = new QuotaFailure();
        details.Violations.Add(new QuotaFailure.Types.Violation { Subject = subject, Description = problem });
        return With(StatusCode.ResourceExhausted, $"{subject}: {problem}", details);
    }

    /// <summary>An error with one message of details, which travel in the trailer that gRPC libraries know.</summary>
    public static RpcException With(StatusCode code, string message, IMessage details)
    {
        var status = new Google.Rpc.Status { Code = (int)code, Message = message };
        status.Details.Add(Any.Pack(details));
        var trailers = new Metadata { { DetailsTrailer, status.ToByteArray() } };
        return new RpcException(new Grpc.Core.Status(code, message), trailers);
    }

    /// <summary>A text short enough for a trailer.</summary>
    public static string Bounded(string text)
    {
        if (text.Length <= MaxText)
        {
            return text;
        }
        // Not between the halves of a character.
        int end = char.IsHighSurrogate(text[MaxText - 1]) ? MaxText - 1 : MaxText;
        return $"{text[..end]}... ({text.Length} characters)";
    }

    /// <summary>A script or scenario cannot be executed as it stands.</summary>
    public static RpcException Of(Scripts.ScriptException wrong) => With(StatusCode.InvalidArgument, wrong.Message, new V1.ScriptError
    {
        Line = (uint)wrong.Place.Line,
        Column = (uint)wrong.Place.Column,
        Problem = wrong.Problem,
        Advice = wrong.Advice,
    });
}
