using SimKvm.Abi;
using SimMachine.Amd;
using SimMachine.Amd.Legacy;
using SimMachine.Measurement;

namespace SimKvm.Tests.Model.Sev;

/// <summary>What a KVM_MEMORY_ENCRYPT_OP answers: the errno, and kvm_sev_cmd.error; null where it keeps the caller's value.</summary>
internal readonly record struct SevAnswer(Errno Errno, uint? Error)
{
    public static SevAnswer Ok => new(Errno.OK, null);

    public static SevAnswer FirmwareOk => new(Errno.OK, 0);

    public static implicit operator SevAnswer(Errno errno) => new(errno, null);

    public static implicit operator SevAnswer(SevStatus status) => new(status == SevStatus.SUCCESS ? Errno.OK : Errno.EIO, (uint)status);
}

/// <summary>
/// SEV, SEV-ES and SNP launches of one VM as snp.md has them (2 to 4 and 10), once more and as plainly as they can be said: one method a command, its checks from top to bottom.
/// Nothing of the simulated kernel is used but names of numbers.
/// </summary>
/// <remarks>Commands of SEV behind LAUNCH_START go by its descriptor of /dev/sev, whatever their own says; before it there is none, hence EBADF.</remarks>
internal sealed partial class SevLaunchModel(VmType type, bool newest)
{
    public const int Pages = 16;

    private const ulong FirmwareApi = 0x0137;

    private bool _needInit = type is VmType.KVM_X86_SEV_VM or VmType.KVM_X86_SEV_ES_VM or VmType.KVM_X86_SNP_VM;
    private bool _active;
    private bool _es;
    private readonly List<bool> _vcpuEncrypted = [];

    // A guest of the SEV firmware, once there is one.
    private uint _handle;
    private uint _policy;
    private SevGuestState _state;

    // A guest of the SNP firmware.
    private bool _context;
    private bool _finished;
    private readonly bool[] _private = new bool[Pages];
    private readonly bool[] _launched = new bool[Pages];

    public bool IsSnp => _active && _es && type == VmType.KVM_X86_SNP_VM;

    public bool IsActive => _active;

    public uint Handle => _handle;

    public uint Policy => _policy;

    public SevGuestState State => _state;

    public int Vcpus => _vcpuEncrypted.Count;

    public void CreateVcpu() => _vcpuEncrypted.Add(false);

    public void SetPrivate(int first, int count, bool value) => Array.Fill(_private, value, first, count);

    public void Punch(int first, int count) => Array.Fill(_launched, false, first, count);

    /// <summary>What every command meets before its own checks; null where it goes on. Nothing is written back.</summary>
    public SevAnswer? Dispatch(uint id)
    {
        if (IsSnp && id < 100)
            return Errno.EPERM;
        bool known = Enum.IsDefined((SevCmdId)id) && (id != (uint)SevCmdId.KVM_SEV_SNP_ENABLE_REQ_CERTS || newest);
        return known ? null : Errno.EINVAL;
    }

    public SevAnswer Init(bool es) => type == VmType.KVM_X86_DEFAULT_VM ? CommonInit(es, features: 0, flags: 0, ghcb: es ? 1 : 0) : Errno.EINVAL;

    public SevAnswer Init2(bool readable, ulong features, uint flags, int ghcb)
    {
        if (!_needInit)
            return Errno.EINVAL;
        if (!readable)
            return Errno.EFAULT;
        SevAnswer answer = CommonInit(type != VmType.KVM_X86_SEV_VM, features, flags, ghcb);
        _needInit = answer.Errno != Errno.OK;
        return answer;
    }

    public SevAnswer LaunchStart(bool readable, bool fd, uint handle, uint policy, Blob dh, Blob session)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if ((dh.Given ? dh.Copy() : session.Given ? session.Copy() : null) is { } bad)
            return bad;
        if (dh.Given && session.Given && session.Copy() is { } alsoBad)
            return alsoBad;
        if (!fd)
            return Errno.EBADF;
        ulong api = ((policy >> 16) & 0xff) << 8 | (policy >> 24);
        if (api > FirmwareApi || (policy & 0xffc0) != 0)
            return SevStatus.POLICY_FAILURE;
        if (handle != 0 && handle != _handle)
            return SevStatus.INVALID_GUEST;
        if (handle != 0 && ((_policy & 2) != 0 || policy != _policy))
            return SevStatus.POLICY_FAILURE;
        // The blobs of this test are nonsense: only their absence starts a guest.
        if (session.Given)
            return session.Length == 128 ? SevStatus.INVALID_CERTIFICATE : SevStatus.INVALID_LEN;
        // The ASID of an SEV-ES VM is of the low range, which takes guests of that policy and no others.
        if (_es != ((policy & 4) != 0))
            return SevStatus.INVALID_ASID;
        if (_handle != 0)
            return SevStatus.ASID_OWNED;
        _state = SevGuestState.LAUNCH_UPDATE;
        _policy = policy;
        return SevAnswer.FirmwareOk;
    }

    /// <summary>The handle is firmware's choice.</summary>
    public void Started(uint handle) => _handle = handle;

    public SevAnswer UpdateData(bool readable, ulong offset, uint length, ulong mapped)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (length == 0)
            return Errno.EINVAL;
        if (offset + length > mapped)
            return Errno.ENOMEM;
        if (_handle == 0)
            return Errno.EBADF;
        if (_state != SevGuestState.LAUNCH_UPDATE)
            return SevStatus.INVALID_GUEST_STATE;
        return offset % 16 != 0 ? SevStatus.INVALID_ADDRESS : length % 16 != 0 ? SevStatus.INVALID_LEN : SevStatus.SUCCESS;
    }

    public SevAnswer UpdateVmsa()
    {
        if (!_active || !_es)
            return Errno.ENOTTY;
        SevAnswer answer = SevAnswer.Ok;
        for (int i = 0; i < Vcpus; i++)
        {
            if (newest && _vcpuEncrypted[i])
                return answer with { Errno = Errno.EINVAL };
            if (_handle == 0)
                return answer with { Errno = Errno.EBADF };
            if (_state != SevGuestState.LAUNCH_UPDATE)
                return SevStatus.INVALID_GUEST_STATE;
            if ((_policy & 4) == 0)
                return SevStatus.POLICY_FAILURE;
            _vcpuEncrypted[i] = true;
            answer = SevAnswer.FirmwareOk;
        }
        return answer;
    }

    /// <param name="length">In and out.</param>
    public SevAnswer Measure(bool readable, bool hasBuffer, bool bufferMapped, ref uint length)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (hasBuffer && length > 0x4000)
            return Errno.EINVAL;
        if (_handle == 0)
            return Errno.EBADF;
        if (_state is not (SevGuestState.LAUNCH_UPDATE or SevGuestState.LAUNCH_SECRET))
            return SevStatus.INVALID_GUEST_STATE;
        bool fits = hasBuffer && length >= 48;
        // The needed length goes back to who asked for it with length 0, or got a measurement.
        length = fits || length == 0 ? 48 : length;
        if (!fits)
            return SevStatus.INVALID_LEN;
        _state = SevGuestState.LAUNCH_SECRET;
        return !bufferMapped ? new SevAnswer(Errno.EFAULT, 0) : SevAnswer.FirmwareOk;
    }

    /// <param name="length">In and out.</param>
    public SevAnswer Report(bool readable, bool hasBuffer, bool bufferMapped, ref uint length)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (hasBuffer && length > 0x4000)
            return Errno.EINVAL;
        if (_handle == 0)
            return Errno.EBADF;
        if (_state is not (SevGuestState.LAUNCH_SECRET or SevGuestState.RUNNING))
            return SevStatus.INVALID_GUEST_STATE;
        bool fits = hasBuffer && length >= 208;
        length = fits || length == 0 ? 208 : length;
        return !fits ? SevStatus.INVALID_LEN : bufferMapped ? SevAnswer.FirmwareOk : new SevAnswer(Errno.EFAULT, 0);
    }

    public SevAnswer Secret(bool readable, uint guestLength, bool guestMapped, Blob header, Blob body, uint headerFlags)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (guestLength == 0)
            return Errno.EINVAL;
        if (!guestMapped)
            return Errno.ENOMEM;
        if ((body.Copy() ?? header.Copy()) is { } bad)
            return bad;
        if (_handle == 0)
            return Errno.EBADF;
        if (_state != SevGuestState.LAUNCH_SECRET)
            return SevStatus.INVALID_GUEST_STATE;
        if (header.Length != 52 || guestLength % 16 != 0 || body.Length != guestLength)
            return SevStatus.INVALID_LEN;
        return headerFlags != 0 ? SevStatus.UNSUPPORTED : SevStatus.BAD_MEASUREMENT;
    }

    public SevAnswer Finish()
    {
        if (!_active)
            return Errno.ENOTTY;
        if (_handle == 0)
            return Errno.EBADF;
        if (_state is not (SevGuestState.LAUNCH_UPDATE or SevGuestState.LAUNCH_SECRET))
            return SevStatus.INVALID_GUEST_STATE;
        _state = SevGuestState.RUNNING;
        return SevAnswer.FirmwareOk;
    }

    public SevAnswer GuestStatus(bool writable)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (_handle == 0)
            return Errno.EBADF;
        return writable ? SevAnswer.FirmwareOk : new SevAnswer(Errno.EFAULT, 0);
    }

    public SevAnswer Debug(bool readable, uint length, bool hasTarget, bool mapped)
    {
        if (!_active)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (length == 0 || !hasTarget)
            return Errno.EINVAL;
        if (!mapped)
            return Errno.ENOMEM;
        if (_handle == 0)
            return Errno.EBADF;
        return (_policy & 1) != 0 ? SevStatus.POLICY_FAILURE : SevStatus.SUCCESS;
    }

    public SevAnswer SnpStart(bool readable, bool fd, ulong policy, uint flags)
    {
        const ulong kvmTakes = 0x1b_ffff, mustBeOne = 1 << 17, smt = 1 << 16;
        if (!IsSnp)
            return Errno.ENOTTY;
        if (!readable)
            return Errno.EFAULT;
        if (_context || flags != 0 || (policy & ~kvmTakes) != 0 || (policy & mustBeOne) == 0)
            return Errno.EINVAL;
        if (!fd)
            return Errno.ENOTTY;
        if ((policy & 0xffff) > FirmwareApi || (policy & smt) == 0)
            return SevStatus.POLICY_FAILURE;
        _context = true;
        return SevAnswer.FirmwareOk;
    }

    /// <param name="first">Page of the slot; outside of 0 to <see cref="Pages"/> there is no slot.</param>
    /// <param name="count">Pages asked for.</param>
    /// <param name="odd">The length is no multiple of the page size.</param>
    /// <param name="source">Page of the source, below 0 for a NULL one.</param>
    /// <param name="sourcePages">Pages of the source that are mapped.</param>
    /// <param name="done">Pages that were launched.</param>
    public SevAnswer SnpUpdate(bool readable, bool fd, SnpPageType pageType, int first, int count, bool odd, uint flags, int source, bool unaligned, int sourcePages, out int done)
    {
        done = 0;
        if (!IsSnp || !_context)
            return Errno.EINVAL;
        if (!readable)
            return Errno.EFAULT;
        bool isZero = pageType == SnpPageType.ZERO;
        bool known = isZero || pageType is SnpPageType.NORMAL or SnpPageType.UNMEASURED or SnpPageType.SECRETS or SnpPageType.CPUID;
        if ((count == 0 && !odd && newest) || odd || flags != 0 || !known)
            return Errno.EINVAL;
        if (newest && !isZero && unaligned)
            return Errno.EINVAL;
        if (first is < 0 or >= Pages)
            return Errno.EINVAL;
        if (count == 0)
            return SevAnswer.Ok;
        uint error = 0;
        for (; done < count && first + done < Pages; done++)
        {
            int page = first + done;
            bool hasSource = !isZero && source >= 0;
            if (newest && hasSource && source + done >= sourcePages)
                break;
            if (!_private[page] || _launched[page] || (!isZero && !hasSource) || (hasSource && source + done + (unaligned ? 1 : 0) >= sourcePages) || !fd)
                break;
            // What the test puts into a page is no CPUID table.
            error = _finished ? (uint)SevStatus.INVALID_GUEST_STATE : pageType == SnpPageType.CPUID ? (uint)SevStatus.INVALID_PARAM : 0;
            if (error != 0)
                break;
            _launched[page] = true;
        }
        return done > 0 ? SevAnswer.Ok : new SevAnswer(Errno.EIO, error);
    }

    public SevAnswer SnpFinish(bool readable, bool fd, uint flags, bool idBlock, Errno idBlockCopy)
    {
        if (!IsSnp)
            return Errno.ENOTTY;
        if (!_context)
            return Errno.EINVAL;
        if (!readable)
            return Errno.EFAULT;
        if (flags != 0)
            return Errno.EINVAL;
        uint? error = null;
        for (int i = 0; i < Vcpus; i++)
        {
            if (newest && _vcpuEncrypted[i])
                return new SevAnswer(Errno.EINVAL, error);
            if (!fd)
                return new SevAnswer(Errno.EBADF, error);
            if (_finished)
                return SevStatus.INVALID_GUEST_STATE;
            _vcpuEncrypted[i] = true;
            error = 0;
        }
        if (idBlock && idBlockCopy != Errno.OK)
            return new SevAnswer(idBlockCopy, error);
        if (_finished)
            return SevStatus.INVALID_GUEST_STATE;
        _finished = true;
        return SevAnswer.FirmwareOk;
    }

    public SevAnswer SnpEnableReqCerts() => Vcpus > 0 || !IsSnp ? Errno.EINVAL : SevAnswer.Ok;

    private SevAnswer CommonInit(bool es, ulong features, uint flags, int ghcb)
    {
        const ulong debugSwap = 0x20;
        if (Vcpus > 0 || flags != 0 || (features & ~(es ? debugSwap : 0)) != 0 || ghcb > 2 || (!es && ghcb != 0) || _active)
            return Errno.EINVAL;
        (_active, _es) = (true, es);
        return SevAnswer.Ok;
    }
}

/// <summary>A blob that a command copies from user memory.</summary>
internal readonly record struct Blob(bool Given, uint Length, bool Mapped)
{
    /// <summary>psp_copy_user_blob: why it cannot be copied, or null.</summary>
    public Errno? Copy() => !Given || Length is 0 or > 0x4000 ? Errno.EINVAL : Mapped ? null : Errno.EFAULT;
}
