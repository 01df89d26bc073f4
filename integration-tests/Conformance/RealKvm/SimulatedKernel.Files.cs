using VmmService.V1;

namespace VmmService.IntegrationTests.Conformance.RealKvm;

internal sealed partial class SimulatedKernel
{
    public async Task<Answer> MemfdCreate(uint flags) =>
        Of((await _stubs.Files.MemfdCreateAsync(new MemfdCreateRequest { Host = _host, Pid = _pid, Name = "walk", Flags = flags })).Outcome);

    public async Task<(Answer Answer, int ReadEnd, int WriteEnd)> Pipe(uint flags)
    {
        PipeResponse response = await _stubs.Files.PipeAsync(new PipeRequest { Host = _host, Pid = _pid, Flags = flags });
        return (Of(response.Outcome), response.ReadFd, response.WriteFd);
    }

    public async Task<Answer> Reopen(int fd, int flags) =>
        Of((await _stubs.Processes.OpenAsync(new OpenRequest { Host = _host, Pid = _pid, Path = $"/proc/self/fd/{fd}", Flags = (uint)flags })).Outcome);

    public async Task<Answer> Dup(int fd) => Of((await _stubs.Files.DupAsync(new DupRequest { Host = _host, Pid = _pid, Fd = fd })).Outcome);

    public async Task<Answer> Ftruncate(int fd, long length) =>
        Of((await _stubs.Files.FtruncateAsync(new FtruncateRequest { Host = _host, Pid = _pid, Fd = fd, Length = length })).Outcome);

    public async Task<Answer> Lseek(int fd, long offset, uint whence) =>
        Of((await _stubs.Files.LseekAsync(new LseekRequest { Host = _host, Pid = _pid, Fd = fd, Offset = offset, Whence = whence })).Outcome);

    public async Task<Answer> Fcntl(int fd, uint command, ulong argument) =>
        Of((await _stubs.Files.FcntlAsync(new FcntlRequest { Host = _host, Pid = _pid, Fd = fd, Cmd = command, Arg = argument })).Outcome);

    public async Task<Answer> Flock(int fd, uint operation) =>
        Of((await _stubs.Files.FlockAsync(new FlockRequest { Host = _host, Pid = _pid, Fd = fd, Operation = operation })).Outcome);

    public async Task<Answer> Fadvise(int fd, long length, uint advice) =>
        Of((await _stubs.Files.FadviseAsync(new FadviseRequest { Host = _host, Pid = _pid, Fd = fd, Len = length, Advice = advice })).Outcome);

    public async Task<Answer> Fsync(int fd) => Of((await _stubs.Files.FsyncAsync(new FsyncRequest { Host = _host, Pid = _pid, Fd = fd })).Outcome);

    public async Task<Answer> Transfer(bool write, int fd, ulong buffer, ulong count, long? position)
    {
        if (write)
        {
            var written = new WriteRequest { Host = _host, Pid = _pid, Fd = fd, Buf = buffer, Count = count };
            if (position is not null)
            {
                written.Offset = position.Value;
            }
            return Of((await _stubs.Files.WriteAsync(written)).Outcome);
        }
        var read = new ReadRequest { Host = _host, Pid = _pid, Fd = fd, Buf = buffer, Count = count };
        if (position is not null)
        {
            read.Offset = position.Value;
        }
        return Of((await _stubs.Files.ReadAsync(read)).Outcome);
    }

    public async Task<Answer> Splice(int from, long? fromOffset, int to, long? toOffset, ulong count)
    {
        var request = new SpliceRequest { Host = _host, Pid = _pid, Fd = from, OutFd = to, Count = count };
        if (fromOffset is not null)
        {
            request.Offset = fromOffset.Value;
        }
        if (toOffset is not null)
        {
            request.OutOffset = toOffset.Value;
        }
        return Of((await _stubs.Files.SpliceAsync(request)).Outcome);
    }

    public async Task<Answer> Sendfile(int to, int from, long? offset, ulong count)
    {
        var request = new SendfileRequest { Host = _host, Pid = _pid, Fd = from, OutFd = to, Count = count };
        if (offset is not null)
        {
            request.Offset = offset.Value;
        }
        return Of((await _stubs.Files.SendfileAsync(request)).Outcome);
    }

    public async Task<Answer> OnRange(RangeCall call, ulong address, ulong length, uint argument) => Of(call switch
    {
        RangeCall.Mprotect => (await _stubs.Processes.MprotectAsync(
            new MprotectRequest { Host = _host, Pid = _pid, Addr = address, Length = length, Prot = argument })).Outcome,
        RangeCall.Madvise => (await _stubs.Processes.MadviseAsync(
            new MadviseRequest { Host = _host, Pid = _pid, Addr = address, Length = length, Advice = argument })).Outcome,
        RangeCall.Msync => (await _stubs.Processes.MsyncAsync(
            new MsyncRequest { Host = _host, Pid = _pid, Addr = address, Length = length, Flags = argument })).Outcome,
        _ => (await _stubs.Processes.MlockAsync(
            new MlockRequest { Host = _host, Pid = _pid, Addr = address, Length = length, Unlock = call == RangeCall.Munlock })).Outcome,
    });

    public async Task<Answer> Mremap(ulong address, ulong oldLength, ulong newLength, uint flags)
    {
        MremapResponse response = await _stubs.Processes.MremapAsync(
            new MremapRequest { Host = _host, Pid = _pid, Addr = address, OldLength = oldLength, NewLength = newLength, Flags = flags });
        Answer answer = Of(response.Outcome);
        return answer.Errno == 0 ? answer with { Value = (long)response.Addr } : answer;
    }
}
