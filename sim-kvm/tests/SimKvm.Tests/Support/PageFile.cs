using SimKvm.Userspace;
using SimMachine.Addressing;

namespace SimKvm.Tests.Support;

/// <summary>A file of one page, for memory that has content and cannot be stored to: the simulated kernel has no mprotect.</summary>
internal sealed class PageFile : KernelFile
{
    private readonly SimHost _host;
    private readonly Pfn _frame;

    public PageFile(SimHost host, KTask current, ReadOnlySpan<byte> content)
    {
        _host = host;
        if (!host.Machine.TryAllocateFrame(out _frame))
        {
            throw new InvalidOperationException("no free frame");
        }
        host.Machine.HostWrite(current, _frame, 0, content);
    }

    public override FdKind Kind => FdKind.Sev;

    public override string Name => "page";

    internal override Errno Mmap(KTask current, in FileMapping mapping) => Errno.OK;

    internal override Errno Fault(KTask current, ulong index, out Pfn pfn)
    {
        pfn = _frame;
        return Errno.OK;
    }

    internal override void Release(KTask current) => _host.Machine.FreeFrame(current, _frame);
}
