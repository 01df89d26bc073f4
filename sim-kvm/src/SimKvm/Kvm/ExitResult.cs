namespace SimKvm.Kvm;

/// <summary>
/// What handling an exit of the guest came to: back into the guest (the kernel's 1), out to user space with an exit record (0), or KVM_RUN fails (an errno).
/// </summary>
internal readonly record struct ExitResult(Errno Errno, bool ToUserSpace)
{
    public static ExitResult Resume { get; } = new(Errno.OK, false);

    public static ExitResult UserSpace { get; } = new(Errno.OK, true);

    public static ExitResult Fail(Errno errno) => new(errno, true);

    /// <summary>The guest goes on.</summary>
    public bool Resumes => !ToUserSpace;
}

/// <summary>What the next KVM_RUN does before it enters the guest: user space's answer is taken in (complete_userspace_io).</summary>
internal delegate ExitResult RunCompletion(KTask current);
