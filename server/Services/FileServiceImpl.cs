using Google.Protobuf;
using Grpc.Core;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.FileService: system calls on descriptors of any kind.</summary>
internal sealed class FileServiceImpl(HostRegistry hosts) : FileService.FileServiceBase
{
    private const int MaxPollFds = 4096;

    public override Task<ReadResponse> Read(ReadRequest request, ServerCallContext context)
    {
        long? position = request.HasOffset ? request.Offset : null;
        if (request.HasBuf)
        {
            return Task.FromResult(new ReadResponse { Outcome = Run(request.Host, request.Pid, process => process.ReadFile(request.Fd, request.Buf, request.Count, position)) });
        }
        if (request.Count > (ulong)hosts.Options.MaxReadBytes)
        {
            throw Refusals.BadField("count", $"{request.Count} is more than one read gives, {hosts.Options.MaxReadBytes}; read in parts");
        }
        byte[] bytes = new byte[request.Count];
        Outcome outcome = Run(request.Host, request.Pid, process => process.ReadFile(request.Fd, bytes, position));
        return Task.FromResult(new ReadResponse { Outcome = outcome, Data = UnsafeByteOperations.UnsafeWrap(bytes.AsMemory(0, outcome.Errno == 0 ? (int)outcome.Value : 0)) });
    }

    public override Task<WriteResponse> Write(WriteRequest request, ServerCallContext context)
    {
        hosts.CheckBacking();
        long? position = request.HasOffset ? request.Offset : null;
        byte[] bytes = request.SourceCase == WriteRequest.SourceOneofCase.Data ? request.Data.ToByteArray() : [];
        return Task.FromResult(new WriteResponse
        {
            Outcome = Run(request.Host, request.Pid, process => request.SourceCase == WriteRequest.SourceOneofCase.Data
                ? process.WriteFile(request.Fd, bytes, position)
                : process.WriteFile(request.Fd, request.Buf, request.Count, position)),
        });
    }

    public override Task<ReadvResponse> Readv(ReadvRequest request, ServerCallContext context) => Task.FromResult(new ReadvResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.ReadVector(request.Fd, Structs.Vectors(request.Iov), request.HasOffset ? request.Offset : null, request.Flags)),
    });

    public override Task<WritevResponse> Writev(WritevRequest request, ServerCallContext context)
    {
        hosts.CheckBacking();
        return Task.FromResult(new WritevResponse
        {
            Outcome = Run(request.Host, request.Pid, process => process.WriteVector(request.Fd, Structs.Vectors(request.Iov), request.HasOffset ? request.Offset : null, request.Flags)),
        });
    }

    public override Task<LseekResponse> Lseek(LseekRequest request, ServerCallContext context) => Task.FromResult(new LseekResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Lseek(request.Fd, request.Offset, request.Whence)),
    });

    public override Task<SendfileResponse> Sendfile(SendfileRequest request, ServerCallContext context) => Task.FromResult(new SendfileResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Sendfile(request.OutFd, request.Fd, request.HasOffset ? request.Offset : null, request.Count)),
    });

    public override Task<SpliceResponse> Splice(SpliceRequest request, ServerCallContext context) => Task.FromResult(new SpliceResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Splice(
            request.Fd, request.HasOffset ? request.Offset : null, request.OutFd, request.HasOutOffset ? request.OutOffset : null, request.Count)),
    });

    public override Task<VmspliceResponse> Vmsplice(VmspliceRequest request, ServerCallContext context) => Task.FromResult(new VmspliceResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Vmsplice(request.Fd, Structs.Vectors(request.Iov))),
    });

    public override Task<FtruncateResponse> Ftruncate(FtruncateRequest request, ServerCallContext context) => Task.FromResult(new FtruncateResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Ftruncate(request.Fd, request.Length)),
    });

    public override Task<FchmodResponse> Fchmod(FchmodRequest request, ServerCallContext context) =>
        Task.FromResult(new FchmodResponse { Outcome = Run(request.Host, request.Pid, process => process.Fchmod(request.Fd)) });

    public override Task<FchownResponse> Fchown(FchownRequest request, ServerCallContext context) =>
        Task.FromResult(new FchownResponse { Outcome = Run(request.Host, request.Pid, process => process.Fchown(request.Fd)) });

    public override Task<FutimensResponse> Futimens(FutimensRequest request, ServerCallContext context) =>
        Task.FromResult(new FutimensResponse { Outcome = Run(request.Host, request.Pid, process => process.Futimens(request.Fd)) });

    public override Task<FsyncResponse> Fsync(FsyncRequest request, ServerCallContext context) =>
        Task.FromResult(new FsyncResponse { Outcome = Run(request.Host, request.Pid, process => process.Fsync(request.Fd, request.DataOnly)) });

    public override Task<StatResponse> Stat(StatRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            CallReport report = process.Fstat(request.Fd, out FileStat stat);
            return new StatResponse
            {
                Outcome = Outcomes.Of(report),
                StSize = stat.Size,
                StMode = stat.Mode,
                StNlink = stat.Nlink,
                StUid = stat.Uid,
                StGid = stat.Gid,
                StRdev = stat.Rdev,
                StBlksize = stat.BlockSize,
                StBlocks = stat.Blocks,
                StMtimeCall = stat.MtimeCall,
            };
        }));

    public override Task<StatfsResponse> Statfs(StatfsRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            CallReport report = process.Fstatfs(request.Fd, out FileSystemStat stat);
            return new StatfsResponse { Outcome = Outcomes.Of(report), FType = stat.Type, FBsize = stat.BlockSize };
        }));

    public override Task<FlockResponse> Flock(FlockRequest request, ServerCallContext context) =>
        Task.FromResult(new FlockResponse { Outcome = Run(request.Host, request.Pid, process => process.Flock(request.Fd, request.Operation)) });

    public override Task<FadviseResponse> Fadvise(FadviseRequest request, ServerCallContext context) =>
        Task.FromResult(new FadviseResponse { Outcome = Run(request.Host, request.Pid, process => process.Fadvise(request.Fd, request.Len, request.Advice)) });

    public override Task<PollResponse> Poll(PollRequest request, ServerCallContext context)
    {
        if (request.Fds.Count > MaxPollFds)
        {
            throw Refusals.BadField("fds", $"{request.Fds.Count} descriptors are more than one poll takes, {MaxPollFds}");
        }
        (int Fd, uint Events)[] wanted = [.. request.Fds.Select(each => (each.Fd, each.Events))];
        uint[] ready = new uint[wanted.Length];
        var response = new PollResponse { Outcome = Run(request.Host, request.Pid, process => process.Poll(wanted, ready)) };
        response.Revents.AddRange(ready);
        return Task.FromResult(response);
    }

    public override Task<FcntlResponse> Fcntl(FcntlRequest request, ServerCallContext context) =>
        Task.FromResult(new FcntlResponse { Outcome = Run(request.Host, request.Pid, process => process.Fcntl(request.Fd, request.Cmd, request.Arg)) });

    public override Task<DupResponse> Dup(DupRequest request, ServerCallContext context)
    {
        const uint closeOnExec = 0x8_0000;
        if ((request.Flags & ~closeOnExec) != 0)
        {
            throw Refusals.BadField("flags", $"0x{request.Flags:x} has more than O_CLOEXEC (0x80000)");
        }
        return Task.FromResult(new DupResponse
        {
            Outcome = Run(request.Host, request.Pid, process => request.HasNewFd
                ? process.DupTo(request.Fd, request.NewFd, (request.Flags & closeOnExec) != 0, strict: true)
                : process.Dup(request.Fd)),
        });
    }

    public override Task<ReadlinkResponse> Readlink(ReadlinkRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            CallReport report = process.Readlink(request.Path, out string target);
            return new ReadlinkResponse { Outcome = Outcomes.Of(report), Target = target };
        }));

    public override Task<PipeResponse> Pipe(PipeRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            CallReport report = process.Pipe(request.Flags, out int readEnd, out int writeEnd);
            return new PipeResponse { Outcome = Outcomes.Of(report), ReadFd = readEnd, WriteFd = writeEnd };
        }));

    public override Task<MemfdCreateResponse> MemfdCreate(MemfdCreateRequest request, ServerCallContext context) =>
        Task.FromResult(new MemfdCreateResponse { Outcome = Run(request.Host, request.Pid, process => process.MemfdCreate(request.Name, request.Flags)) });

    private Outcome Run(string host, uint pid, Func<Process, CallReport> call) => hosts.RunOn(host, pid, process => Outcomes.Of(call(process)));
}
