using System.Globalization;
using System.Text;
using SimKvm.Userspace;
using VmmService.V1;
using Cause = VmmService.V1.Cause;
using Finding = VmmService.V1.Finding;
using Operand = VmmService.V1.Operand;
using SevStatus = VmmService.V1.SevStatus;
using Signal = VmmService.V1.Signal;

namespace VmmService.Server.Wire;

/// <summary>From what a simulated call answered to the messages that say so.</summary>
internal static class Outcomes
{
    /// <param name="report">The call.</param>
    /// <param name="what">The call in words, where the RPC knows them better than the ioctl table.</param>
    public static Outcome Of(CallReport report, string? what = null)
    {
        var outcome = new Outcome
        {
            Errno = (int)report.Errno,
            ErrnoName = report.Succeeded ? "" : report.Errno.ToString(),
            Value = report.Value,
            Text = Text(report, what ?? report.What),
            Call = report.Call,
        };
        if (report.Signal is { } signal)
        {
            outcome.Signal = new Signal { Signo = (int)signal.Signo, Name = signal.Signo.ToString(), SiCode = signal.SiCode, SiCodeName = signal.CodeName, SiAddr = signal.SiAddr };
        }
        outcome.Causes.AddRange(report.Causes.Select(Of));
        outcome.Findings.AddRange(report.Findings.Select(Of));
        return outcome;
    }

    public static Finding Of(SimMachine.Stepping.Finding finding)
    {
        var message = new Finding { Kind = finding.Kind, Text = finding.Text, Step = finding.Step, Call = finding.Call };
        message.Operands.AddRange(finding.Operands.Select(Of));
        message.Blame.AddRange(finding.Blame);
        return message;
    }

    public static SevStatus OfSev(uint error) => new()
    {
        Error = error,
        ErrorName = Enum.IsDefined((SimMachine.Amd.SevStatus)error) ? ((SimMachine.Amd.SevStatus)error).ToString() : "",
    };

    public static string Hex(ReadOnlySpan<byte> bytes) => Convert.ToHexStringLower(bytes);

    public static Cause Of(SimMachine.Stepping.Cause cause)
    {
        var message = new Cause
        {
            Rule = cause.Rule.Id,
            Code = cause.Code,
            Sentence = cause.Rule.Sentence,
            Source = cause.Rule.Source,
            Advice = cause.Rule.Advice,
            Step = cause.Step,
        };
        message.Operands.AddRange(cause.Operands.Select(Of));
        return message;
    }

    private static Operand Of(SimMachine.Stepping.Operand operand) => new() { Name = operand.Name, Value = operand.Value, Text = operand.Text };

    // "what: EIO, because EINVAL: the page is not private (gpa 0x..., ...). Try: ..."
    private static string Text(CallReport report, string what)
    {
        var text = new StringBuilder(what);
        if (report.Succeeded)
        {
            return text.Append(CultureInfo.InvariantCulture, $" = {(report.Value > 0xffff ? "0x" + report.Value.ToString("x", CultureInfo.InvariantCulture) : report.Value)}").ToString();
        }
        // A load or store has no errno: what it brings is the signal.
        bool access = report.Signal is not null && report.Errno == SimKvm.Errno.EFAULT;
        text.Append(": ").Append(access ? $"{report.Signal!.Value.Signo} {report.Signal.Value.CodeName} at 0x{report.Signal.Value.SiAddr:x}" : report.Errno.ToString());
        if (report.Causes.Count > 0)
        {
            SimMachine.Stepping.Cause root = report.Causes[0];
            text.Append(root.Code == report.Errno.ToString() && report.Causes.Count == 1 ? ": " + root.ToString()[(root.Code.Length + 2)..] : ", because " + root);
            text.Append(". Try: ").Append(root.Rule.Advice);
        }
        return text.ToString();
    }
}
