namespace VmmService.IntegrationTests.Conformance.RealKvm;

/// <summary>ioctl numbers and capabilities as include/uapi/linux/kvm.h has them, typed in again: the simulated kernel's own table is on trial.</summary>
internal static class Numbers
{
    public const uint GetApiVersion = 0xAE00;
    public const uint CreateVm = 0xAE01;
    public const uint CheckExtension = 0xAE03;
    public const uint GetVcpuMmapSize = 0xAE04;
    public const uint CreateVcpu = 0xAE41;
    public const uint SetUserMemoryRegion = 0x4020AE46;
    public const uint SetUserMemoryRegion2 = 0x40A0AE49;
    public const uint EnableCap = 0x4068AEA3;
    public const uint MemoryEncryptOp = 0xC008AEBA;
    public const uint SetMemoryAttributes = 0x4020AED2;
    public const uint CreateGuestMemfd = 0xC040AED4;

    public const uint PreFaultMemory = 0xC040AED5;

    public const uint CapMemoryAttributes = 233;
    public const uint CapGuestMemfd = 234;
    public const uint CapVmTypes = 235;
    public const uint CapPreFaultMemory = 236;
    public const uint CapGuestMemfdFlags = 244;
    public const uint CapMultiAddressSpace = 118;

    /// <summary>Capabilities of guest memory: all that section 2.3 lists, and numbers that nobody has.</summary>
    public static readonly uint[] Capabilities =
        [3, 10, 16, 21, 30, 66, 81, 98, 105, CapMultiAddressSpace, 128, 201, 231, 232, CapMemoryAttributes, CapGuestMemfd, CapVmTypes, CapPreFaultMemory, CapGuestMemfdFlags, 9999, uint.MaxValue];
}
