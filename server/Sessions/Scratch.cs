using SimKvm.Userspace;
using VmmService.Server.Wire;

namespace VmmService.Server.Sessions;

/// <summary>
/// A few pages of a process's memory in which the daemon puts structures that an ioctl points to: what a VMM's stack is for. Mapped by the process's own mmap on
/// first use, so it costs a call like any other.
/// </summary>
internal sealed class Scratch(Process process, ulong address)
{
    public const int Size = 16 * 4096;

    public ulong Address { get; } = address;

    public void Store(int offset, ReadOnlyMemory<byte> bytes)
    {
        using IDisposable? quiet = process.Host.Quietly();
        Check(process.Write(Address + (ulong)offset, bytes));
    }

    public byte[] Load(int offset, int length)
    {
        byte[] bytes = new byte[length];
        using IDisposable? quiet = process.Host.Quietly();
        Check(process.Read(Address + (ulong)offset, bytes));
        return bytes;
    }

    // The scratch pages are the process's: it may have unmapped them.
    private static void Check(CallReport report)
    {
        if (!report.Succeeded)
        {
            throw Refusals.OverQuota("scratch", $"the process's scratch pages cannot be used: {report.Errno}; do not unmap them, and give the host enough memory_bytes");
        }
    }
}
