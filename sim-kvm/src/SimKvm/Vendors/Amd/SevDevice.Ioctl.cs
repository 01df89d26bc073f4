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
    private const uint ExternallyOwned = 1 << 0;
    private const uint EsInitialised = 1 << 8;
    private const uint VlekLoadSize = 16;

    public static readonly Rule PlatformCommandUnknown = new(
        "sev.platform.command", "the command is not known", "sev_ioctl", "use 0 to 12", "cmd#");

    public static readonly Rule PlatformReadOnly = new(
        "sev.platform.read-only", "the command changes the platform and /dev/sev is not open for writing", "sev_ioctl", "open /dev/sev with O_RDWR", "cmd#");

    public static readonly Rule PlatformNoStructure = new(
        "sev.platform.data", "SNP is not initialised on this host, or the address of the command's structure is 0", "sev_ioctl_do_snp_platform_status and its like",
        "boot the host with sev_snp enabled, and pass the structure's address", "cmd#");

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
        Psp psp = current.Machine.Psp;
        switch (command)
        {
            case SevPlatformCommand.SEV_FACTORY_RESET:
                return FactoryReset(current, ref error);
            case SevPlatformCommand.SEV_PLATFORM_STATUS:
                error = (uint)SimMachine.Amd.SevStatus.SUCCESS;
                return data.CopyOut(current, StatusOf(current));
            case SevPlatformCommand.SEV_PEK_GEN:
                return MakeKey(current, PspCommand.PEK_GEN, () => psp.PekGen(current), ref error);
            case SevPlatformCommand.SEV_PDH_GEN:
                return MakeKey(current, PspCommand.PDH_GEN, () => psp.PdhGen(current), ref error);
            case SevPlatformCommand.SEV_PEK_CSR:
                return PekCsr(current, data, ref error);
            case SevPlatformCommand.SEV_PDH_CERT_EXPORT:
                return PdhCertExport(current, data, ref error);
            case SevPlatformCommand.SEV_PEK_CERT_IMPORT:
                return PekCertImport(current, data, ref error);
            case SevPlatformCommand.SEV_GET_ID:
                return GetId(current, data, ref error);
            case SevPlatformCommand.SEV_GET_ID2:
                return GetId2(current, data, ref error);
            case SevPlatformCommand.SNP_COMMIT when !current.Host.KvmAmd.SnpEnabled:
                return current.Fail(Errno.EINVAL, PlatformNoStructure, (ulong)command);
            case SevPlatformCommand.SNP_COMMIT:
                Initialise(current, ref error);
                return current.Host.KvmAmd.IssueCommand(current, PspCommand.SNP_COMMIT, () => psp.SnpCommit(current), ref error);
            default:
                return RunOnSnp(current, command, data, ref error);
        }
    }

    // The commands of SNP that have a structure.
    private Errno RunOnSnp(KTask current, SevPlatformCommand command, UserArg data, ref uint error)
    {
        if (!current.Host.KvmAmd.SnpEnabled || data.Value == 0)
        {
            return current.Fail(Errno.EINVAL, PlatformNoStructure, (ulong)command);
        }
        if (command == SevPlatformCommand.SNP_PLATFORM_STATUS)
        {
            Initialise(current, ref error);
            error = (uint)SimMachine.Amd.SevStatus.SUCCESS;
            return data.CopyOut(current, SnpStatusOf(current));
        }
        if (IsReadOnly)
        {
            return current.Fail(Errno.EPERM, PlatformReadOnly, (ulong)command);
        }
        return command == SevPlatformCommand.SNP_VLEK_LOAD ? VlekLoad(current, data, ref error) : SetConfig(current, data, ref error);
    }

    private bool IsReadOnly => (Mode & FMode.Write) == 0;

    // The driver initialises the platform when it is loaded, or here if that was put off.
    private static Errno Initialise(KTask current, ref uint error)
    {
        Psp psp = current.Machine.Psp;
        return psp.Status.State != SevPlatformState.UNINIT
            ? Errno.OK
            : current.Host.KvmAmd.IssueCommand(current, PspCommand.SNP_INIT, () => psp.SnpInit(current), ref error);
    }

    // sev_ioctl_do_reset
    private Errno FactoryReset(KTask current, ref uint error)
    {
        if (IsReadOnly)
        {
            return current.Fail(Errno.EPERM, PlatformReadOnly, (ulong)SevPlatformCommand.SEV_FACTORY_RESET);
        }
        PlatformStatus now = current.Machine.Psp.Status;
        return now.SevGuests + now.SnpGuests > 0
            ? current.Fail(Errno.EBUSY, PlatformInUse, now.SevGuests + now.SnpGuests)
            : current.Host.KvmAmd.IssueCommand(current, PspCommand.FACTORY_RESET, () => current.Machine.Psp.FactoryReset(current), ref error);
    }

    // sev_ioctl_do_pek_pdh_gen
    private Errno MakeKey(KTask current, PspCommand command, Func<SimMachine.Amd.SevStatus> run, ref uint error)
    {
        if (IsReadOnly)
        {
            return current.Fail(Errno.EPERM, PlatformReadOnly, (ulong)(command == PspCommand.PEK_GEN ? SevPlatformCommand.SEV_PEK_GEN : SevPlatformCommand.SEV_PDH_GEN));
        }
        Errno errno = Initialise(current, ref error);
        return errno != Errno.OK ? errno : current.Host.KvmAmd.IssueCommand(current, command, run, ref error);
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
            flags = (current.Machine.Psp.IsExternallyOwned ? ExternallyOwned : 0) | (config.SevEs && status.State != SevPlatformState.UNINIT ? EsInitialised : 0),
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
                | (config.FirmwarePolicyBits != 0 ? 8u : 0) | (config.RaplDisabled ? 16u : 0) | (config.CiphertextHidingDram ? 0x60u : 0),
            guest_count = status.SnpGuests,
            current_tcb_version = identity.CurrentTcb.Encode(identity.Product),
            reported_tcb_version = identity.ReportedTcb.Encode(identity.Product),
        };
    }

    private static Errno SetConfig(KTask current, UserArg data, ref uint error)
    {
        Errno errno = data.CopyIn(current, out sev_user_data_snp_config config);
        if (errno == Errno.OK)
        {
            errno = Initialise(current, ref error);
        }
        return errno != Errno.OK
            ? errno
            : current.Host.KvmAmd.IssueCommand(current, PspCommand.SNP_CONFIG, () => current.Machine.Psp.SnpConfig(current, config.reported_tcb, config.mask), ref error);
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
        errno = CopyBlob(current, input.vlek_wrapped_address, wrapped);
        if (errno == Errno.OK)
        {
            errno = Initialise(current, ref error);
        }
        return errno != Errno.OK
            ? errno
            : current.Host.KvmAmd.IssueCommand(current, PspCommand.SNP_VLEK_LOAD, () => current.Machine.Psp.SnpVlekLoad(current, wrapped), ref error);
    }
}
