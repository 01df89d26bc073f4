namespace SimKvm.Userspace;

/// <summary>Signals that a call or an access can bring, with Linux's numbers.</summary>
public enum Signo
{
    SIGBUS = 7,
    SIGKILL = 9,
    SIGSEGV = 11,
    SIGPIPE = 13,
}

/// <summary>
/// A signal that a call or an access of the program brought (siginfo). The process is not killed by it: it goes on as if it had a handler that returns, and the
/// call that brought it says so.
/// </summary>
/// <param name="SiCode">Meaning depends on the signal; see <see cref="CodeName"/>.</param>
/// <param name="SiAddr">The address that faulted; 0 where the signal has none.</param>
public readonly record struct Signal(Signo Signo, int SiCode, ulong SiAddr)
{
    // Codes above 0 come from the kernel; each signal counts its own from 1.
    private const int MapErr = 1, AccErr = 2;
    private const int AdrErr = 2, MceErrAr = 4, MceErrAo = 5;
    private const int User = 0, Kernel = 0x80;

    /// <summary>The kernel's name of <see cref="SiCode"/>, for example SEGV_MAPERR.</summary>
    public string CodeName => (Signo, SiCode) switch
    {
        (Signo.SIGSEGV, MapErr) => "SEGV_MAPERR",
        (Signo.SIGSEGV, AccErr) => "SEGV_ACCERR",
        (Signo.SIGBUS, AdrErr) => "BUS_ADRERR",
        (Signo.SIGBUS, MceErrAr) => "BUS_MCEERR_AR",
        (Signo.SIGBUS, MceErrAo) => "BUS_MCEERR_AO",
        (_, Kernel) => "SI_KERNEL",
        _ => "SI_USER",
    };

    /// <summary>Nothing is mapped at the address.</summary>
    internal static Signal SegvMapErr(ulong address) => new(Signo.SIGSEGV, MapErr, address);

    /// <summary>The mapping's protection forbids the access.</summary>
    internal static Signal SegvAccErr(ulong address) => new(Signo.SIGSEGV, AccErr, address);

    /// <summary>The file has no page there.</summary>
    internal static Signal BusAdrErr(ulong address) => new(Signo.SIGBUS, AdrErr, address);

    /// <summary>The page's memory has failed, and the access needs it (action required).</summary>
    internal static Signal BusMceErrAr(ulong address) => new(Signo.SIGBUS, MceErrAr, address);

    /// <summary>A page's memory has failed, and nobody is waiting for it (action optional).</summary>
    internal static Signal BusMceErrAo(ulong address) => new(Signo.SIGBUS, MceErrAo, address);

    /// <summary>What the out-of-memory killer sends.</summary>
    internal static Signal OutOfMemory => new(Signo.SIGKILL, Kernel, 0);

    /// <summary>A write to a pipe that nobody reads.</summary>
    internal static Signal Pipe => new(Signo.SIGPIPE, User, 0);
}
