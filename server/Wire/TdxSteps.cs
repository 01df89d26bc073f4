using System.Buffers.Binary;
using SimKvm.Kvm;
using VmmService.V1;
using AbiRegisters = SimMachine.Intel.TdcallRegisters;

namespace VmmService.Server.Wire;

/// <summary>What guests of TDs do and get, and KVM_EXIT_TDX.</summary>
internal static class TdxSteps
{
    // kvm_run.tdx: flags, nr, then the leaf's structure, which begins with ret.
    private const int FlagsAt = 32;
    private const int NrAt = FlagsAt + 8;
    private const int RetAt = NrAt + 8;
    private const int FirstAt = RetAt + 8;
    private const int SecondAt = FirstAt + 8;
    private const int InfoRegisters = 4;

    public static AbiRegisters ToRegisters(TdcallRegisters? message) => message is null ? default : new(
        message.Rax, message.Rcx, message.Rdx, message.Rbx, message.Rsi, message.Rdi,
        message.R8, message.R9, message.R10, message.R11, message.R12, message.R13, message.R14, message.R15);

    public static TdcallRegisters FromRegisters(in AbiRegisters registers) => new()
    {
        Rax = registers.Rax,
        Rcx = registers.Rcx,
        Rdx = registers.Rdx,
        Rbx = registers.Rbx,
        Rsi = registers.Rsi,
        Rdi = registers.Rdi,
        R8 = registers.R8,
        R9 = registers.R9,
        R10 = registers.R10,
        R11 = registers.R11,
        R12 = registers.R12,
        R13 = registers.R13,
        R14 = registers.R14,
        R15 = registers.R15,
    };

    public static TdxExit ReadExit(ReadOnlySpan<byte> run)
    {
        var exit = new TdxExit { Flags = U64(run, FlagsAt), Nr = U64(run, NrAt), Ret = U64(run, RetAt) };
        switch ((TdVmcallLeaf)exit.Nr)
        {
            case TdVmcallLeaf.GetQuote:
                exit.Gpa = U64(run, FirstAt);
                exit.Size = U64(run, SecondAt);
                break;
            case TdVmcallLeaf.GetTdVmCallInfo:
                exit.Leaf = U64(run, FirstAt);
                break;
            case TdVmcallLeaf.SetupEventNotifyInterrupt:
                exit.Vector = U64(run, FirstAt);
                break;
        }
        return exit;
    }

    /// <summary>Stores the answer to KVM_EXIT_TDX into the run page.</summary>
    public static void Store(TdxAnswer answer, Action<int, byte[]> store)
    {
        if (answer.Registers.Count > InfoRegisters)
        {
            throw Refusals.BadField("update.tdx.registers", $"{answer.Registers.Count} were given; R11 to R14 are {InfoRegisters}");
        }
        store(RetAt, BitConverter.GetBytes(answer.Ret));
        for (int i = 0; i < answer.Registers.Count; i++)
        {
            store(SecondAt + (i * sizeof(ulong)), BitConverter.GetBytes(answer.Registers[i]));
        }
    }

    private static ulong U64(ReadOnlySpan<byte> run, int at) => BinaryPrimitives.ReadUInt64LittleEndian(run[at..]);
}
