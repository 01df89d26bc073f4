namespace VmmService.IntegrationTests.Conformance.RealKvm;

internal sealed record Memfd(uint Flags, int To) : Step
{
    public override async Task<string> Play(Side side) => side.KeepFd(To, await side.Kernel.MemfdCreate(Flags)).ToString();
}

internal sealed record Pipe(uint Flags, int Reads, int Writes) : Step
{
    public override async Task<string> Play(Side side)
    {
        (Answer answer, int readEnd, int writeEnd) = await side.Kernel.Pipe(Flags);
        side.KeepFd(Reads, answer with { Value = readEnd });
        side.KeepFd(Writes, answer with { Value = writeEnd });
        return answer.ToString();
    }
}

internal sealed record Reopen(int F, int Flags, int To) : Step
{
    public override async Task<string> Play(Side side) => side.KeepFd(To, await side.Kernel.Reopen(side.Fd(F), Flags)).ToString();
}

internal sealed record Dup(int F, int To) : Step
{
    public override async Task<string> Play(Side side) => side.KeepFd(To, await side.Kernel.Dup(side.Fd(F))).ToString();
}

internal sealed record Ftruncate(int F, long Length) : Step
{
    public override async Task<string> Play(Side side) => (await side.Kernel.Ftruncate(side.Fd(F), Length)).ToString();
}

internal sealed record Lseek(int F, long Offset, uint Whence) : Step
{
    public override async Task<string> Play(Side side) => (await side.Kernel.Lseek(side.Fd(F), Offset, Whence)).ToString();
}

internal sealed record Fcntl(int F, uint Command, ulong Argument) : Step
{
    public override async Task<string> Play(Side side) => (await side.Kernel.Fcntl(side.Fd(F), Command, Argument)).ToString();
}

internal sealed record Flock(int F, uint Operation) : Step
{
    public override async Task<string> Play(Side side) => (await side.Kernel.Flock(side.Fd(F), Operation)).ToString();
}

internal sealed record Fadvise(int F, long Length, uint Advice) : Step
{
    public override async Task<string> Play(Side side) => (await side.Kernel.Fadvise(side.Fd(F), Length, Advice)).ToString();
}

internal sealed record Fsync(int F) : Step
{
    public override async Task<string> Play(Side side) => (await side.Kernel.Fsync(side.Fd(F))).ToString();
}

/// <summary>Between a file and mapped memory; <paramref name="Raw"/> is an address of its own instead.</summary>
internal sealed record Transfer(bool Write, int F, int A, ulong Skip, ulong Count, long? Position, ulong? Raw = null) : Step
{
    public override async Task<string> Play(Side side)
    {
        ulong address = Raw ?? 0;
        return Raw is null && !side.TryAddress(A, Skip, Count, out address)
            ? "nothing mapped"
            : (await side.Kernel.Transfer(Write, side.Fd(F), address, Count, Position)).ToString();
    }
}

internal sealed record Splice(int From, long? FromOffset, int To, long? ToOffset, ulong Count) : Step
{
    public override async Task<string> Play(Side side) =>
        (await side.Kernel.Splice(side.Fd(From), FromOffset, side.Fd(To), ToOffset, Count)).ToString();
}

internal sealed record Sendfile(int To, int From, long? Offset, ulong Count) : Step
{
    public override async Task<string> Play(Side side) => (await side.Kernel.Sendfile(side.Fd(To), side.Fd(From), Offset, Count)).ToString();
}

internal sealed record OnRange(RangeCall Call, int A, ulong Skip, ulong Length, uint Argument) : Step
{
    // A length so long that the range wraps changes nothing anywhere.
    public override async Task<string> Play(Side side) => side.TryAddress(A, Skip, Length > Wraps ? 0 : Length, out ulong address)
        ? (await side.Kernel.OnRange(Call, address, Length, Argument)).ToString()
        : "nothing mapped";

    private const ulong Wraps = ulong.MaxValue - 0xffff;
}

/// <summary>Moves, shrinks or grows a mapping whole: parts would leave holes that anybody in this process may be given.</summary>
internal sealed record Mremap(int A, ulong OldLength, ulong NewLength, uint Flags) : Step
{
    public override async Task<string> Play(Side side)
    {
        if (!side.TryAddress(A, 0, OldLength, out ulong address) || side.LengthOf(A) != OldLength)
        {
            return "nothing mapped";
        }
        Answer answer = await side.Kernel.Mremap(address, OldLength, NewLength, Flags);
        return (answer.Errno == 0 ? side.KeepAddress(A, answer, NewLength) : answer).ToString();
    }
}
