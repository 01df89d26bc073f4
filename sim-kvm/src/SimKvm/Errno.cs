namespace SimKvm;

/// <summary>An error number of Linux on x86-64. 0 is success. A modelled failure is one of these, never an exception.</summary>
public enum Errno
{
    OK = 0,
    EPERM = 1,
    ENOENT = 2,
    EINTR = 4,
    EIO = 5,
    ENXIO = 6,
    E2BIG = 7,
    EBADF = 9,
    EAGAIN = 11,
    ENOMEM = 12,
    EACCES = 13,
    EFAULT = 14,
    EBUSY = 16,
    EEXIST = 17,
    ENODEV = 19,
    EINVAL = 22,
    EMFILE = 24,
    ENOTTY = 25,
    EFBIG = 27,
    ENOSPC = 28,
    ESPIPE = 29,
    EDEADLK = 35,
    ENAMETOOLONG = 36,
    ENOSYS = 38,
    EOPNOTSUPP = 95,
    ETIMEDOUT = 110,
    EHWPOISON = 133,
}

/// <summary>What a system call gives back: a value (0 or more) or an errno.</summary>
public readonly record struct SyscallResult(Errno Errno, long Value)
{
    public bool Succeeded => Errno == Errno.OK;

    public static implicit operator SyscallResult(Errno errno) => new(errno, 0);

    public static SyscallResult Of(long value) => new(Errno.OK, value);
}
