using Google.Protobuf;
using Grpc.Core;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.ProcessService.</summary>
internal sealed class ProcessServiceImpl(HostRegistry hosts, IHostApplicationLifetime lifetime) : ProcessService.ProcessServiceBase
{
    public override Task<CreateProcessResponse> CreateProcess(CreateProcessRequest request, ServerCallContext context) =>
        Task.FromResult(new CreateProcessResponse { Pid = (uint)hosts.StartProcess(hosts.Get(request.Host)) });

    public override async Task AttachProcess(
        AttachProcessRequest request, IServerStreamWriter<AttachProcessResponse> responseStream, ServerCallContext context)
    {
        using AttachedProcess attached = hosts.Attach(request.Host, request.Pid);
        await responseStream.WriteAsync(new AttachProcessResponse { Pid = request.Pid });
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(context.CancellationToken, lifetime.ApplicationStopping);
        var end = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        using (ended.Token.Register(end.SetResult))
        {
            await end.Task;
        }
    }

    public override Task<ExitProcessResponse> ExitProcess(ExitProcessRequest request, ServerCallContext context)
    {
        hosts.Exit(request.Host, request.Pid);
        return Task.FromResult(new ExitProcessResponse());
    }

    public override Task<OpenResponse> Open(OpenRequest request, ServerCallContext context) => Task.FromResult(new OpenResponse
    {
        Outcome = Run(request.Host, request.Pid, process => request.HasFlags ? process.Open(request.Path, request.Flags) : process.Open(request.Path)),
    });

    public override Task<CloseResponse> Close(CloseRequest request, ServerCallContext context) => Task.FromResult(new CloseResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Close(request.Fd)),
    });

    public override Task<MmapResponse> Mmap(MmapRequest request, ServerCallContext context)
    {
        Outcome outcome = Run(
            request.Host, request.Pid, process => process.Mmap(request.Addr, request.Length, request.Prot, request.Flags, request.Fd, request.Offset));
        return Task.FromResult(new MmapResponse { Outcome = outcome, Addr = (ulong)outcome.Value });
    }

    public override Task<MunmapResponse> Munmap(MunmapRequest request, ServerCallContext context) => Task.FromResult(new MunmapResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Munmap(request.Addr, request.Length)),
    });

    public override Task<ForkResponse> Fork(ForkRequest request, ServerCallContext context) =>
        Task.FromResult(new ForkResponse { Outcome = Outcomes.Of(hosts.Fork(request.Host, request.Pid)) });

    public override Task<SetFdLimitResponse> SetFdLimit(SetFdLimitRequest request, ServerCallContext context) => Task.FromResult(new SetFdLimitResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.SetFdLimit((int)Math.Min(request.Limit, int.MaxValue))),
    });

    public override Task<MremapResponse> Mremap(MremapRequest request, ServerCallContext context)
    {
        hosts.CheckBacking();
        Outcome outcome = Run(
            request.Host, request.Pid, process => process.Mremap(request.Addr, request.OldLength, request.NewLength, request.Flags, request.NewAddr));
        return Task.FromResult(new MremapResponse { Outcome = outcome, Addr = (ulong)outcome.Value });
    }

    public override Task<MprotectResponse> Mprotect(MprotectRequest request, ServerCallContext context) => Task.FromResult(new MprotectResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Mprotect(request.Addr, request.Length, request.Prot)),
    });

    public override Task<MadviseResponse> Madvise(MadviseRequest request, ServerCallContext context) => Task.FromResult(new MadviseResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Madvise(request.Addr, request.Length, request.Advice)),
    });

    public override Task<MsyncResponse> Msync(MsyncRequest request, ServerCallContext context) => Task.FromResult(new MsyncResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Msync(request.Addr, request.Length, request.Flags)),
    });

    public override Task<MlockResponse> Mlock(MlockRequest request, ServerCallContext context) => Task.FromResult(new MlockResponse
    {
        Outcome = Run(
            request.Host, request.Pid, process => request.Unlock ? process.Munlock(request.Addr, request.Length) : process.Mlock(request.Addr, request.Length)),
    });

    public override Task<MbindResponse> Mbind(MbindRequest request, ServerCallContext context) => Task.FromResult(new MbindResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.Mbind(request.Addr, request.Length, request.Mode, request.Nodes, request.Flags)),
    });

    public override Task<ProcessVmResponse> ProcessVm(ProcessVmRequest request, ServerCallContext context)
    {
        SimKvm.Userspace.IoVec[] local = Structs.Vectors(request.Local), remote = Structs.Vectors(request.Remote);
        return Task.FromResult(new ProcessVmResponse
        {
            Outcome = Run(request.Host, request.Pid, process => request.Write
                ? process.ProcessVmWritev((int)request.RemotePid, local, remote, request.Flags)
                : process.ProcessVmReadv((int)request.RemotePid, local, remote, request.Flags)),
        });
    }

    public override Task<ReadMemoryResponse> ReadMemory(ReadMemoryRequest request, ServerCallContext context)
    {
        if (request.Length > (ulong)hosts.Options.MaxReadBytes)
        {
            throw Refusals.BadField("length", $"{request.Length} is more than one read gives, {hosts.Options.MaxReadBytes}; read in parts");
        }
        byte[] bytes = new byte[request.Length];
        Outcome outcome = Run(request.Host, request.Pid, process => process.Read(request.Addr, bytes));
        return Task.FromResult(new ReadMemoryResponse { Outcome = outcome, Data = UnsafeByteOperations.UnsafeWrap(bytes.AsMemory(0, (int)outcome.Value)) });
    }

    public override Task<WriteMemoryResponse> WriteMemory(WriteMemoryRequest request, ServerCallContext context)
    {
        byte[] bytes = Structs.Bytes("content", request.Content, hosts.Options.MaxMessageBytes);
        hosts.CheckBacking();
        return Task.FromResult(new WriteMemoryResponse { Outcome = Run(request.Host, request.Pid, process => process.Write(request.Addr, bytes)) });
    }

    public override async Task<UploadMemoryResponse> UploadMemory(IAsyncStreamReader<UploadMemoryRequest> requestStream, ServerCallContext context)
    {
        if (!await requestStream.MoveNext(context.CancellationToken) || requestStream.Current.PartCase != UploadMemoryRequest.PartOneofCase.Header)
        {
            throw Refusals.BadField("header", "the first message of an upload must be the header");
        }
        UploadHeader header = requestStream.Current.Header;
        Outcome outcome = Run(header.Host, header.Pid, process => process.Write(header.Addr, ReadOnlyMemory<byte>.Empty));
        ulong stored = 0;
        while (await requestStream.MoveNext(context.CancellationToken))
        {
            if (requestStream.Current.PartCase != UploadMemoryRequest.PartOneofCase.Chunk)
            {
                throw Refusals.BadField("chunk", "after the header an upload has chunks only");
            }
            if (outcome.Errno != 0)
            {
                // The first fault is the answer; what the client still sends is read and dropped.
                continue;
            }
            hosts.CheckBacking();
            ReadOnlyMemory<byte> chunk = requestStream.Current.Chunk.Memory;
            outcome = Run(header.Host, header.Pid, process => process.Write(header.Addr + stored, chunk));
            stored += (ulong)outcome.Value;
        }
        outcome.Value = (long)stored;
        return new UploadMemoryResponse { Outcome = outcome };
    }

    public override Task<RaiseSignalResponse> RaiseSignal(RaiseSignalRequest request, ServerCallContext context) =>
        Task.FromResult(hosts.RunOn(request.Host, request.Pid, process =>
        {
            process.RaiseSignal((int)Math.Min(request.AfterChecks, int.MaxValue));
            return new RaiseSignalResponse();
        }));

    public override Task<PinPagesResponse> PinPages(PinPagesRequest request, ServerCallContext context)
    {
        if (request.Length > (ulong)hosts.Options.MaxReadBytes)
        {
            throw Refusals.BadField("length", $"{request.Length} is more than one pin takes, {hosts.Options.MaxReadBytes}");
        }
        hosts.CheckBacking();
        return Task.FromResult(new PinPagesResponse { Outcome = Run(request.Host, request.Pid, process => process.PinPages(request.Addr, request.Length, request.Write)) });
    }

    public override Task<UnpinPagesResponse> UnpinPages(UnpinPagesRequest request, ServerCallContext context) => Task.FromResult(new UnpinPagesResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.UnpinPages(request.Pin)),
    });

    public override Task<MemfdRestrictedResponse> MemfdRestricted(MemfdRestrictedRequest request, ServerCallContext context) => Task.FromResult(new MemfdRestrictedResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.MemfdRestricted(request.Flags)),
    });

    public override Task<MemfdShmLockResponse> MemfdShmLock(MemfdShmLockRequest request, ServerCallContext context) => Task.FromResult(new MemfdShmLockResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.MemfdShmLock(request.Fd)),
    });

    public override Task<MemfdSetShareableResponse> MemfdSetShareable(MemfdSetShareableRequest request, ServerCallContext context) => Task.FromResult(new MemfdSetShareableResponse
    {
        Outcome = Run(request.Host, request.Pid, process => process.MemfdSetShareable(request.Fd, request.Offset, request.Len, request.Shareable)),
    });

    public override Task<RawIoctlResponse> RawIoctl(RawIoctlRequest request, ServerCallContext context)
    {
        if (request.ArgumentCase != RawIoctlRequest.ArgumentOneofCase.Data)
        {
            return Task.FromResult(new RawIoctlResponse
            {
                Outcome = Run(request.Host, request.Pid, process => process.Ioctl(request.Fd, request.Request, request.Arg)),
            });
        }
        byte[] bytes = request.Data.ToByteArray();
        Outcome outcome = Run(request.Host, request.Pid, process => process.Ioctl(request.Fd, request.Request, bytes));
        return Task.FromResult(new RawIoctlResponse { Outcome = outcome, Data = UnsafeByteOperations.UnsafeWrap(bytes) });
    }

    private Outcome Run(string host, uint pid, Func<Process, CallReport> call) => hosts.RunOn(host, pid, process => Outcomes.Of(call(process)));
}
