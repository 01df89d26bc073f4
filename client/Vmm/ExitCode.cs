namespace VmmService.Vmm;

/// <summary>What the command's exit code means. <see cref="Help"/> is shown with --help.</summary>
internal static class ExitCode
{
    public const int Ok = 0;
    public const int KernelRefused = 1;

    /// <summary>Of vmm digest diff and explain, which document their codes themselves: the digests differ, or nothing gives the digest.</summary>
    public const int Different = 1;
    public const int Usage = 2;
    public const int NoServer = 3;
    public const int Cancelled = 130;

    public const string Help =
        """
        Exit codes:
          0    done
          1    the simulated kernel refused a call (an errno, with its causes on standard error), an expectation of a script was not met, or two profiles part
          2    the command line or an input file cannot be used
          3    the daemon could not be reached, or failed
          130  interrupted
        """;
}
