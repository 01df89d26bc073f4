using System.Runtime.InteropServices;
using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimKvm.Userspace;

/// <summary>
/// The third argument of ioctl(2): a number, and what it points to. Either an address in the caller's memory, or bytes that came with the request, behind which
/// nothing is mapped. Copies fault exactly where a user address would.
/// </summary>
public readonly ref struct UserArg
{
    public static readonly Rule CopyInFaulted = new(
        "uaccess.copy-from-user", "the argument cannot be read: nothing is mapped at a part of it", "copy_from_user",
        "map the memory that the argument points to; a raw ioctl's bytes must be as long as the structure", "uaddr", "bytes#");

    public static readonly Rule CopyOutFaulted = new(
        "uaccess.copy-to-user", "the result cannot be stored: nothing writable is mapped at a part of the argument", "copy_to_user",
        "map the memory that the argument points to writable", "uaddr", "bytes#");

    private readonly Span<byte> _bytes;
    private readonly bool _inline;

    private UserArg(ulong value, Span<byte> bytes, bool inline)
    {
        Value = value;
        _bytes = bytes;
        _inline = inline;
    }

    /// <summary>The argument as a number: an address, or a plain value such as a VM type.</summary>
    public ulong Value { get; }

    public static UserArg FromValue(ulong value) => new(value, default, false);

    /// <summary>An argument that points to exactly these bytes; stores go back into them.</summary>
    public static UserArg FromBytes(Span<byte> bytes) => new(InlineAddress, bytes, true);

    // Shown as the address of inline bytes in causes; not a canonical user address, so it cannot be mistaken for one.
    private const ulong InlineAddress = 0xffff_ffff_0000_0000;

    /// <summary>access_ok: whether so many bytes from the argument on are addresses that a user may have. Inline bytes are as many as they are.</summary>
    internal bool IsUserRange(ulong length) => _inline ? length <= long.MaxValue : UserMemory.IsUserRange(Value, length);

    /// <summary>How many of so many bytes lie in the user page of the first: a copy that meets a page that is not there stops at its edge.</summary>
    internal int InOnePage(ulong offset, int length) =>
        _inline ? length : Math.Min(length, PageSize.Bytes - (int)((Value + offset) & PageSize.OffsetMask));

    /// <summary>copy_from_user of a structure at <paramref name="offset"/> bytes behind the argument; EFAULT.</summary>
    internal Errno CopyIn<T>(KTask current, out T value, ulong offset = 0)
        where T : unmanaged
    {
        value = default;
        return CopyIn(current, MemoryMarshal.AsBytes(new Span<T>(ref value)), offset);
    }

    internal Errno CopyIn(KTask current, Span<byte> destination, ulong offset = 0)
    {
        bool copied = _inline
            ? TrySlice(offset, destination.Length, out Span<byte> source) && source.TryCopyTo(destination)
            : current.Process.Memory.TryRead(current, Value + offset, destination);
        return copied ? Errno.OK : current.Fail(Errno.EFAULT, CopyInFaulted, Value + offset, (ulong)destination.Length);
    }

    /// <summary>copy_to_user of a structure at <paramref name="offset"/> bytes behind the argument; EFAULT.</summary>
    internal Errno CopyOut<T>(KTask current, in T value, ulong offset = 0)
        where T : unmanaged =>
        CopyOut(current, MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in value)), offset);

    internal Errno CopyOut(KTask current, ReadOnlySpan<byte> source, ulong offset = 0)
    {
        bool copied = _inline
            ? TrySlice(offset, source.Length, out Span<byte> destination) && source.TryCopyTo(destination)
            : current.Process.Memory.TryWrite(current, Value + offset, source);
        return copied ? Errno.OK : current.Fail(Errno.EFAULT, CopyOutFaulted, Value + offset, (ulong)source.Length);
    }

    private bool TrySlice(ulong offset, int length, out Span<byte> slice)
    {
        slice = default;
        if (offset > (ulong)_bytes.Length || (ulong)length > (ulong)_bytes.Length - offset)
        {
            return false;
        }
        slice = _bytes.Slice((int)offset, length);
        return true;
    }
}
