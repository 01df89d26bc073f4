using SimKvm.Abi;
using SimKvm.Userspace;
using SimMachine;
using SimMachine.Amd;
using SimMachine.Amd.Attestation;
using SimMachine.Stepping;

namespace SimKvm.Vendors.Amd;

// SEV_ISSUE_CMD (sev_ioctl of the ccp driver): the platform's operator and its firmware.
internal sealed partial class SevDevice
{
    private const uint EsInitialised = 1 << 8;
    private const uint ChipIdSize = 64;
    private const uint VlekLoadSize = 16;

    public static readonly Rule PlatformCommandUnknown = new(
        "sev.platform.command", "the command is not known", "sev_ioctl", "use 0 to 12", "cmd#");

    public static readonly Rule PlatformReadOnly = new(
        "sev.platform.read-only", "the command changes the platform and /dev/sev is not open for writing", "sev_ioctl", "open /dev/sev with O_RDWR", "cmd#");

    public static readonly Rule PlatformNoStructure = new(
        "sev.platform.data", "the command has a structure, and its address is 0", "sev_ioctl", "pass the structure's address", "cmd#");

    public static readonly Rule PlatformInUse = new(
        "sev.platform.working", "the platform has guests", "sev_ioctl_do_reset", "destroy them first", "guests#");

    public static readonly Rule VlekForm = new(
        "sev.platform.vlek", "the structure has another length or version than the driver knows", "sev_ioctl_do_snp_vlek_load", "use len 16 and version 0", "len#", "version#");

    /// <summary>SEV_ISSUE_CMD. The structure goes back to user space, unless the command is not known.</summary>
    public Errno IssueCmd(KTask current, UserArg arg)
    {
        Errno errno = arg.CopyIn(current, out sev_issue_cmd input);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (input.cmd > (uint)SevPlatformCommand.SNP_VLEK_LOAD)
        {
            return current.Fail(Errno.EINVAL, PlatformCommandUnknown, input.cmd);
        }
        uint error = input.error;
        errno = Run(current, (SevPlatformCommand)input.cmd, UserArg.FromValue(input.data), ref error);
        input.error = error;
        Errno copied = arg.CopyOut(current, input);
        return copied != Errno.OK ? copied : errno;
    }

    private Errno Run(KTask current, SevPlatformCommand command, UserArg data, ref uint error)
    {
        KvmAmd amd = current.Host.KvmAmd;
        Psp psp = current.Machine.Psp;
        bool changes = command is SevPlatformCommand.SEV_FACTORY_RESET or SevPlatformCommand.SEV_PEK_GEN or SevPlatformCommand.SEV_PDH_GEN
            or SevPlatformCommand.SEV_PEK_CERT_IMPORT or SevPlatformCommand.SNP_SET_CONFIG or SevPlatformCommand.SNP_VLEK_LOAD;
        bool hasStructure = command is SevPlatformCommand.SNP_PLATFORM_STATUS or SevPlatformCommand.SNP_SET_CONFIG or SevPlatformCommand.SNP_VLEK_LOAD;
        if (changes && (Mode & FMode.Write) == 0)
        {
            return current.Fail(Errno.EPERM, PlatformReadOnly, (ulong)command);
        }
        if (hasStructure && data.Value == 0)
        {
            return current.Fail(Errno.EINVAL, PlatformNoStructure, (ulong)command);
        }
        // What cannot work on a platform that is not initialised initialises it first.
        if (command is not (SevPlatformCommand.SEV_FACTORY_RESET or SevPlatformCommand.SEV_PLATFORM_STATUS or SevPlatformCommand.SEV_GET_ID2) && psp.Status.State == SevPlatformState.UNINIT)
        {
            amd.IssueCommand(current, PspCommand.SNP_INIT, () => psp.SnpInit(current), ref error);
        }
        switch (command)
        {
            case SevPlatformCommand.SEV_FACTORY_RESET:
                PlatformStatus now = psp.Status;
                return now.SevGuests + now.SnpGuests > 0
                    ? current.Fail(Errno.EBUSY, PlatformInUse, now.SevGuests + now.SnpGuests)
                    : amd.IssueCommand(current, PspCommand.FACTORY_RESET, () => psp.FactoryReset(current), ref error);
            case SevPlatformCommand.SEV_PLATFORM_STATUS:
                error = (uint)SimMachine.Amd.SevStatus.SUCCESS;
                return data.CopyOut(current, StatusOf(current));
            case SevPlatformCommand.SEV_PEK_GEN:
                return amd.IssueCommand(current, PspCommand.PEK_GEN, () => psp.PekGen(current), ref error);
            case SevPlatformCommand.SEV_PDH_GEN:
                return amd.IssueCommand(current, PspCommand.PDH_GEN, () => psp.PdhGen(current), ref error);
            case SevPlatformCommand.SEV_GET_ID2:
                return GetId(current, data, ref error);
            case SevPlatformCommand.SNP_PLATFORM_STATUS:
                error = (uint)SimMachine.Amd.SevStatus.SUCCESS;
                return data.CopyOut(current, SnpStatusOf(current));
            case SevPlatformCommand.SNP_COMMIT:
                return amd.IssueCommand(current, PspCommand.SNP_COMMIT, () => psp.SnpCommit(current), ref error);
            case SevPlatformCommand.SNP_SET_CONFIG:
                Errno errno = data.CopyIn(current, out sev_user_data_snp_config config);
                return errno != Errno.OK
                    ? errno
                    : amd.IssueCommand(current, PspCommand.SNP_CONFIG, () => psp.SnpConfig(current, config.reported_tcb, config.mask), ref error);
            case SevPlatformCommand.SNP_VLEK_LOAD:
                return VlekLoad(current, data, ref error);
            default:
                return amd.IssueCommand(current, PspCommand.GET_ID, () => Psp.NotModelled(current, (uint)command), ref error);
        }
    }

    private static sev_user_data_status StatusOf(KTask current)
    {
        MachineConfig config = current.Machine.Config;
        PlatformStatus status = current.Machine.Psp.Status;
        return new sev_user_data_status
        {
            api_major = config.ApiMajor,
            api_minor = config.ApiMinor,
            state = (byte)status.State,
            flags = config.SevEs && status.State != SevPlatformState.UNINIT ? EsInitialised : 0,
            build = config.Build,
            guest_count = status.SevGuests,
        };
    }

    private static sev_user_data_snp_status SnpStatusOf(KTask current)
    {
        MachineConfig config = current.Machine.Config;
        PlatformIdentity identity = current.Machine.Identity;
        PlatformStatus status = current.Machine.Psp.Status;
        return new sev_user_data_snp_status
        {
            api_major = config.ApiMajor,
            api_minor = config.ApiMinor,
            state = (byte)(status.State == SevPlatformState.UNINIT ? 0 : 1),
            is_rmp_initialized = 1,
            build_id = config.Build,
            flags = (identity.MaskChipId ? 1u : 0) | (identity.MaskChipKey ? 2u : 0) | (identity.VlekCspId.Length > 0 ? 4u : 0)
                | (config.RaplDisabled ? 16u : 0) | (config.CiphertextHidingDram ? 0x60u : 0),
            guest_count = status.SnpGuests,
            current_tcb_version = identity.CurrentTcb.Encode(identity.Product),
            reported_tcb_version = identity.ReportedTcb.Encode(identity.Product),
        };
    }

    // sev_ioctl_do_get_id2: the length goes back whatever firmware says.
    private static Errno GetId(KTask current, UserArg data, ref uint error)
    {
        Errno errno = data.CopyIn(current, out sev_user_data_get_id2 input);
        if (errno != Errno.OK)
        {
            return errno;
        }
        bool fits = input.address != 0 && input.length >= ChipIdSize;
        errno = current.Host.KvmAmd.IssueCommand(
            current, PspCommand.GET_ID, () => fits ? SimMachine.Amd.SevStatus.SUCCESS : SimMachine.Amd.SevStatus.INVALID_LEN, ref error);
        input.length = ChipIdSize;
        Errno copied = data.CopyOut(current, input);
        if (copied == Errno.OK && fits)
        {
            copied = UserArg.FromValue(input.address).CopyOut(current, current.Machine.Identity.ChipId.Span);
        }
        return copied != Errno.OK ? copied : errno;
    }

    private static Errno VlekLoad(KTask current, UserArg data, ref uint error)
    {
        Errno errno = data.CopyIn(current, out sev_user_data_snp_vlek_load input);
        if (errno != Errno.OK)
        {
            return errno;
        }
        if (input.len != VlekLoadSize || input.vlek_wrapped_version != 0)
        {
            return current.Fail(Errno.EINVAL, VlekForm, input.len, input.vlek_wrapped_version);
        }
        byte[] wrapped = new byte[Psp.WrappedVlekSize];
        errno = UserArg.FromValue(input.vlek_wrapped_address).CopyIn(current, wrapped.AsSpan());
        return errno != Errno.OK
            ? errno
            : current.Host.KvmAmd.IssueCommand(current, PspCommand.SNP_VLEK_LOAD, () => current.Machine.Psp.SnpVlekLoad(current, wrapped), ref error);
    }
}
