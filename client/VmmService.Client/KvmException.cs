using System.Globalization;
using System.Text;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>
/// The simulated kernel refused a call: it set an errno. This is a correct answer of a working daemon; what goes wrong with the daemon or on the way to it is a
/// <see cref="VmmServiceException"/>.
/// </summary>
public sealed class KvmException : Exception
{
    /// <summary>An exception for what <paramref name="outcome"/> says.</summary>
    /// <param name="operation">The system call or ioctl, for example KVM_CREATE_VM.</param>
    /// <param name="outcome">The outcome; its errno is not 0.</param>
    /// <param name="firmwareStatus">kvm_sev_cmd.error and its name, for commands of KVM_MEMORY_ENCRYPT_OP.</param>
    /// <param name="hwError">kvm_tdx_cmd.hw_error and its name, for those of a TD.</param>
    public KvmException(string operation, Outcome outcome, SevStatus? firmwareStatus = null, TdxStatus? hwError = null)
        : base(MessageOf(operation, outcome, firmwareStatus, hwError))
    {
        Operation = operation;
        Outcome = outcome;
        FirmwareStatus = firmwareStatus;
        HwError = hwError;
    }

    /// <summary>The system call or ioctl that failed, by the kernel's name.</summary>
    public string Operation { get; }

    /// <summary>The outcome as the daemon sent it.</summary>
    public Outcome Outcome { get; }

    /// <summary>The positive errno number.</summary>
    public int Errno => Outcome.Errno;

    /// <summary>"EINVAL" and so on.</summary>
    public string ErrnoName => Outcome.ErrnoName;

    /// <summary>Why: the first entry is the check that refused first (the root), the last is what the caller was told.</summary>
    public IReadOnlyList<Cause> Causes => Outcome.Causes;

    /// <summary>What this call did that a real machine would have suffered from.</summary>
    public IReadOnlyList<Finding> Findings => Outcome.Findings;

    /// <summary>The firmware's status after the call, for commands of KVM_MEMORY_ENCRYPT_OP; null otherwise.</summary>
    public SevStatus? FirmwareStatus { get; }

    /// <summary>The TDX module's completion status after the call, for commands of a TD that tell it; null otherwise.</summary>
    public TdxStatus? HwError { get; }

    /// <summary>Number of the call on its host, from 1; the same calls give the same numbers.</summary>
    public ulong Call => Outcome.Call;

    private static string MessageOf(string operation, Outcome outcome, SevStatus? firmwareStatus, TdxStatus? hwError)
    {
        var text = new StringBuilder(outcome.Text.Length > 0 ? outcome.Text : $"{operation}: {outcome.ErrnoName}");
        if (firmwareStatus is { Error: not 0 })
        {
            text.Append(CultureInfo.InvariantCulture, $" [firmware status 0x{firmwareStatus.Error:x} {firmwareStatus.ErrorName}]");
        }

        if (hwError is { HwError: not 0 })
        {
            text.Append(CultureInfo.InvariantCulture, $" [completion status {hwError.HwErrorName}]");
        }

        // One cause is told in the text already; a chain shows how the inner errno became the outer one.
        if (outcome.Causes.Count > 1)
        {
            foreach (Cause cause in outcome.Causes)
            {
                text.AppendLine().Append("  ").Append(Describe(cause));
            }
        }
        return text.ToString();
    }

    private static string Describe(Cause cause)
    {
        string operands = string.Join(", ", cause.Operands.Select(each => $"{each.Name} {each.Text}"));
        return $"{cause.Code}: {cause.Sentence}{(operands.Length > 0 ? $" ({operands})" : "")} [{cause.Rule}; {cause.Source}]";
    }
}
