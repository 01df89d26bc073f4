using Google.Protobuf;
using VmmService.V1;

namespace VmmService.Client;

/// <summary>Steps of a guest program, for <see cref="Vcpu.LoadProgramAsync"/>.</summary>
public static class Guest
{
    /// <summary>Loads bytes; they are in the step's result.</summary>
    public static GuestStep Read(ulong gpa, ulong length, GuestAccess access = GuestAccess.Unspecified) =>
        new() { Read = new GuestRead { Gpa = gpa, Length = length, Access = access } };

    /// <summary>Stores bytes.</summary>
    public static GuestStep Write(ulong gpa, ReadOnlySpan<byte> data, GuestAccess access = GuestAccess.Unspecified) =>
        new() { Write = new GuestWrite { Gpa = gpa, Data = ByteString.CopyFrom(data), Access = access } };

    /// <summary>Stores a pattern over and over.</summary>
    public static GuestStep Fill(ulong gpa, ulong length, ReadOnlySpan<byte> pattern, GuestAccess access = GuestAccess.Unspecified) =>
        new() { Fill = new GuestFill { Gpa = gpa, Length = length, Pattern = ByteString.CopyFrom(pattern), Access = access } };

    /// <summary>Loads and compares with a pattern that is repeated; the result says where the first difference is.</summary>
    /// <param name="gpa">First byte.</param>
    /// <param name="pattern">At least one byte.</param>
    /// <param name="length">Bytes; 0 is the pattern's length.</param>
    /// <param name="access">How the access is marked.</param>
    public static GuestStep Compare(ulong gpa, ReadOnlySpan<byte> pattern, ulong length = 0, GuestAccess access = GuestAccess.Unspecified) =>
        new() { Compare = new GuestCompare { Gpa = gpa, Length = length, Pattern = ByteString.CopyFrom(pattern), Access = access } };

    /// <summary>VMCALL or VMMCALL.</summary>
    public static GuestStep Hypercall(ulong nr, params ReadOnlySpan<ulong> args)
    {
        var call = new GuestHypercall { Nr = nr };
        foreach (ulong arg in args)
        {
            call.Args.Add(arg);
        }
        return new GuestStep { Hypercall = call };
    }

    /// <summary>KVM_HC_MAP_GPA_RANGE: asks the VMM to make pages private or shared.</summary>
    /// <param name="gpa">Page aligned.</param>
    /// <param name="pages">Pages of 4 KiB.</param>
    /// <param name="isPrivate">Bit 4 of the attributes.</param>
    public static GuestStep MapGpaRange(ulong gpa, ulong pages, bool isPrivate) =>
        Hypercall(KernelNumbers.KVM_HC_MAP_GPA_RANGE, gpa, pages, isPrivate ? KernelNumbers.KVM_MAP_GPA_RANGE_ENCRYPTED : 0);

    /// <summary>OUT of 1, 2 or 4 bytes.</summary>
    public static GuestStep Out(ushort port, ReadOnlySpan<byte> data) => new() { Out = new GuestOut { Port = port, Data = ByteString.CopyFrom(data) } };

    /// <summary>IN of 1, 2 or 4 bytes.</summary>
    public static GuestStep In(ushort port, int size) => new() { In = new GuestIn { Port = port, Size = (uint)size } };

    public static GuestStep Halt() => new() { Halt = new GuestHalt() };

    /// <summary>A triple fault.</summary>
    public static GuestStep Shutdown() => new() { Shutdown = new GuestShutdown() };
}
