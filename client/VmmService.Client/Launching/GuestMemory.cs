using VmmService.Client.Launch;
using VmmService.V1;

namespace VmmService.Client.Launching;

/// <summary>
/// A range of guest memory as a VMM of private guests sets it up: a user mapping for what is shared, a guest_memfd for what is private, and one slot that has
/// both. After <see cref="CreateAsync"/> the whole range is private; the user mapping is where the launch takes its content from.
/// </summary>
public sealed class GuestMemory : IAsyncDisposable
{
    private GuestMemory(string name, uint slot, ulong gpa, ulong size, ulong userspaceAddr, GuestMemfd memfd)
    {
        Name = name;
        Slot = slot;
        Gpa = gpa;
        Size = size;
        UserspaceAddr = userspaceAddr;
        Memfd = memfd;
    }

    /// <summary>What it is for, for people.</summary>
    public string Name { get; }

    /// <summary>Slot id.</summary>
    public uint Slot { get; }

    /// <summary>First guest physical address.</summary>
    public ulong Gpa { get; }

    /// <summary>Bytes.</summary>
    public ulong Size { get; }

    /// <summary>Where the process has the shared side of the range.</summary>
    public ulong UserspaceAddr { get; }

    public GuestMemfd Memfd { get; }

    public bool Contains(ulong gpa, ulong size) => gpa >= Gpa && size <= Size && gpa - Gpa <= Size - size;

    /// <summary>The memory that a part of a launch lies in.</summary>
    /// <exception cref="LaunchInputException">None has it whole.</exception>
    internal static GuestMemory Around(IReadOnlyList<GuestMemory> memory, string label, ulong gpa, ulong size) =>
        memory.FirstOrDefault(each => each.Contains(gpa, size))
        ?? throw new LaunchInputException(
            $"The {label} at 0x{gpa:x} (0x{size:x} bytes) is not inside the guest's memory ({string.Join(", ", memory.Select(each => $"{each.Name} 0x{each.Gpa:x} to 0x{each.Gpa + each.Size:x}"))}). Give the guest more memory.");

    /// <summary>Where the process has the shared side of a guest physical address.</summary>
    public ulong UserAddressOf(ulong gpa) => UserspaceAddr + (gpa - Gpa);

    public ValueTask DisposeAsync() => Memfd.DisposeAsync();

    internal static async Task<GuestMemory> CreateAsync(Vm vm, string name, uint slot, ulong gpa, ulong size, CancellationToken cancellation)
    {
        ulong user = await vm.Process.MmapAsync(size, cancellation);
        GuestMemfd memfd = await vm.CreateGuestMemfdAsync(size, cancellation: cancellation);
        try
        {
            await vm.SetUserMemoryRegion2Async(
                new KvmUserspaceMemoryRegion2
                {
                    Slot = slot,
                    Flags = KernelNumbers.KVM_MEM_GUEST_MEMFD,
                    GuestPhysAddr = gpa,
                    MemorySize = size,
                    UserspaceAddr = user,
                    GuestMemfd = (uint)memfd.Fd,
                },
                cancellation);
            await vm.SetMemoryAttributesAsync(gpa, size, KernelNumbers.KVM_MEMORY_ATTRIBUTE_PRIVATE, cancellation);
            return new GuestMemory(name, slot, gpa, size, user, memfd);
        }
        catch
        {
            await memfd.DisposeAsync();
            throw;
        }
    }
}
