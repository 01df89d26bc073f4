using System.Buffers.Binary;
using Google.Protobuf;
using Google.Protobuf.Collections;
using SimKvm.Kvm;
using VmmService.V1;
using GuestAccess = SimKvm.Kvm.GuestAccess;
using GuestStep = SimKvm.Kvm.GuestStep;
using GuestStepResult = SimKvm.Kvm.GuestStepResult;

namespace VmmService.Server.Wire;

/// <summary>Guest programs, their results, and struct kvm_run.</summary>
internal static class GuestSteps
{
    private const int MaxSteps = 65536;
    private const ulong MaxProgramBytes = 1UL << 32;

    private const int ImmediateExitAt = 1;
    private const int ExitReasonAt = 8;
    private const int UnionAt = 32;
    private const int HypercallRetAt = UnionAt + 56;
    private const int MmioDataAt = UnionAt + 8;
    private const int SnpReqCertsNpagesAt = UnionAt + 8;
    private const int PioAt = 4096;

    /// <param name="steps">The program.</param>
    /// <param name="marked">Guests of this VM type can say what an access is.</param>
    /// <param name="maxRead">Bytes that one read may bring back.</param>
    public static List<GuestStep> ToProgram(RepeatedField<V1.GuestStep> steps, bool marked, int maxRead)
    {
        if (steps.Count > MaxSteps)
        {
            throw Refusals.BadField("steps", $"{steps.Count} were given; a program has at most {MaxSteps}");
        }
        var program = new List<GuestStep>(steps.Count);
        ulong bytes = 0;
        for (int i = 0; i < steps.Count; i++)
        {
            GuestStep step = ToStep($"steps[{i}]", steps[i], marked, maxRead);
            program.Add(step);
            bytes += step switch
            {
                GuestMemoryStep memory => memory.Length,
                SimKvm.Vendors.Amd.Guests.GuestPageStateChange change => change.ValidatedBytes,
                _ => 0,
            };
            if (bytes > MaxProgramBytes)
            {
                throw Refusals.BadField($"steps[{i}]", $"the program touches more than {MaxProgramBytes} bytes; load it in parts");
            }
        }
        return program;
    }

    /// <summary>What user space stores into the run page, by offset.</summary>
    public static void Apply(RunPageUpdate? update, Action<int, byte[]> store)
    {
        if (update is null)
        {
            return;
        }
        if (update.HasImmediateExit)
        {
            store(ImmediateExitAt, [update.ImmediateExit ? (byte)1 : (byte)0]);
        }
        switch (update.AnswerCase)
        {
            case RunPageUpdate.AnswerOneofCase.HypercallRet:
                byte[] ret = new byte[8];
                BinaryPrimitives.WriteUInt64LittleEndian(ret, update.HypercallRet);
                store(HypercallRetAt, ret);
                break;
            case RunPageUpdate.AnswerOneofCase.IoData:
                store(PioAt, Bounded("update.io_data", update.IoData, 4096));
                break;
            case RunPageUpdate.AnswerOneofCase.Tdx:
                TdxSteps.Store(update.Tdx, store);
                break;
            case RunPageUpdate.AnswerOneofCase.MmioData:
                store(MmioDataAt, Bounded("update.mmio_data", update.MmioData, 8));
                break;
            case RunPageUpdate.AnswerOneofCase.SnpReqCerts:
                byte[] certs = new byte[16];
                BinaryPrimitives.WriteUInt64LittleEndian(certs, update.SnpReqCerts.Npages);
                BinaryPrimitives.WriteUInt64LittleEndian(certs.AsSpan(8), update.SnpReqCerts.Ret);
                store(SnpReqCertsNpagesAt, certs);
                break;
        }
    }

    public static V1.GuestStepResult ToMessage(GuestStepResult result)
    {
        var message = new V1.GuestStepResult { Step = (uint)result.Step, Data = ByteString.CopyFrom(result.Data.Span), Rax = result.Rax, Carry = result.Carry };
        if (result.Exception is { } exception)
        {
            message.Exception = new V1.GuestException { Name = exception.Name, Code = exception.Code, Gpa = exception.Gpa };
        }
        if (result.MismatchAt is { } at)
        {
            message.MismatchAt = at;
        }
        GhcbSteps.AddTo(message, result);
        message.Registers = result.Registers is { } registers ? TdxSteps.FromRegisters(registers) : null;
        return message;
    }

    /// <summary>struct kvm_run, and the PIO page behind it.</summary>
    public static KvmRun ReadRun(ReadOnlySpan<byte> run)
    {
        var reason = (KvmExit)U32(run, ExitReasonAt);
        var message = new KvmRun { ExitReason = (uint)reason, ExitReasonName = Name(reason) };
        switch (reason)
        {
            case KvmExit.KVM_EXIT_MEMORY_FAULT or KvmExit.KVM_EXIT_MEMORY_FAULT_RFC or KvmExit.KVM_EXIT_MEMORY_ERROR:
                message.MemoryFault = new MemoryFaultExit { Flags = U64(run, UnionAt), Gpa = U64(run, UnionAt + 8), Size = U64(run, UnionAt + 16) };
                break;
            case KvmExit.KVM_EXIT_FAIL_ENTRY:
                message.FailEntry = new FailEntryExit { HardwareEntryFailureReason = U64(run, UnionAt) };
                break;
            case KvmExit.KVM_EXIT_HYPERCALL:
                message.Hypercall = new HypercallExit { Nr = U64(run, UnionAt), Ret = U64(run, HypercallRetAt), Flags = U64(run, UnionAt + 64) };
                for (int i = 0; i < 6; i++)
                {
                    message.Hypercall.Args.Add(U64(run, UnionAt + 8 + (i * 8)));
                }
                break;
            case KvmExit.KVM_EXIT_IO:
                bool isOut = run[UnionAt] == 1;
                int size = Math.Min((int)run[UnionAt + 1], 4);
                int bytes = (int)Math.Min((ulong)size * U32(run, UnionAt + 4), (ulong)(run.Length - PioAt));
                message.Io = new IoExit
                {
                    Out = isOut,
                    Size = (uint)size,
                    Port = BinaryPrimitives.ReadUInt16LittleEndian(run[(UnionAt + 2)..]),
                    Data = isOut ? ByteString.CopyFrom(run.Slice(PioAt, bytes)) : ByteString.Empty,
                    Count = U32(run, UnionAt + 4),
                };
                break;
            case KvmExit.KVM_EXIT_TDX:
                message.Tdx = TdxSteps.ReadExit(run);
                break;
            case KvmExit.KVM_EXIT_SYSTEM_EVENT:
                message.SystemEvent = new SystemEventExit { Type = U32(run, UnionAt) };
                message.SystemEvent.Data.AddRange(Data(run));
                break;
            case KvmExit.KVM_EXIT_INTERNAL_ERROR:
                message.InternalError = new InternalErrorExit { Suberror = U32(run, UnionAt) };
                message.InternalError.Data.AddRange(Data(run));
                break;
            case KvmExit.KVM_EXIT_SNP_REQ_CERTS:
                message.SnpReqCerts = new SnpReqCertsExit { Gpa = U64(run, UnionAt), Npages = U64(run, UnionAt + 8) };
                break;
            case KvmExit.KVM_EXIT_MMIO:
                bool isWrite = run[UnionAt + 20] == 1;
                uint length = Math.Min(U32(run, UnionAt + 16), 8);
                message.Mmio = new MmioExit
                {
                    PhysAddr = U64(run, UnionAt),
                    IsWrite = isWrite,
                    Len = length,
                    Data = isWrite ? ByteString.CopyFrom(run.Slice(MmioDataAt, (int)length)) : ByteString.Empty,
                };
                break;
        }
        return message;
    }

    private static GuestStep ToStep(string field, V1.GuestStep step, bool marked, int maxRead)
    {
        switch (step.StepCase)
        {
            case V1.GuestStep.StepOneofCase.Read:
                if (step.Read.Length > (ulong)maxRead)
                {
                    throw Refusals.BadField($"{field}.read.length", $"{step.Read.Length} is more than one read gives, {maxRead}");
                }
                return new SimKvm.Kvm.GuestRead(step.Read.Gpa, Length(field, step.Read.Gpa, step.Read.Length), Access(field, step.Read.Access, marked));
            case V1.GuestStep.StepOneofCase.Write:
                Length(field, step.Write.Gpa, (ulong)step.Write.Data.Length);
                return new SimKvm.Kvm.GuestWrite(step.Write.Gpa, step.Write.Data.Memory, Access(field, step.Write.Access, marked));
            case V1.GuestStep.StepOneofCase.Fill:
                return new SimKvm.Kvm.GuestFill(
                    step.Fill.Gpa, Length(field, step.Fill.Gpa, step.Fill.Length), Pattern(field, step.Fill.Pattern), Access(field, step.Fill.Access, marked));
            case V1.GuestStep.StepOneofCase.Compare:
                ulong compared = step.Compare.Length == 0 ? (ulong)step.Compare.Pattern.Length : step.Compare.Length;
                return new SimKvm.Kvm.GuestCompare(
                    step.Compare.Gpa, Length(field, step.Compare.Gpa, compared), Pattern(field, step.Compare.Pattern), Access(field, step.Compare.Access, marked));
            case V1.GuestStep.StepOneofCase.Hypercall:
                return ToHypercall(field, step.Hypercall);
            case V1.GuestStep.StepOneofCase.Out:
                return new SimKvm.Kvm.GuestOut(Port($"{field}.out.port", step.Out.Port), IoSize($"{field}.out.data", step.Out.Data.Length) > 0 ? step.Out.Data.Memory : default);
            case V1.GuestStep.StepOneofCase.In:
                return new SimKvm.Kvm.GuestIn(Port($"{field}.in.port", step.In.Port), IoSize($"{field}.in.size", step.In.Size));
            case V1.GuestStep.StepOneofCase.Pvalidate:
                return new SimKvm.Kvm.GuestPvalidate(step.Pvalidate.Gpa, step.Pvalidate.Large, step.Pvalidate.Validate);
            case V1.GuestStep.StepOneofCase.Rmpadjust:
                return new SimKvm.Kvm.GuestRmpadjust(
                    step.Rmpadjust.Gpa, step.Rmpadjust.Large, (int)Math.Min(step.Rmpadjust.TargetVmpl, int.MaxValue), step.Rmpadjust.Permissions, step.Rmpadjust.Vmsa);
            case V1.GuestStep.StepOneofCase.Vmgexit:
                return new SimKvm.Kvm.GuestVmgexit(step.Vmgexit.GhcbMsr);
            case V1.GuestStep.StepOneofCase.GhcbCall:
                return GhcbSteps.ToCall($"{field}.ghcb_call", step.GhcbCall);
            case V1.GuestStep.StepOneofCase.PageStateChange:
                return GhcbSteps.ToPageStateChange($"{field}.page_state_change", step.PageStateChange);
            case V1.GuestStep.StepOneofCase.SnpRequest:
                return GhcbSteps.ToRequest($"{field}.snp_request", step.SnpRequest);
            case V1.GuestStep.StepOneofCase.Tdcall:
                return new SimKvm.Kvm.GuestTdcall(TdxSteps.ToRegisters(step.Tdcall.Registers));
            case V1.GuestStep.StepOneofCase.Halt:
                return new SimKvm.Kvm.GuestHalt();
            case V1.GuestStep.StepOneofCase.Shutdown:
                return new SimKvm.Kvm.GuestShutdown();
            default:
                throw Refusals.BadField(field, "the step says nothing; use one of read, write, fill, compare, hypercall, pvalidate, rmpadjust, tdcall, vmgexit, ghcb_call, page_state_change, snp_request, out, in, halt, shutdown");
        }
    }

    private static SimKvm.Kvm.GuestHypercall ToHypercall(string field, V1.GuestHypercall call)
    {
        if (call.Args.Count > 4)
        {
            throw Refusals.BadField($"{field}.hypercall.args", $"{call.Args.Count} were given; a hypercall has at most 4");
        }
        if (call.Cpl > 3)
        {
            throw Refusals.BadField($"{field}.hypercall.cpl", $"{call.Cpl} is no privilege level; use 0 to 3");
        }
        ulong Arg(int index) => index < call.Args.Count ? call.Args[index] : 0;
        return new SimKvm.Kvm.GuestHypercall(call.Nr, Arg(0), Arg(1), Arg(2), Arg(3), !call.Narrow, (int)call.Cpl);
    }

    private static ulong Length(string field, ulong gpa, ulong length)
    {
        if (length == 0 || length > GuestStep.MaxLength)
        {
            throw Refusals.BadField(field, $"the length is {length} bytes; use 1 to {GuestStep.MaxLength}");
        }
        return gpa + length - 1 >= gpa ? length : throw Refusals.BadField(field, $"gpa 0x{gpa:x} and length {length} wrap");
    }

    private static ReadOnlyMemory<byte> Pattern(string field, ByteString pattern) =>
        pattern.IsEmpty ? throw Refusals.BadField($"{field}.pattern", "it is empty; give at least one byte") : pattern.Memory;

    private static GuestAccess Access(string field, V1.GuestAccess access, bool marked)
    {
        if (access != V1.GuestAccess.Unspecified && !marked)
        {
            throw Refusals.BadField(
                $"{field}.access", "guests of this VM type cannot mark an access as private or shared: the memory attribute decides, or there is no private memory; leave it out");
        }
        return access switch
        {
            V1.GuestAccess.Unspecified => GuestAccess.Unmarked,
            V1.GuestAccess.Private => GuestAccess.Private,
            V1.GuestAccess.Shared => GuestAccess.Shared,
            _ => throw Refusals.BadEnum($"{field}.access", access),
        };
    }

    private static ushort Port(string field, uint port) =>
        port <= ushort.MaxValue ? (ushort)port : throw Refusals.BadField(field, $"{port} is no port; use 0 to {ushort.MaxValue}");

    private static int IoSize(string field, long size) =>
        size is 1 or 2 or 4 ? (int)size : throw Refusals.BadField(field, $"{size} bytes cannot be moved at once; use 1, 2 or 4");

    private static byte[] Bounded(string field, ByteString bytes, int limit) =>
        bytes.Length <= limit ? bytes.ToByteArray() : throw Refusals.BadField(field, $"{bytes.Length} bytes; at most {limit} fit");

    private static string Name(KvmExit reason) => reason switch
    {
        KvmExit.KVM_EXIT_MEMORY_FAULT_RFC => nameof(KvmExit.KVM_EXIT_MEMORY_FAULT),
        _ => Enum.IsDefined(reason) ? reason.ToString() : "",
    };

    // ndata and data[16], as several exits have them.
    private static ulong[] Data(ReadOnlySpan<byte> run)
    {
        const int most = 16;
        ulong[] data = new ulong[Math.Min(U32(run, UnionAt + 4), most)];
        for (int i = 0; i < data.Length; i++)
        {
            data[i] = U64(run, UnionAt + 8 + (i * 8));
        }
        return data;
    }

    private static uint U32(ReadOnlySpan<byte> run, int at) => BinaryPrimitives.ReadUInt32LittleEndian(run[at..]);

    private static ulong U64(ReadOnlySpan<byte> run, int at) => BinaryPrimitives.ReadUInt64LittleEndian(run[at..]);
}
