using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Userspace;
using SimMachine.Addressing;
using SimMachine.Amd;
using SimMachine.Amd.Legacy;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// SEV and SEV-ES launch, in place: the VMM's own pages are measured and encrypted where they are (snp.md 4; seed 004). Under kvm->lock, which the dispatch holds.
internal sealed partial class SevBackend
{
    private const uint MaxBlob = 0x4000;
    private const uint MeasurementSize = 48;

    public static readonly Rule LegacyInitType = new(
        "sev.init.type", "the commands INIT and ES_INIT are for VMs of type 0", "sev_guest_init", "use KVM_SEV_INIT2 on typed VMs", "vm_type#");

    public static readonly Rule NotASevGuest = new(
        "sev.guest.inactive", "the VM is not a SEV guest: it had no INIT", "sev_guest", "initialise the VM first", "id#");

    public static readonly Rule NotAnEsGuest = new(
        "sev.guest.no-es", "the VM is not a SEV-ES guest", "sev_launch_update_vmsa", "use a VM of type SEV_ES (3), or ES_INIT", "vm_type#");

    public static readonly Rule NoSevFd = new(
        "sev.guest.no-fd", "KVM issues the command by the sev_fd of LAUNCH_START or RECEIVE_START; there was none, so it takes descriptor 0, which is not /dev/sev", "sev_issue_cmd",
        "issue KVM_SEV_LAUNCH_START first; the sev_fd of this command is not looked at", "command");

    public static readonly Rule BadBlob = new(
        "sev.blob", "the address is 0, the length is 0, or it is more than 16 KiB", "psp_copy_user_blob", "give a blob of 1 to 16384 bytes", "uaddr", "length#");

    public static readonly Rule BadUserRange = new(
        "sev.user-range", "the length is zero or more than 2^31 - 1 pages, or the range wraps", "sev_pin_memory; sev_dbg_crypt", "give a range of user memory", "uaddr", "length");

    public static readonly Rule PinFailed = new(
        "sev.pin", "not all pages of the range can be pinned writable", "sev_pin_memory", "map the memory writable", "uaddr", "length");

    public static readonly Rule NotContiguous = new(
        "sev.secret.not-contiguous", "the pages of the secret are not contiguous in physical memory", "sev_launch_secret", "keep a secret inside one page", "uaddr", "length#");

    public static readonly Rule NoSuchRegion = new(
        "sev.region.unknown", "no region of that address and size is registered", "sev_mem_enc_unregister_region", "unregister what was registered", "uaddr", "length");

    // Firmware's handle of the guest; 0 before LAUNCH_START.
    private uint _handle;
    private readonly List<(ulong Address, ulong Size, Pfn[] Frames)> _regions = [];

    /// <summary>For people: what firmware has of a SEV or SEV-ES guest, or null before LAUNCH_START.</summary>
    public SevGuestStatus? LegacyStatus => _handle == 0 ? null : Psp.SevStatusOf(_handle);

    /// <summary>KVM_MEMORY_ENCRYPT_REG_REGION (sev_mem_enc_register_region): the pages stay where they are.</summary>
    public override Errno MemEncRegisterRegion(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_enc_region region);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (!IsSevGuest)
        {
            return current.Fail(Errno.ENOTTY, NotASevGuest, 0);
        }
        if (IsMirror)
        {
            return current.Fail(Errno.EINVAL, MirrorRegion, region.addr);
        }
        errno = PinUserRange(current, region.addr, region.size, out Pfn[] frames);
        if (errno == Errno.OK)
        {
            foreach (Pfn frame in frames)
            {
                _host.PagePins.Pin(frame);
            }
            _regions.Add((region.addr, region.size, frames));
        }
        return errno;
    }

    /// <summary>KVM_MEMORY_ENCRYPT_UNREG_REGION.</summary>
    public override Errno MemEncUnregisterRegion(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out kvm_enc_region region);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (IsMirror)
        {
            return current.Fail(Errno.EINVAL, MirrorRegion, region.addr);
        }
        if (!IsSevGuest)
        {
            return current.Fail(Errno.ENOTTY, NotASevGuest, 0);
        }
        int index = _regions.FindIndex(each => each.Address == region.addr && each.Size == region.size);
        if (index < 0)
        {
            return current.Fail(Errno.EINVAL, NoSuchRegion, region.addr, region.size);
        }
        Unregister(current, index);
        return Errno.OK;
    }

    // sev_guest_init for the commands without parameters.
    private Errno LegacyInit(KTask current, ref kvm_sev_cmd cmd, bool es)
    {
        if (Vm.Type != VmType.KVM_X86_DEFAULT_VM)
        {
            return current.Fail(Errno.EINVAL, LegacyInitType, (ulong)Vm.Type);
        }
        return GuestInit(current, ref cmd, new kvm_sev_init { ghcb_version = es ? (ushort)1 : (ushort)0 }, es);
    }

    private Errno LaunchStart(KTask current, ref kvm_sev_cmd cmd)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_launch_start start);
        byte[] dh = [], session = [];
        if (errno == Errno.OK && start.dh_uaddr != 0)
        {
            errno = CopyBlob(current, start.dh_uaddr, start.dh_len, out dh);
        }
        if (errno == Errno.OK && start.session_uaddr != 0)
        {
            errno = CopyBlob(current, start.session_uaddr, start.session_len, out session);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        uint handle = start.handle;
        errno = Amd.IssueCommand(current, cmd.sev_fd, PspCommand.LAUNCH_START, () => Psp.LaunchStart(current, ref handle, start.policy, dh, session), ref cmd.error);
        return errno != Errno.OK ? errno : BindGuest(current, ref cmd, handle, start.policy, start with { handle = handle });
    }

    // The end of sev_launch_start and sev_receive_start: the guest gets the VM's ASID, and the handle goes to user space.
    private Errno BindGuest<T>(KTask current, ref kvm_sev_cmd cmd, uint handle, uint policy, T parameters)
        where T : unmanaged
    {
        uint asid = _asid;
        Errno errno = Amd.IssueCommand(current, PspCommand.ACTIVATE, () => Psp.Activate(current, handle, asid), ref cmd.error);
        if (errno == Errno.OK)
        {
            errno = UserArg.FromValue(cmd.data).CopyOut(current, parameters);
        }
        if (errno != Errno.OK)
        {
            Decommission(current, handle);
            return errno;
        }
        _handle = handle;
        _sevFd = cmd.sev_fd;
        _policy = policy;
        return Errno.OK;
    }

    // sev_issue_cmd: not by the descriptor that the command came with, but by that of LAUNCH_START.
    private Errno IssueCommand(KTask current, PspCommand command, Func<SevStatus> run, ref uint error) => _sevFd == 0
        ? current.Fail(Errno.EBADF, NoSevFd, (ulong)command)
        : Amd.IssueCommand(current, _sevFd, command, run, ref error);

    private Errno LaunchUpdateData(KTask current, ref kvm_sev_cmd cmd)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_launch_update_data update);
        Pfn[] frames = [];
        if (errno == Errno.OK)
        {
            errno = PinUserRange(current, update.uaddr, update.len, out frames);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        // One command for each run of pages that are contiguous in physical memory. The digest is a stream and does not know.
        ulong at = update.uaddr, end = update.uaddr + update.len;
        int pages;
        for (int i = 0; i < frames.Length; i += pages)
        {
            pages = ContiguousPages(frames, i);
            Pfn first = frames[i];
            int offset = (int)(at & PageSize.OffsetMask);
            ulong length = Math.Min(end - at, ((ulong)pages << PageSize.Shift) - (ulong)offset);
            errno = IssueCommand(current, PspCommand.LAUNCH_UPDATE_DATA, () => Psp.LaunchUpdateData(current, _handle, first, offset, length), ref cmd.error);
            if (errno != Errno.OK)
            {
                return errno;
            }
            at += length;
        }
        return Errno.OK;
    }

    // get_num_contig_pages
    private static int ContiguousPages(Pfn[] frames, int first)
    {
        int pages = 1;
        while (first + pages < frames.Length && frames[first + pages] == frames[first] + (ulong)pages)
        {
            pages++;
        }
        return pages;
    }

    private Errno LaunchUpdateVmsa(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!IsEsGuest)
        {
            return current.Fail(Errno.ENOTTY, NotAnEsGuest, (ulong)Vm.Type);
        }
        if (_host.Profile.SnpFinishLocksVcpus && Vm.CreatedVcpus != Vm.Vcpus.Count)
        {
            return current.Fail(Errno.EBUSY, VcpuBeingCreated, (ulong)Vm.CreatedVcpus, (ulong)Vm.Vcpus.Count);
        }
        foreach (Vcpu vcpu in Vm.Vcpus)
        {
            using var mutex = vcpu.Mutex.Enter(current);
            Errno errno = LaunchUpdateVmsa(current, vcpu, ref cmd);
            if (errno != Errno.OK)
            {
                return errno;
            }
        }
        return Errno.OK;
    }

    // __sev_launch_update_vmsa
    private Errno LaunchUpdateVmsa(KTask current, Vcpu vcpu, ref kvm_sev_cmd cmd)
    {
        Errno errno = WriteVmsa(current, vcpu);
        if (errno != Errno.OK)
        {
            return errno;
        }
        errno = IssueCommand(current, PspCommand.LAUNCH_UPDATE_VMSA, () => Psp.LaunchUpdateVmsa(current, _handle, vcpu.Vmsa), ref cmd.error);
        if (errno == Errno.OK)
        {
            current.Machine.Writing(vcpu);
            vcpu.Arch.GuestStateProtected = true;
            vcpu.Arch.FpstateConfidential = true;
        }
        return errno;
    }

    private Errno LaunchMeasure(KTask current, ref kvm_sev_cmd cmd)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_launch_measure measure);
        if (errno == Errno.OK && measure.uaddr != 0 && measure.len > MaxBlob)
        {
            errno = current.Fail(Errno.EINVAL, BadBlob, measure.uaddr, measure.len);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        // Without a buffer there is nothing to put a measurement in, whatever its length is said to be.
        uint length = measure.uaddr != 0 ? measure.len : 0;
        byte[] measurement = [];
        errno = IssueCommand(current, PspCommand.LAUNCH_MEASURE, () => Psp.LaunchMeasure(current, _handle, ref length, out measurement), ref cmd.error);
        return FinishBlob(current, errno, measure.uaddr, measure.len, measurement, cmd.data, measure with { len = length });
    }

    private Errno LaunchSecret(KTask current, ref kvm_sev_cmd cmd)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_launch_secret secret);
        Pfn[] frames = [];
        if (errno == Errno.OK)
        {
            errno = PinUserRange(current, secret.guest_uaddr, secret.guest_len, out frames);
        }
        if (errno == Errno.OK && ContiguousPages(frames, 0) != frames.Length)
        {
            errno = current.Fail(Errno.EINVAL, NotContiguous, secret.guest_uaddr, secret.guest_len);
        }
        byte[] header = [], body = [];
        if (errno == Errno.OK)
        {
            errno = CopyBlob(current, secret.trans_uaddr, secret.trans_len, out body);
        }
        if (errno == Errno.OK)
        {
            errno = CopyBlob(current, secret.hdr_uaddr, secret.hdr_len, out header);
        }
        if (errno != Errno.OK)
        {
            return errno;
        }
        int offset = (int)(secret.guest_uaddr & PageSize.OffsetMask);
        return IssueCommand(
            current, PspCommand.LAUNCH_UPDATE_SECRET,
            () => Psp.LaunchSecret(current, _handle, header, body, frames[0], offset, secret.guest_len), ref cmd.error);
    }

    // sev_launch_finish and its like: commands that name the guest and nothing else.
    private Errno WithoutParameters(KTask current, ref kvm_sev_cmd cmd, PspCommand command, Func<SevStatus> run) => IsSevGuest
        ? IssueCommand(current, command, run, ref cmd.error)
        : current.Fail(Errno.ENOTTY, NotASevGuest, cmd.id);

    private Errno GuestStatus(KTask current, ref kvm_sev_cmd cmd)
    {
        if (!IsSevGuest)
        {
            return current.Fail(Errno.ENOTTY, NotASevGuest, cmd.id);
        }
        SevGuestStatus? status = null;
        Errno errno = IssueCommand(current, PspCommand.GUEST_STATUS, () => Psp.GuestStatus(current, _handle, out status), ref cmd.error);
        return errno != Errno.OK
            ? errno
            : UserArg.FromValue(cmd.data).CopyOut(current, new kvm_sev_guest_status { handle = status!.Handle, policy = status.Policy, state = (uint)status.State });
    }

    // sev_dbg_crypt: page by page, whichever of the two ends first.
    private Errno Debug(KTask current, ref kvm_sev_cmd cmd, bool decrypt)
    {
        Errno errno = EnterSevCommand(current, cmd, out kvm_sev_dbg debug);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (debug.len == 0 || debug.src_uaddr + debug.len < debug.src_uaddr || debug.dst_uaddr == 0)
        {
            return current.Fail(Errno.EINVAL, BadUserRange, debug.src_uaddr, debug.len);
        }
        for (ulong done = 0; done < debug.len;)
        {
            ulong from = debug.src_uaddr + done, to = debug.dst_uaddr + done;
            int fromOffset = (int)(from & PageSize.OffsetMask), toOffset = (int)(to & PageSize.OffsetMask);
            int length = (int)Math.Min(debug.len - done, (ulong)(PageSize.Bytes - Math.Max(fromOffset, toOffset)));
            errno = PinUserRange(current, from, 1, out Pfn[] source, write: false);
            Pfn[] target = [];
            errno = errno == Errno.OK ? PinUserRange(current, to, 1, out target) : errno;
            if (errno != Errno.OK)
            {
                return errno;
            }
            errno = IssueCommand(
                current, decrypt ? PspCommand.DBG_DECRYPT : PspCommand.DBG_ENCRYPT,
                () => Psp.Debug(current, _handle, decrypt, source[0], fromOffset, target[0], toOffset, length), ref cmd.error);
            if (errno != Errno.OK)
            {
                return errno;
            }
            done += (ulong)length;
        }
        return Errno.OK;
    }

    // sev_unbind_asid, at the end of the VM.
    private void DestroyLegacy(KTask current)
    {
        while (_regions.Count > 0)
        {
            Unregister(current, _regions.Count - 1);
        }
        if (_handle != 0)
        {
            Decommission(current, _handle);
        }
    }

    private void Decommission(KTask current, uint handle)
    {
        uint error = 0;
        Amd.IssueCommand(current, PspCommand.DECOMMISSION, () => Psp.Decommission(current, handle), ref error);
    }

    private void Unregister(KTask current, int index)
    {
        foreach (Pfn frame in _regions[index].Frames)
        {
            _host.PagePins.Unpin(current, frame);
        }
        _regions.RemoveAt(index);
    }

    private Errno EnterSevCommand<T>(KTask current, in kvm_sev_cmd cmd, out T parameters)
        where T : unmanaged
    {
        parameters = default;
        return IsSevGuest ? CopyParameters(current, cmd, out parameters) : current.Fail(Errno.ENOTTY, NotASevGuest, cmd.id);
    }

    // sev_pin_memory: EINVAL for a range that cannot be, ENOMEM where a page cannot be had.
    private static Errno PinUserRange(KTask current, ulong uaddr, ulong length, out Pfn[] frames, bool write = true)
    {
        frames = [];
        if (length == 0 || uaddr + length < uaddr)
        {
            return current.Fail(Errno.EINVAL, BadUserRange, uaddr, length);
        }
        ulong first = uaddr >> PageSize.Shift, last = (uaddr + length - 1) >> PageSize.Shift;
        if (last - first >= int.MaxValue)
        {
            return current.Fail(Errno.EINVAL, BadUserRange, uaddr, length);
        }
        var pinned = new List<Pfn>();
        for (ulong page = first; page <= last; page++)
        {
            if (current.Process.Memory.Pin(current, page << PageSize.Shift, write, out Pfn frame) != Errno.OK)
            {
                return current.Fail(Errno.ENOMEM, PinFailed, uaddr, length);
            }
            pinned.Add(frame);
        }
        frames = [.. pinned];
        return Errno.OK;
    }

    // psp_copy_user_blob
    private static Errno CopyBlob(KTask current, ulong uaddr, uint length, out byte[] blob)
    {
        blob = [];
        if (uaddr == 0 || length == 0 || length > MaxBlob)
        {
            return current.Fail(Errno.EINVAL, BadBlob, uaddr, length);
        }
        blob = new byte[length];
        return CopyBlob(current, uaddr, blob);
    }
}
