using System.Buffers.Binary;

namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>A kernel with what its earlier answers were: descriptors and addresses by the names that steps give them.</summary>
internal sealed class Side(IKernel kernel)
{
    private readonly Dictionary<int, int> _fds = [];
    private readonly Dictionary<int, (ulong Start, ulong Length)> _addresses = [];

    public IKernel Kernel { get; } = kernel;

    /// <summary>The descriptor; -1 where there is none, or none any more: a number that was closed may be anybody's in this process.</summary>
    public int Fd(int name) => _fds.GetValueOrDefault(name, -1);

    /// <summary>The address of a part of a mapping. False where the mapping is not there or is shorter: what lies behind it may be anybody's in this process.</summary>
    public bool TryAddress(int name, ulong skip, ulong length, out ulong address)
    {
        bool there = _addresses.TryGetValue(name, out (ulong Start, ulong Length) area) && skip + length <= area.Length;
        address = area.Start + skip;
        return there;
    }

    public ulong LengthOf(int name) => _addresses[name].Length;

    /// <summary>Keeps the descriptor that a call gave; what is compared is that it gave one.</summary>
    public Answer KeepFd(int name, Answer answer)
    {
        _fds[name] = answer.Errno == 0 ? (int)answer.Value : -1;
        return answer with { Value = 0 };
    }

    public Answer KeepAddress(int name, Answer answer, ulong length)
    {
        _addresses.Remove(name);
        if (answer.Errno == 0)
        {
            _addresses[name] = ((ulong)answer.Value, (length + 4095) & ~4095UL);
        }
        return answer with { Value = 0 };
    }

    public void Forget(int name) => _fds.Remove(name);

    public void ForgetAddress(int name)
    {
        if (_addresses.Remove(name, out (ulong Start, ulong Length) area) && Kernel is RealKernel real)
        {
            real.Forget(area.Start);
        }
    }
}

/// <summary>A call that both kernels get. Everything it names may be missing, so any part of a walk is a walk.</summary>
internal abstract record Step
{
    /// <summary>The answer, in words that must be the same on both kernels.</summary>
    public abstract Task<string> Play(Side side);

    protected static byte[] Struct(int size, int cut, params ReadOnlySpan<(int Offset, ulong Value, int Bytes)> fields)
    {
        byte[] bytes = new byte[size];
        foreach ((int offset, ulong value, int count) in fields)
        {
            if (count == 4)
            {
                BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(offset), (uint)value);
            }
            else
            {
                BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(offset), value);
            }
        }
        return bytes[..^cut];
    }
}

internal sealed record OpenKvm(int To) : Step
{
    public override async Task<string> Play(Side side) => side.KeepFd(To, await side.Kernel.Open("/dev/kvm")).ToString();
}

internal sealed record CloseFd(int F) : Step
{
    public override async Task<string> Play(Side side)
    {
        Answer answer = await side.Kernel.Close(side.Fd(F));
        side.Forget(F);
        return answer.ToString();
    }
}

/// <summary>An ioctl with a number as argument.</summary>
/// <param name="To">Takes the descriptor that it gives; 0 where its value is compared.</param>
internal sealed record PlainIoctl(int F, uint Request, ulong Argument, int To = 0) : Step
{
    public override async Task<string> Play(Side side)
    {
        Answer answer = await side.Kernel.Ioctl(side.Fd(F), Request, Argument);
        return (To > 0 ? side.KeepFd(To, answer) : answer).ToString();
    }

    public override string ToString() => $"ioctl(f{F}, 0x{Request:X}, 0x{Argument:x}){(To > 0 ? $" -> f{To}" : "")}";
}

internal sealed record CreateGuestMemfd(int F, ulong Size, ulong Flags, int Cut, int To) : Step
{
    public override async Task<string> Play(Side side) =>
        side.KeepFd(To, await side.Kernel.Ioctl(side.Fd(F), Numbers.CreateGuestMemfd, Struct(64, Cut, (0, Size, 8), (8, Flags, 8)))).ToString();

    public override string ToString() => $"CREATE_GUEST_MEMFD(f{F}, size 0x{Size:x}, flags 0x{Flags:x}{(Cut > 0 ? ", cut short" : "")}) -> f{To}";
}

internal sealed record SetRegion(
    int F, int Version, uint Slot, uint Flags, ulong Gpa, ulong Size, ulong Uaddr, ulong Offset, int Gmem, int Cut) : Step
{
    public override async Task<string> Play(Side side)
    {
        byte[] argument = Struct(
            160, 0, (0, Slot, 4), (4, Flags, 4), (8, Gpa, 8), (16, Size, 8), (24, Uaddr, 8), (32, Offset, 8), (40, unchecked((uint)side.Fd(Gmem)), 4));
        return Version == 1
            ? (await side.Kernel.Ioctl(side.Fd(F), Numbers.SetUserMemoryRegion, argument[..(32 - Cut)])).ToString()
            : (await side.Kernel.Ioctl(side.Fd(F), Numbers.SetUserMemoryRegion2, argument[..(160 - Cut)])).ToString();
    }

    public override string ToString() =>
        $"SET_USER_MEMORY_REGION{(Version == 1 ? "" : "2")}(f{F}, slot 0x{Slot:x}, flags {Flags}, gpa 0x{Gpa:x}, size 0x{Size:x}, uaddr 0x{Uaddr:x}, offset 0x{Offset:x}, gmem f{Gmem}{(Cut > 0 ? ", cut short" : "")})";
}

internal sealed record SetAttributes(int F, ulong Address, ulong Size, ulong Attributes, ulong Flags) : Step
{
    public override async Task<string> Play(Side side) =>
        (await side.Kernel.Ioctl(side.Fd(F), Numbers.SetMemoryAttributes, Struct(32, 0, (0, Address, 8), (8, Size, 8), (16, Attributes, 8), (24, Flags, 8)))).ToString();
}

/// <summary>The structure that comes back is compared as well.</summary>
internal sealed record PreFault(int F, ulong Gpa, ulong Size, ulong Flags, int Cut) : Step
{
    public override async Task<string> Play(Side side)
    {
        byte[] argument = Struct(64, Cut, (0, Gpa, 8), (8, Size, 8), (16, Flags, 8), (24, 0x5a5aUL, 8));
        Answer answer = await side.Kernel.Ioctl(side.Fd(F), Numbers.PreFaultMemory, argument);
        return $"{answer} {Convert.ToHexString(argument)}";
    }
}

internal sealed record EnableCap(int F, uint Cap, uint Flags, ulong Argument) : Step
{
    public override async Task<string> Play(Side side) =>
        (await side.Kernel.Ioctl(side.Fd(F), Numbers.EnableCap, Struct(104, 0, (0, Cap, 4), (4, Flags, 4), (8, Argument, 8)))).ToString();
}

internal sealed record Fallocate(int F, int Mode, long Offset, long Length) : Step
{
    public override async Task<string> Play(Side side) => (await side.Kernel.Fallocate(side.Fd(F), Mode, Offset, Length)).ToString();
}

/// <summary>Of a guest_memfd all that fstat tells of it; of the other kinds only whether they are open.</summary>
internal sealed record Fstat(int F, bool IsGmem) : Step
{
    public override async Task<string> Play(Side side)
    {
        (Answer answer, ulong size, ulong blocks, uint mode) = await side.Kernel.Fstat(side.Fd(F));
        return answer.Errno != 0 || !IsGmem ? answer.ToString() : $"size {size}, {blocks} blocks, mode {mode:x}";
    }
}

internal sealed record Mmap(ulong Length, uint Prot, uint Flags, int F, ulong Offset, int To) : Step
{
    public override async Task<string> Play(Side side) =>
        side.KeepAddress(To, await side.Kernel.Mmap(Length, Prot, Flags, side.Fd(F), Offset), Length).ToString();
}

/// <summary>Unmaps a mapping whole (no length), or tries something that no kernel unmaps anything for.</summary>
internal sealed record Munmap(int A, ulong Skip, ulong? Length) : Step
{
    public override async Task<string> Play(Side side)
    {
        if (!side.TryAddress(A, Skip, 0, out ulong address))
        {
            return "nothing mapped";
        }
        Answer answer = await side.Kernel.Munmap(address, Length ?? side.LengthOf(A));
        if (answer.Errno == 0)
        {
            side.ForgetAddress(A);
        }
        return answer.ToString();
    }
}

internal sealed record Load(int A, ulong Skip, int Length) : Step
{
    public override async Task<string> Play(Side side)
    {
        if (!side.TryAddress(A, Skip, (ulong)Length, out ulong address))
        {
            return "nothing mapped";
        }
        (Answer answer, byte[] bytes) = await side.Kernel.Load(address, Length);
        return answer.Errno != 0 ? answer.ToString() : Convert.ToHexString(bytes);
    }
}

internal sealed record Store(int A, ulong Skip, byte[] Bytes) : Step
{
    public override async Task<string> Play(Side side) =>
        side.TryAddress(A, Skip, (ulong)Bytes.Length, out ulong address) ? (await side.Kernel.Store(address, Bytes)).ToString() : "nothing mapped";

    public override string ToString() => $"Store {{ A = {A}, Skip = {Skip}, Bytes = {Convert.ToHexString(Bytes)} }}";
}
