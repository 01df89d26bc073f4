using SimKvm.Vendors.Intel;
using SimMachine;
using SimMachine.Addressing;
using SimMachine.Intel;

namespace SimKvm.Userspace;

/// <summary>What a vCPU that was driven by hand came to.</summary>
/// <param name="Outcome">Where the call itself was taken.</param>
/// <param name="Fault">Guest physical address of an EPT violation or #VE.</param>
public readonly record struct TdVcpuProgress(TdGuestOutcome Outcome, ulong Fault);

// The TDX module by hand (TdxModuleFile). The calls are no system calls of Linux; each is one call of the host all the same.
public sealed partial class Process
{
    private delegate SyscallResult OnModule(KTask current, TdxModuleFile module);

    /// <summary>Opens the TDX module. The value is the descriptor.</summary>
    public CallReport OpenTdxModule() => Call("open the TDX module", current =>
    {
        if (Host.Machine.Config.Platform != Platform.IntelTdx || !Host.Machine.Config.Tdx.Enabled)
        {
            return current.Fail(Errno.ENODEV, TdxModuleFile.NoModule);
        }
        Errno errno = Files.Reserve(current, out int fd);
        if (errno != Errno.OK)
        {
            return errno;
        }
        Files.Install(fd, new TdxModuleFile(Host), closeOnExec: true);
        return SyscallResult.Of(fd);
    });

    /// <summary>SEAMCALL on a processor of a package. EIO for any status but success, which is in RAX.</summary>
    public CallReport Seamcall(int fd, ref TdcallRegisters registers, int package)
    {
        TdcallRegisters moving = registers;
        string name = SeamcallShape.Of(registers.Rax)?.Name ?? $"leaf {registers.Rax & 0xffff}";
        CallReport report = OnTdxModule(fd, $"SEAMCALL {name}", (current, module) => module.Seamcall(current, ref moving, package));
        registers = moving;
        return report;
    }

    /// <summary>TDCALL of a vCPU that is inside its TD.</summary>
    /// <param name="tdvpr">Address of its TDVPR.</param>
    public CallReport Tdcall(int fd, ulong tdvpr, ref TdcallRegisters registers, out TdVcpuProgress progress)
    {
        TdcallRegisters moving = registers;
        TdVcpuProgress came = default;
        CallReport report = OnTdxModule(fd, $"TDCALL {(TdcallLeaf)(registers.Rax & 0xffff)}", (current, module) =>
        {
            Errno errno = module.Tdcall(current, tdvpr, ref moving, out TdGuestOutcome outcome, out ulong fault);
            came = new TdVcpuProgress(outcome, fault);
            return errno;
        });
        registers = moving;
        progress = came;
        return report;
    }

    /// <summary>A load or store of a vCPU that is inside, within a page.</summary>
    public CallReport AccessAsTd(int fd, ulong tdvpr, ulong gpa, Memory<byte> data, bool write, out TdVcpuProgress progress)
    {
        TdVcpuProgress came = default;
        CallReport report = OnTdxModule(fd, $"guest {(write ? "store" : "load")} at 0x{gpa:x}", (current, module) =>
        {
            Errno errno = module.GuestAccess(current, tdvpr, gpa, data.Span, write, out TdGuestOutcome outcome);
            came = new TdVcpuProgress(outcome, gpa);
            return errno;
        });
        progress = came;
        return report;
    }

    /// <summary>An interrupt takes a vCPU out of its TD.</summary>
    public CallReport KickTdVcpu(int fd, ulong tdvpr) => OnTdxModule(fd, "interrupt a TD's vCPU", (current, module) => module.Kick(current, tdvpr));

    /// <summary>Takes pages of the host for operands. The value is their number.</summary>
    /// <param name="huge">Runs of 512 pages instead of single ones.</param>
    /// <param name="addresses">Of the pages, or of the first page of each run.</param>
    public CallReport AllocateTdxPages(int fd, int count, bool huge, out IReadOnlyList<ulong> addresses)
    {
        var taken = new List<Pfn>();
        CallReport report = OnTdxModule(fd, "allocate pages", (current, module) =>
            module.Allocate(current, count, huge, taken) is var errno && errno != Errno.OK ? errno : SyscallResult.Of(taken.Count));
        addresses = [.. taken.Select(pfn => pfn.ToAddress())];
        return report;
    }

    /// <summary>Gives pages back; all of them, or none.</summary>
    public CallReport FreeTdxPages(int fd, IReadOnlyList<ulong> addresses) => OnTdxModule(fd, "free pages", (current, module) => module.Free(current, addresses));

    /// <summary>Loads of the host from such pages.</summary>
    public CallReport ReadTdxPages(int fd, ulong address, Memory<byte> destination) =>
        OnTdxModule(fd, $"host load at 0x{address:x}", (current, module) => module.Read(current, address, destination.Span));

    /// <summary>Stores of the host into such pages.</summary>
    public CallReport WriteTdxPages(int fd, ulong address, ReadOnlyMemory<byte> source) =>
        OnTdxModule(fd, $"host store at 0x{address:x}", (current, module) => module.Write(current, address, source.Span));

    private CallReport OnTdxModule(int fd, string what, OnModule body) => Call(what, current =>
        !Files.TryGet(fd, out KernelFile? file) ? current.Fail(Errno.EBADF, FdTable.NotOpen, (ulong)fd)
            : file is not TdxModuleFile module ? current.Fail(Errno.EINVAL, TdxModuleFile.NotTheModule, (ulong)fd)
            : body(current, module));
}
