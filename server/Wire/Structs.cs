using System.Runtime.InteropServices;
using Google.Protobuf;
using SimKvm.Abi;
using SimKvm.Profiles;
using SimKvm.Userspace;
using VmmService.V1;
using IoVec = SimKvm.Userspace.IoVec;

namespace VmmService.Server.Wire;

/// <summary>Between messages and the kernel's structures, field by field. Widths are checked here; meaning is the simulated kernel's business.</summary>
internal static class Structs
{
    /// <summary>The number of KVM_SET_MEMORY_ATTRIBUTES, which proposals before the merged one had otherwise.</summary>
    public static uint SetMemoryAttributesOf(KernelProfile profile) =>
        SimKvm.IoctlTable.All.FirstOrDefault(row => row.Name == nameof(KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES) && row.Fd == FdKind.Vm && row.Exists(profile))?.Request
        ?? KvmIoctl.KVM_SET_MEMORY_ATTRIBUTES;

    /// <summary>One ioctl whose argument is a structure; what the call stores comes back in it.</summary>
    public static CallReport Ioctl<T>(Process process, int fd, uint request, ref T argument)
        where T : unmanaged
    {
        byte[] bytes = new byte[Marshal.SizeOf<T>()];
        MemoryMarshal.Write(bytes, argument);
        CallReport report = process.Ioctl(fd, request, bytes);
        argument = MemoryMarshal.Read<T>(bytes);
        return report;
    }

    /// <summary>As many bytes as the largest of the extended structures has; a kernel without them reads the first 32.</summary>
    public static byte[] ToAbi(KvmUserspaceMemoryRegion? message)
    {
        const int largest = 160;
        if (message is null)
        {
            throw Missing("region");
        }
        byte[] bytes = new byte[largest];
        var region = new kvm_userspace_memory_region_ext
        {
            slot = message.Slot,
            flags = message.Flags,
            guest_phys_addr = message.GuestPhysAddr,
            memory_size = message.MemorySize,
            userspace_addr = message.UserspaceAddr,
            private_offset = message.PrivateOffset,
            private_fd = message.PrivateFd,
        };
        MemoryMarshal.Write(bytes, region);
        return bytes;
    }

    public static kvm_userspace_memory_region2 ToAbi(KvmUserspaceMemoryRegion2? message) => message is null ? throw Missing("region") : new()
    {
        slot = message.Slot,
        flags = message.Flags,
        guest_phys_addr = message.GuestPhysAddr,
        memory_size = message.MemorySize,
        userspace_addr = message.UserspaceAddr,
        guest_memfd_offset = message.GuestMemfdOffset,
        guest_memfd = message.GuestMemfd,
    };

    public static kvm_memory_attributes ToAbi(KvmMemoryAttributes? message) => message is null ? throw Missing("attributes") : new()
    {
        address = message.Address,
        size = message.Size,
        attributes = message.Attributes,
        flags = message.Flags,
    };

    public static KvmMemoryAttributes FromAbi(in kvm_memory_attributes args) =>
        new() { Address = args.address, Size = args.size, Attributes = args.attributes, Flags = args.flags };

    public static kvm_create_guest_memfd ToAbi(KvmCreateGuestMemfd? message) => message is null ? throw Missing("guest_memfd") : new()
    {
        size = message.Size,
        flags = message.Flags,
    };

    public static kvm_enable_cap ToAbi(KvmEnableCap? message)
    {
        if (message is null)
        {
            throw Missing("enable_cap");
        }
        if (message.Args.Count > 4)
        {
            throw Refusals.BadField("enable_cap.args", $"{message.Args.Count} values were given; kvm_enable_cap has room for 4");
        }
        ulong Arg(int index) => index < message.Args.Count ? message.Args[index] : 0;
        return new kvm_enable_cap { cap = message.Cap, flags = message.Flags, args0 = Arg(0), args1 = Arg(1), args2 = Arg(2), args3 = Arg(3) };
    }

    public static kvm_sev_init ToAbi(KvmSevInit? message) => message is null ? throw Missing("init") : new()
    {
        vmsa_features = message.VmsaFeatures,
        flags = message.Flags,
        ghcb_version = U16("init.ghcb_version", message.GhcbVersion),
    };

    public static unsafe kvm_sev_snp_launch_start ToAbi(KvmSevSnpLaunchStart? message)
    {
        if (message is null)
        {
            throw Missing("start");
        }
        var start = new kvm_sev_snp_launch_start { policy = message.Policy, flags = U16("start.flags", message.Flags) };
        Fixed("start.gosvw", message.Gosvw, new Span<byte>(start.gosvw, 16));
        return start;
    }

    public static kvm_sev_snp_launch_update ToAbi(KvmSevSnpLaunchUpdate? message)
    {
        if (message is null)
        {
            throw Missing("update");
        }
        if (message.Type == SnpPageType.Unspecified)
        {
            throw Refusals.BadEnum("update.type", message.Type);
        }
        return new kvm_sev_snp_launch_update
        {
            gfn_start = message.GfnStart,
            uaddr = message.Uaddr,
            len = message.Len,
            type = U8("update.type", (uint)message.Type),
            flags = U16("update.flags", message.Flags),
        };
    }

    public static KvmSevSnpLaunchUpdate FromAbi(in kvm_sev_snp_launch_update update) => new()
    {
        GfnStart = update.gfn_start,
        Uaddr = update.uaddr,
        Len = update.len,
        Type = (SnpPageType)update.type,
        Flags = update.flags,
    };

    /// <summary>The structure without its addresses, which depend on where the blocks are put.</summary>
    public static unsafe kvm_sev_snp_launch_finish ToAbi(KvmSevSnpLaunchFinish? message)
    {
        message ??= new KvmSevSnpLaunchFinish();
        if (message.IdBlock.Length is not (0 or 96))
        {
            throw Refusals.BadField("finish.id_block", $"{message.IdBlock.Length} bytes were given; an ID block has 96, or none");
        }
        if (message.IdAuth.Length is not (0 or 4096) || (message.IdBlock.Length != 0 && message.IdAuth.Length == 0))
        {
            throw Refusals.BadField("finish.id_auth", $"{message.IdAuth.Length} bytes were given; the ID authentication page has 4096 and comes with an id_block");
        }
        var finish = new kvm_sev_snp_launch_finish
        {
            id_block_en = (byte)(message.IdBlock.Length > 0 ? 1 : 0),
            auth_key_en = (byte)(message.AuthKeyEn ? 1 : 0),
            vcek_disabled = (byte)(message.VcekDisabled ? 1 : 0),
            flags = U16("finish.flags", message.Flags),
        };
        Fixed("finish.host_data", message.HostData, new Span<byte>(finish.host_data, 32));
        return finish;
    }

    /// <summary>A byte field that is either empty, for zeros, or has exactly the structure's length.</summary>
    public static void Fixed(string field, ByteString bytes, Span<byte> destination)
    {
        if (bytes.Length != 0 && bytes.Length != destination.Length)
        {
            throw Refusals.BadField(field, $"{bytes.Length} bytes were given; the structure has {destination.Length}, or leave it empty for zeros");
        }
        destination.Clear();
        bytes.Span.CopyTo(destination);
    }

    /// <summary>A byte field whose length is bounded.</summary>
    public static void AtMost(string field, ByteString bytes, int limit)
    {
        if (bytes.Length > limit)
        {
            throw Refusals.BadField(field, $"{bytes.Length} bytes were given; it has at most {limit}");
        }
    }

    public static byte U8(string field, uint value) => value <= byte.MaxValue ? (byte)value : throw Refusals.BadField(field, $"{value} does not fit the structure's 8 bits");

    public static ushort U16(string field, uint value) =>
        value <= ushort.MaxValue ? (ushort)value : throw Refusals.BadField(field, $"{value} does not fit the structure's 16 bits");

    /// <summary>Hexadecimal digits of exactly so many bytes, or none at all: then no bytes.</summary>
    public static byte[] Hex(string field, string digits, int length)
    {
        if (digits.Length == 0)
        {
            return [];
        }
        return digits.Length == 2 * length && digits.All(char.IsAsciiHexDigit)
            ? Convert.FromHexString(digits)
            : throw Refusals.BadField(field, $"{2 * length} hexadecimal digits are needed, and not \"{Refusals.Bounded(digits)}\"");
    }

    /// <summary>Seconds since 1970 (UTC) as a time.</summary>
    public static DateTimeOffset Time(string field, long seconds) =>
        seconds >= DateTimeOffset.MinValue.ToUnixTimeSeconds() && seconds <= DateTimeOffset.MaxValue.ToUnixTimeSeconds()
            ? DateTimeOffset.FromUnixTimeSeconds(seconds)
            : throw Refusals.BadField(field, $"{seconds} seconds since 1970 are outside of the years 1 to 9999");

    /// <summary>The bytes of a content, bounded by what one message may have.</summary>
    public static byte[] Bytes(string field, Content? content, int limit)
    {
        switch (content?.SourceCase)
        {
            case Content.SourceOneofCase.Inline:
                return content.Inline.ToByteArray();
            case Content.SourceOneofCase.Pattern:
                Pattern pattern = content.Pattern;
                if (pattern.Bytes.IsEmpty || pattern.Length > (ulong)limit)
                {
                    throw Refusals.BadField($"{field}.pattern", $"a pattern needs at least one byte and a length of at most {limit}; {pattern.Bytes.Length} bytes and length {pattern.Length} were given");
                }
                byte[] bytes = new byte[pattern.Length];
                for (int i = 0; i < bytes.Length; i++)
                {
                    bytes[i] = pattern.Bytes[i % pattern.Bytes.Length];
                }
                return bytes;
            default:
                throw Refusals.BadField(field, "the content is missing; give inline bytes or a pattern");
        }
    }

    /// <summary>Vectors as they are; the kernel refuses more than it takes, and so does the daemon well above that.</summary>
    public static IoVec[] Vectors(IReadOnlyCollection<V1.IoVec> vectors)
    {
        const int limit = 4096;
        return vectors.Count <= limit
            ? [.. vectors.Select(each => new IoVec(each.Base, each.Length))]
            : throw Refusals.BadField("iov", $"{vectors.Count} vectors are more than one call takes, {limit}");
    }

    public static Grpc.Core.RpcException Missing(string field) => Refusals.BadField(field, "the structure is missing");
}
