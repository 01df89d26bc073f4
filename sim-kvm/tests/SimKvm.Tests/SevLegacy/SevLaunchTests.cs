using System.Security.Cryptography;
using SimKvm.Abi;
using SimKvm.Kvm;
using SimKvm.Tests.Support;
using SimKvm.Userspace;
using SimKvm.Vendors.Amd;
using SimMachine.Amd;
using SimMachine.Amd.Legacy;
using SimMachine.Stepping;
using Xunit;

namespace SimKvm.Tests;

/// <summary>SEV and SEV-ES launch in place: state machine, measurement, what the host then sees (snp.md 4; seed 004).</summary>
public sealed class SevLaunchTests : KvmTest
{
    private const uint Page = 4096;

    // The commands of a launch, and the states that take them.
    private static readonly (SevCmdId Command, SevGuestState[] Allowed)[] Commands =
    [
        (SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, [SevGuestState.LAUNCH_UPDATE]),
        (SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA, [SevGuestState.LAUNCH_UPDATE]),
        (SevCmdId.KVM_SEV_LAUNCH_MEASURE, [SevGuestState.LAUNCH_UPDATE, SevGuestState.LAUNCH_SECRET]),
        (SevCmdId.KVM_SEV_LAUNCH_FINISH, [SevGuestState.LAUNCH_UPDATE, SevGuestState.LAUNCH_SECRET]),
    ];

    public static TheoryData<SevCmdId, SevGuestState, bool> Transitions
    {
        get
        {
            var data = new TheoryData<SevCmdId, SevGuestState, bool>();
            foreach ((SevCmdId command, SevGuestState[] allowed) in Commands)
            {
                foreach (SevGuestState state in new[] { SevGuestState.UNINIT, SevGuestState.LAUNCH_UPDATE, SevGuestState.LAUNCH_SECRET, SevGuestState.RUNNING })
                {
                    data.Add(command, state, allowed.Contains(state));
                }
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Transitions))]
    public void ACommand_InAState_IsTakenOrAnsweredEioWithInvalidGuestState_OrEbadfBeforeStart(SevCmdId command, SevGuestState state, bool taken)
    {
        var guest = new Guest(Boot(), VmType.KVM_X86_SEV_ES_VM, SevPolicy.ES);
        guest.BringTo(state);
        SevReply<kvm_sev_launch_measure> reply = guest.Issue(command);
        if (taken)
        {
            AssertOk(reply.Report);
            return;
        }
        if (state == SevGuestState.UNINIT)
        {
            // KVM has no descriptor of /dev/sev yet: it would take the one of LAUNCH_START.
            AssertRefused(reply.Report, Errno.EBADF, SevBackend.NoSevFd);
            return;
        }
        Rule root = command == SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA && state != SevGuestState.LAUNCH_UPDATE
            ? SevBackend.VcpuAlreadyEncrypted : Psp.WrongSevState;
        if (root == SevBackend.VcpuAlreadyEncrypted)
        {
            // The vCPU was measured on the way there, which KVM notices before firmware would.
            AssertRefused(reply.Report, Errno.EINVAL, root);
            return;
        }
        AssertRefused(reply.Report, Errno.EIO, root);
        Assert.Equal((uint)SevStatus.INVALID_GUEST_STATE, reply.Error);
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public void Digest_IsTheStreamOfWhatWasUpdated_InOrder(string profile)
    {
        var guest = new Guest(Boot(profile), VmType.KVM_X86_SEV_VM, 0);
        guest.Start();
        byte[] content = [.. Enumerable.Range(0, 3 * 4096).Select(i => (byte)(i * 7))];
        guest.Vmm.Store(guest.Memory, content);
        // Unaligned to pages, in two parts that meet in the middle of one.
        AssertOk(guest.Update(guest.Memory + 16, 4096).Report);
        AssertOk(guest.Update(guest.Memory + 16 + 4096, 4096).Report);
        Assert.Equal(SHA256.HashData(content.AsSpan(16, 8192)), guest.Status.LaunchDigest);
    }

    [Fact]
    public void UpdatedMemory_IsCiphertextForTheHost_AndPlainForTheGuest()
    {
        var guest = new Guest(Boot(), VmType.KVM_X86_SEV_VM, 0);
        guest.Start();
        byte[] content = Vmm.Content(0x5a);
        guest.Vmm.Store(guest.Memory, content);
        guest.Vm.AddSlot(0, 0, 4, guest.Memory);
        AssertOk(guest.Update(guest.Memory, Page).Report);
        Assert.NotEqual(content, guest.Vmm.Load(guest.Memory, 4096));

        AssertOk(guest.Issue(SevCmdId.KVM_SEV_LAUNCH_FINISH).Report);
        var vcpu = new TestGuest(guest.Vm);
        vcpu.Load(new GuestCompare(0, 4096, content, GuestAccess.Private), new GuestRead(0, 16, GuestAccess.Shared), new GuestHalt());
        AssertOk(vcpu.Continue());
        IReadOnlyList<GuestStepResult> results = vcpu.Results;
        Assert.Null(results[0].MismatchAt);
        Assert.NotEqual(content[..16], results[1].Data.ToArray());
    }

    // Seed 004: content must be in place before the command, which replaces it; what is allocated later is not encrypted.
    [Fact]
    public void MemoryThatWasNeverTouched_IsPinnedWritable_AndMeasuredAsZeros()
    {
        var guest = new Guest(Boot(), VmType.KVM_X86_SEV_VM, 0);
        guest.Start();
        AssertOk(guest.Update(guest.Memory, Page).Report);
        Assert.Equal(SHA256.HashData(new byte[4096]), guest.Status.LaunchDigest);
    }

    [Fact]
    public void Measure_OfLengthZero_IsEioWithInvalidLen_AndTellsTheLength()
    {
        var guest = new Guest(Boot(), VmType.KVM_X86_SEV_VM, 0);
        guest.Start();
        SevReply<kvm_sev_launch_measure> query = guest.Measure(0);
        AssertRefused(query.Report, Errno.EIO, Psp.MeasureLength);
        Assert.Equal((uint)SevStatus.INVALID_LEN, query.Error);
        Assert.Equal(48u, query.Data.len);
        Assert.Equal(SevGuestState.LAUNCH_UPDATE, guest.Status.State);

        AssertOk(guest.Measure(48).Report);
        byte[] first = guest.Vmm.Load(guest.Buffer, 48);
        AssertOk(guest.Measure(48).Report);
        Assert.Equal(first, guest.Vmm.Load(guest.Buffer, 48));
        Assert.Equal(SevGuestState.LAUNCH_SECRET, guest.Status.State);
    }

    // Length 0 is a question; a length that is too small is a mistake, and is not corrected.
    [Theory]
    [InlineData(0u, 48u)]
    [InlineData(47u, 47u)]
    public void Measure_OfABufferThatIsTooSmall_TellsTheLengthOnlyToWhoAsks(uint length, uint after)
    {
        var guest = new Guest(Boot(), VmType.KVM_X86_SEV_VM, 0);
        guest.Start();
        SevReply<kvm_sev_launch_measure> reply = guest.Measure(length);
        AssertRefused(reply.Report, Errno.EIO, Psp.MeasureLength);
        Assert.Equal(after, reply.Data.len);
    }

    [Fact]
    public void AReport_IsSignedByThePlatformEndorsementKey()
    {
        TestHost host = Boot();
        var guest = new Guest(host, VmType.KVM_X86_SEV_VM, 0);
        guest.Start();
        AssertOk(guest.Update(guest.Memory, Page).Report);
        AssertOk(guest.Measure(48).Report);
        AssertOk(guest.Vm.TrySev(SevCmdId.KVM_SEV_GET_ATTESTATION_REPORT, new kvm_sev_attestation_report { uaddr = guest.Buffer, len = 208 }).Report);

        byte[] report = guest.Vmm.Load(guest.Buffer, 208);
        byte[] r = report[0x40..0x70], s = report[0x88..0xB8];
        Array.Reverse(r);
        Array.Reverse(s);
        using ECDsa pek = host.Machine.Psp.CreatePekPublic();
        byte[] signature = [.. r, .. s];
        Assert.True(pek.VerifyHash(SHA384.HashData(report[..0x34]), signature));
        report[0x10] ^= 1;
        Assert.False(pek.VerifyHash(SHA384.HashData(report[..0x34]), signature));
        Assert.Equal(guest.Status.LaunchDigest[1..], report[0x11..0x30]);
    }

    [Fact]
    public void Secret_SealedByTheOwnerOfASession_ArrivesInGuestMemory()
    {
        TestHost host = Boot();
        var guest = new Guest(host, VmType.KVM_X86_SEV_VM, 0);
        var owner = new Owner(host);
        guest.Start(owner.Certificate, owner.Session(0));
        guest.Vm.AddSlot(0, 0, 4, guest.Memory);
        AssertOk(guest.Update(guest.Memory, Page).Report);
        AssertOk(guest.Measure(48).Report);
        byte[] measurement = guest.Vmm.Load(guest.Buffer, 48);
        Assert.Equal(
            SevSession.Measure(owner.Tik, (1, 55, 21), 0, guest.Status.LaunchDigest, measurement.AsSpan(32)), measurement[..32]);

        byte[] secret = [.. "the disk key, 32 bytes of it...."u8];
        (byte[] header, byte[] body) = SevSession.SealSecret(owner.Tek, owner.Tik, new byte[16], secret, measurement.AsSpan(0, 32));
        AssertOk(guest.Secret(header, body, guest.Memory + Page + 64).Report);

        header[51] ^= 1;
        SevReply<kvm_sev_launch_secret> forged = guest.Secret(header, body, guest.Memory + Page + 64);
        AssertRefused(forged.Report, Errno.EIO, Psp.BadSecret);
        Assert.Equal((uint)SevStatus.BAD_MEASUREMENT, forged.Error);

        AssertOk(guest.Issue(SevCmdId.KVM_SEV_LAUNCH_FINISH).Report);
        var vcpu = new TestGuest(guest.Vm);
        vcpu.Load(new GuestRead(Page + 64, (ulong)secret.Length, GuestAccess.Private), new GuestHalt());
        AssertOk(vcpu.Continue());
        Assert.Equal(secret, vcpu.Results[0].Data.ToArray());
    }

    // Frames are given as pages are touched, so pages that are touched backwards lie backwards.
    [Theory]
    [InlineData(false, Errno.OK)]
    [InlineData(true, Errno.EINVAL)]
    public void Secret_OverTwoPages_NeedsThemSideBySideInPhysicalMemory(bool backwards, Errno expected)
    {
        TestHost host = Boot();
        var guest = new Guest(host, VmType.KVM_X86_SEV_VM, 0);
        var owner = new Owner(host);
        guest.Start(owner.Certificate, owner.Session(0));
        AssertOk(guest.Measure(48).Report);
        byte[] measure = guest.Vmm.Load(guest.Buffer, 32);
        (byte[] header, byte[] body) = SevSession.SealSecret(owner.Tek, owner.Tik, new byte[16], new byte[32], measure);
        // The buffers take their frames first, so that nothing comes between those of the guest's pages.
        guest.Vmm.Store(guest.Buffer, new byte[2 * Page]);
        foreach (uint page in backwards ? new[] { 1u, 0u } : [0u, 1u])
        {
            guest.Vmm.Store(guest.Memory + (page * Page), new byte[] { 1 });
        }

        SevReply<kvm_sev_launch_secret> reply = guest.Secret(header, body, guest.Memory + Page - 16);

        Assert.Equal(expected, reply.Report.Errno);
        if (backwards)
        {
            AssertRefused(reply.Report, Errno.EINVAL, SevBackend.NotContiguous);
        }
    }

    // KVM takes the ASID by the VM's type and leaves the policy to firmware, which notices when the guest gets the ASID.
    [Theory]
    [InlineData(VmType.KVM_X86_SEV_ES_VM, 0u)]
    [InlineData(VmType.KVM_X86_SEV_VM, SevPolicy.ES)]
    public void Start_WithThePolicyOfTheOtherType_IsRefusedAtActivation_AndCanBeRepeated(VmType type, uint policy)
    {
        TestHost host = Boot();
        var guest = new Guest(host, type, policy);
        SevReply<kvm_sev_launch_start> reply = guest.TryStart([], []);
        AssertRefused(reply.Report, Errno.EIO, Psp.AsidOfAnotherPolicy);
        Assert.Equal((uint)SevStatus.INVALID_ASID, reply.Error);
        AssertOk(guest.Vm.TrySev(SevCmdId.KVM_SEV_LAUNCH_START, new kvm_sev_launch_start { policy = policy ^ SevPolicy.ES }).Report);
    }

    [Fact]
    public void ASessionForAnotherPolicy_IsRefused_AndTheVmCanBeStartedAgain()
    {
        TestHost host = Boot();
        var guest = new Guest(host, VmType.KVM_X86_SEV_VM, SevPolicy.NODBG);
        var owner = new Owner(host);
        SevReply<kvm_sev_launch_start> refused = guest.TryStart(owner.Certificate, owner.Session(0));
        AssertRefused(refused.Report, Errno.EIO, Psp.BadSession);
        Assert.Equal((uint)SevStatus.BAD_MEASUREMENT, refused.Error);
        guest.Start(owner.Certificate, owner.Session(SevPolicy.NODBG));
    }

    [Theory]
    [InlineData(0u, true)]
    [InlineData(SevPolicy.NODBG, false)]
    public void DebugDecrypt_IsForGuestsWhosePolicyAllowsIt(uint policy, bool allowed)
    {
        var guest = new Guest(Boot(), VmType.KVM_X86_SEV_VM, policy);
        guest.Start();
        byte[] content = Vmm.Content(7);
        guest.Vmm.Store(guest.Memory, content);
        AssertOk(guest.Update(guest.Memory, Page).Report);
        var debug = new kvm_sev_dbg { src_uaddr = guest.Memory + 16, dst_uaddr = guest.Buffer + 100, len = 3000 };
        SevReply<kvm_sev_dbg> reply = guest.Vm.TrySev(SevCmdId.KVM_SEV_DBG_DECRYPT, debug);
        if (!allowed)
        {
            AssertRefused(reply.Report, Errno.EIO, Psp.DebugForbidden);
            return;
        }
        AssertOk(reply.Report);
        Assert.Equal(content[16..3016], guest.Vmm.Load(guest.Buffer + 100, 3000));
    }

    // Command, address as an offset into the guest's memory or as it is, length, and what comes of it.
    [Theory]
    [InlineData(SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, 0UL, 0u, Errno.EINVAL, "sev.user-range")]
    [InlineData(SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, 8UL, 16u, Errno.EIO, "psp.sev.alignment")]
    [InlineData(SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, 0UL, 20u, Errno.EIO, "psp.sev.alignment")]
    [InlineData(SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, 0UL, Page + 8u, Errno.EIO, "psp.sev.alignment")]
    [InlineData(SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, 1UL << 46, 4096u, Errno.ENOMEM, "sev.pin")]
    [InlineData(SevCmdId.KVM_SEV_LAUNCH_MEASURE, 0UL, 0x4001u, Errno.EINVAL, "sev.blob")]
    [InlineData(SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA, 0UL, 0u, Errno.ENOTTY, "sev.guest.no-es")]
    public void ACommand_WithAnArgumentThatCannotBe_LeavesTheLaunchAsItWas(SevCmdId command, ulong offset, uint length, Errno errno, string rule)
    {
        var guest = new Guest(Boot(), VmType.KVM_X86_SEV_VM, 0);
        guest.Start();
        byte[] digest = guest.Status.LaunchDigest;
        CallReport report = guest.Vm.TrySev(command, new kvm_sev_launch_measure { uaddr = guest.Memory + offset, len = length }).Report;
        Assert.Equal(errno, report.Errno);
        Assert.Contains(rule, report.Causes.Select(cause => cause.Rule.Id));
        Assert.Equal((SevGuestState.LAUNCH_UPDATE, Convert.ToHexString(digest)), (guest.Status.State, Convert.ToHexString(guest.Status.LaunchDigest)));
    }

    [Theory]
    [InlineData(0x3801_0000u)]
    [InlineData(1u << 8)]
    public void Start_WithAPolicyOfANewerFirmware_IsRefused(uint policy)
    {
        SevReply<kvm_sev_launch_start> reply = new Guest(Boot(), VmType.KVM_X86_SEV_VM, policy).TryStart([], []);
        AssertRefused(reply.Report, Errno.EIO, Psp.SevPolicyTooNew);
        Assert.Equal(KvmAmd.FirmwareRefused, reply.Report.Causes[^1].Rule);
        Assert.Equal((uint)SevStatus.POLICY_FAILURE, reply.Error);
    }

    [Fact]
    public void LegacyInit_IsForDefaultVmsOnly()
    {
        TestHost host = Boot();
        AssertRefused(host.Vmm.CreateVm(VmType.KVM_X86_SEV_VM).TrySev(SevCmdId.KVM_SEV_INIT, 0UL).Report, Errno.EINVAL, SevBackend.LegacyInitType);
        TestVm plain = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        AssertOk(plain.TrySev(SevCmdId.KVM_SEV_ES_INIT, 0UL).Report);
        AssertRefused(plain.TrySev(SevCmdId.KVM_SEV_INIT, 0UL).Report, Errno.EINVAL, SevBackend.NoInitNeeded);
    }

    [Fact]
    public void KeysAreShared_ByHandle_UnlessThePolicyForbids()
    {
        TestHost host = Boot();
        var first = new Guest(host, VmType.KVM_X86_SEV_VM, 0);
        first.Start();
        var second = new Guest(host, VmType.KVM_X86_SEV_VM, 0);
        AssertOk(second.TryStart([], [], first.Handle).Report);
        Assert.Equal(first.Status.Key, second.Status.Key);
        Assert.NotEqual(first.Status.Asid, second.Status.Asid);

        var closed = new Guest(host, VmType.KVM_X86_SEV_VM, SevPolicy.NOKS);
        closed.Start();
        var third = new Guest(host, VmType.KVM_X86_SEV_VM, SevPolicy.NOKS);
        AssertRefused(third.TryStart([], [], closed.Handle).Report, Errno.EIO, Psp.KeySharingForbidden);
        AssertRefused(third.TryStart([], [], 0x7fff).Report, Errno.EIO, Psp.NoSuchHandle);
    }

    [Fact]
    public void RegisteredRegions_AreGivenBackByAddressAndSize()
    {
        TestHost host = Boot();
        var guest = new Guest(host, VmType.KVM_X86_SEV_VM, 0);
        var region = new kvm_enc_region { addr = guest.Memory, size = 2 * Page };
        AssertOk(guest.Vmm.Ioctl(guest.Vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION, ref region));
        var other = new kvm_enc_region { addr = guest.Memory, size = Page };
        AssertRefused(guest.Vmm.Ioctl(guest.Vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION, ref other), Errno.EINVAL, SevBackend.NoSuchRegion);
        AssertOk(guest.Vmm.Ioctl(guest.Vm.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_UNREG_REGION, ref region));
        TestVm plain = host.Vmm.CreateVm(VmType.KVM_X86_DEFAULT_VM);
        AssertRefused(plain.Vmm.Ioctl(plain.Fd, KvmIoctl.KVM_MEMORY_ENCRYPT_REG_REGION, ref region), Errno.ENOTTY, SevBackend.NotASevGuest);
    }

    /// <summary>A guest owner: a Diffie-Hellman key, and transport keys wrapped for the platform.</summary>
    private sealed class Owner
    {
        private readonly byte[] _z;
        private static readonly byte[] s_nonce = [.. Enumerable.Range(0, 16).Select(i => (byte)i)];
        private static readonly byte[] s_iv = [.. Enumerable.Range(100, 16).Select(i => (byte)i)];

        public Owner(TestHost host)
        {
            byte[] d = new byte[48];
            d[47] = 9;
            using var key = ECDiffieHellman.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP384, D = d });
            (byte[] x, byte[] y) = host.Machine.Psp.PdhPublicKey;
            using var platform = ECDiffieHellman.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP384, Q = new ECPoint { X = x, Y = y } });
            _z = key.DeriveRawSecretAgreement(platform.PublicKey);
            ECParameters own = key.ExportParameters(includePrivateParameters: false);
            Certificate = SevCertificate.Create(SevKeyUsage.PDH, SevCertificate.EcdhSha384, (0, 0), own.Q).Bytes.ToArray();
        }

        public byte[] Certificate { get; }

        public byte[] Tek { get; } = [.. Enumerable.Repeat((byte)3, 16)];

        public byte[] Tik { get; } = [.. Enumerable.Repeat((byte)4, 16)];

        public byte[] Session(uint policy)
        {
            (_, byte[] kek, byte[] kik) = SevSession.WrappingKeys(_z, s_nonce);
            byte[] wrapped = [.. Tek, .. Tik];
            using var aes = Aes.Create();
            aes.Key = kek;
            byte[] counter = [.. s_iv];
            for (int at = 0; at < wrapped.Length; at += 16)
            {
                byte[] stream = aes.EncryptEcb(counter, PaddingMode.None);
                for (int i = 0; i < 16; i++)
                {
                    wrapped[at + i] ^= stream[i];
                }
                counter[15]++;
            }
            return [.. s_nonce, .. wrapped, .. s_iv, .. HMACSHA256.HashData(kik, wrapped), .. HMACSHA256.HashData(Tik, BitConverter.GetBytes(policy))];
        }
    }

    private sealed class Guest
    {
        private readonly uint _policy;

        public Guest(TestHost host, VmType type, uint policy)
        {
            _policy = policy;
            Vmm = host.Vmm;
            Vm = Vmm.CreateVm(type);
            AssertOk(Vm.TrySev(SevCmdId.KVM_SEV_INIT2, new kvm_sev_init()).Report);
            if (type == VmType.KVM_X86_SEV_ES_VM)
            {
                Vm.CreateVcpu(0);
            }
            Memory = Vmm.Map(4);
            Buffer = Vmm.Map(2);
        }

        public Vmm Vmm { get; }

        public TestVm Vm { get; }

        public ulong Memory { get; }

        public ulong Buffer { get; }

        public uint Handle { get; private set; }

        public SevGuestStatus Status => Vm.Describe().Sev.Legacy!;

        public void Start(byte[]? certificate = null, byte[]? session = null) => AssertOk(TryStart(certificate ?? [], session ?? []).Report);

        public SevReply<kvm_sev_launch_start> TryStart(byte[] certificate, byte[] session, uint handle = 0)
        {
            var start = new kvm_sev_launch_start { policy = _policy, handle = handle };
            if (session.Length > 0)
            {
                Vmm.Store(Buffer, certificate);
                Vmm.Store(Buffer + 4096, session);
                (start.dh_uaddr, start.dh_len) = (Buffer, (uint)certificate.Length);
                (start.session_uaddr, start.session_len) = (Buffer + 4096, (uint)session.Length);
            }
            SevReply<kvm_sev_launch_start> reply = Vm.TrySev(SevCmdId.KVM_SEV_LAUNCH_START, start);
            Handle = reply.Data.handle;
            return reply;
        }

        public SevReply<kvm_sev_launch_update_data> Update(ulong uaddr, uint length) =>
            Vm.TrySev(SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA, new kvm_sev_launch_update_data { uaddr = uaddr, len = length });

        public SevReply<kvm_sev_launch_measure> Measure(uint length) =>
            Vm.TrySev(SevCmdId.KVM_SEV_LAUNCH_MEASURE, new kvm_sev_launch_measure { uaddr = Buffer, len = length });

        public SevReply<kvm_sev_launch_secret> Secret(byte[] header, byte[] body, ulong guestAddress)
        {
            Vmm.Store(Buffer, header);
            Vmm.Store(Buffer + 4096, body);
            return Vm.TrySev(SevCmdId.KVM_SEV_LAUNCH_SECRET, new kvm_sev_launch_secret
            {
                hdr_uaddr = Buffer,
                hdr_len = (uint)header.Length,
                trans_uaddr = Buffer + 4096,
                trans_len = (uint)body.Length,
                guest_uaddr = guestAddress,
                guest_len = (uint)body.Length,
            });
        }

        public void BringTo(SevGuestState state)
        {
            if (state == SevGuestState.UNINIT)
            {
                return;
            }
            Start();
            if (state == SevGuestState.LAUNCH_UPDATE)
            {
                return;
            }
            AssertOk(Issue(SevCmdId.KVM_SEV_LAUNCH_UPDATE_VMSA).Report);
            AssertOk(Measure(48).Report);
            if (state == SevGuestState.RUNNING)
            {
                AssertOk(Issue(SevCmdId.KVM_SEV_LAUNCH_FINISH).Report);
            }
        }

        // A command with arguments that fit it; LAUNCH_UPDATE_DATA and MEASURE share their structure's layout.
        public SevReply<kvm_sev_launch_measure> Issue(SevCmdId command) => Vm.TrySev(
            command, new kvm_sev_launch_measure { uaddr = command == SevCmdId.KVM_SEV_LAUNCH_UPDATE_DATA ? Memory : Buffer, len = command == SevCmdId.KVM_SEV_LAUNCH_MEASURE ? 48u : Page });
    }
}
