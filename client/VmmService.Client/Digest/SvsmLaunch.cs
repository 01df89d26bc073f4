using VmmService.Client.Launch;

namespace VmmService.Client.Digest;

/// <summary>
/// A launch with an SVSM (snp.md 7.3, 8.2): the guest's firmware, below it its variable store, which is not measured, below that the SVSM image, then the sections of the SVSM's
/// metadata. Every vCPU starts in the SVSM, flat in 32 bits. What is launched so is <see cref="SnpLaunchPlan.CreateWithSvsm"/>'s.
/// </summary>
public static class SvsmLaunch
{
    private const ushort CodeSelector = 8;
    private const ushort DataSelector = 16;
    private const ulong ProtectedMode = 0x11;

    /// <summary>What such a launch measures.</summary>
    /// <param name="firmware">The guest's firmware.</param>
    /// <param name="svsm">The SVSM image; its footer says where it is entered.</param>
    /// <param name="varsSize">Bytes of the variable store between the two, whole pages.</param>
    /// <param name="vcpus">How many, 1 to <see cref="SnpLaunchPlan.MaxVcpus"/>.</param>
    /// <param name="signature">CPU signature of the vCPUs.</param>
    /// <param name="sevFeatures">SEV_FEATURES; VMMs that launch an SVSM are known to use SNPActive alone.</param>
    /// <exception cref="LaunchInputException">These do not go together.</exception>
    public static MeasuredLaunch Create(
        FirmwareImage firmware, FirmwareImage svsm, ulong varsSize, int vcpus, CpuSignature signature, ulong sevFeatures = SnpLaunchPlan.SnpActive)
    {
        ArgumentNullException.ThrowIfNull(firmware);
        ArgumentNullException.ThrowIfNull(svsm);
        if (vcpus is < 1 or > SnpLaunchPlan.MaxVcpus)
            throw new LaunchInputException($"The number of vCPUs (--vcpus) is {vcpus} and a VM has 1 to {SnpLaunchPlan.MaxVcpus}.");
        if (svsm.SvsmEntryOffset is not { } entry)
        {
            throw new LaunchInputException(
                $"The SVSM image {svsm.Name} does not say where it is entered: its footer has no entry {FirmwareGuids.SvsmInfo} (SVSM info). Is it the guest's firmware? That is --firmware.");
        }

        if (varsSize % FirmwareImage.PageSize != 0 || varsSize > firmware.Gpa || svsm.Size > firmware.Gpa - varsSize)
        {
            throw new LaunchInputException(
                $"The size of the variable store (--vars-size) is 0x{varsSize:x}; it has to be a multiple of 0x{FirmwareImage.PageSize:x} and leave room for the SVSM image (0x{svsm.Size:x} bytes) "
                + $"below the firmware at 0x{firmware.Gpa:x}. It is the size of the firmware's VARS file, 0x84000 for OVMF's 4 MiB build.");
        }

        ulong gpa = firmware.Gpa - varsSize - svsm.Size;
        foreach (SevSection section in svsm.SevSections)
        {
            if (section.End > gpa)
                throw new LaunchInputException($"The {section.Type} section of the SVSM image {svsm.Name}, 0x{section.Gpa:x} to 0x{section.End:x}, reaches into the image itself at 0x{gpa:x}. Use another build of it.");
        }

        var vcpu = Vcpu((uint)gpa + entry, signature);
        return new MeasuredLaunch
        {
            Regions =
            [
                new(SnpPageType.NORMAL, firmware.Gpa, firmware.Size, LaunchSource.Firmware, "firmware") { Content = firmware.Bytes },
                new(SnpPageType.NORMAL, gpa, svsm.Size, LaunchSource.Firmware, "SVSM") { Content = svsm.Bytes },
                .. svsm.SevSections.Select(section => SnpLaunchPlan.PlanSection(svsm, VmmFlavor.Qemu, kernel: null, section)),
            ],
            Vcpus = [.. Enumerable.Repeat(vcpu, vcpus)],
            SevFeatures = sevFeatures,
        };
    }

    // FCW 0 is not what a VMM could want; it is what the field's tool measures, and digests that were published depend on it.
    private static VcpuResetState Vcpu(uint eip, CpuSignature signature)
    {
        var data = new SegmentState(DataSelector, new(0xc93), uint.MaxValue, 0);
        return VmmFlavor.Qemu.Bsp(signature) with
        {
            Es = data,
            Cs = new(CodeSelector, new(0xc9b), uint.MaxValue, 0),
            Ss = data,
            Ds = data,
            Fs = data,
            Gs = new(0, new(0x93), 0xffff, 0),
            Cr0 = ProtectedMode,
            Rip = eip,
            Fcw = 0,
        };
    }
}
