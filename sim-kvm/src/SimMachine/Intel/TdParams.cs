using System.Buffers.Binary;
using System.Numerics;

namespace SimMachine.Intel;

/// <summary>
/// TD_PARAMS, the 1024 bytes that TDH.MNG.INIT reads (TDX module ABI): layout, and the checks in the module's order. Integers are little-endian.
/// </summary>
public readonly ref struct TdParams(ReadOnlySpan<byte> bytes)
{
    public const int Size = 1024;

    // Offsets.
    public const int AttributesAt = 0;
    public const int XfamAt = 8;
    public const int MaxVcpusAt = 16;
    public const int NumL2VmsAt = 18;
    public const int EptpControlsAt = 24;
    public const int ConfigFlagsAt = 32;
    public const int TscFrequencyAt = 40;
    public const int MrconfigidAt = 80;
    public const int MrownerAt = 128;
    public const int MrownerconfigAt = 176;
    public const int CpuidValuesAt = 256;

    /// <summary>Bytes of a CPUID value: EAX, EBX, ECX, EDX.</summary>
    public const int CpuidValueSize = 16;

    /// <summary>CPUID values that fit.</summary>
    public const int MaxCpuidValues = (Size - CpuidValuesAt) / CpuidValueSize;

    /// <summary>CONFIG_FLAGS bit 0: guest physical addresses have 52 bits, not 48.</summary>
    public const ulong Gpaw = 1;

    /// <summary>CONFIG_FLAGS bit 2: RBP passes unchanged through VP.VMCALL.</summary>
    public const ulong NoRbpMod = 4;

    private const ulong KnownConfigFlags = 7;
    private const byte MaxL2Vms = 3;
    private const ushort MinTsc = 4;
    private const ushort MaxTsc = 400;

    private readonly ReadOnlySpan<byte> _bytes = bytes;

    public ulong Attributes => U64(AttributesAt);

    public ulong Xfam => U64(XfamAt);

    public ushort MaxVcpus => U16(MaxVcpusAt);

    /// <summary>Memory type in bits 2:0, page-walk length minus 1 in bits 5:3.</summary>
    public ulong EptpControls => U64(EptpControlsAt);

    public ulong ConfigFlags => U64(ConfigFlagsAt);

    /// <summary>Units of 25 MHz.</summary>
    public ushort TscFrequency => U16(TscFrequencyAt);

    public ReadOnlySpan<byte> Mrconfigid => _bytes.Slice(MrconfigidAt, TdxModuleConfig.MeasurementSize);

    public ReadOnlySpan<byte> Mrowner => _bytes.Slice(MrownerAt, TdxModuleConfig.MeasurementSize);

    public ReadOnlySpan<byte> Mrownerconfig => _bytes.Slice(MrownerconfigAt, TdxModuleConfig.MeasurementSize);

    /// <summary>A register of the CPUID value of a slot, in the order of the module's table.</summary>
    public uint Cpuid(int slot, int register) => BinaryPrimitives.ReadUInt32LittleEndian(_bytes[(CpuidValuesAt + (slot * CpuidValueSize) + (register * 4))..]);

    /// <summary>What is wrong with the parameters, as OPERAND_INVALID about an operand; SUCCESS if nothing.</summary>
    /// <param name="value">The value that is refused.</param>
    /// <param name="rcx">RCX after the call: leaf and sub-leaf of a CPUID value that is refused.</param>
    public TdxStatus Check(TdxModuleConfig config, out ulong value, out ulong rcx)
    {
        rcx = 0;
        const ulong debug = 1, migratable = 1UL << 29, perfmon = 1UL << 63;
        const ulong avx = 1UL << 2, avx512 = 7UL << 5, cet = 3UL << 11, amx = 3UL << 17;
        ulong attributes = value = Attributes;
        bool migratableAsWell = (attributes & migratable) != 0 && (attributes & (debug | perfmon)) != 0;
        if (!IsWithin(attributes, config.AttributesFixed0, config.AttributesFixed1) || migratableAsWell)
        {
            return Invalid(TdxOperand.ATTRIBUTES);
        }
        ulong xfam = value = Xfam;
        bool unevenAvx512 = !AllOrNone(xfam, avx512) || ((xfam & avx512) != 0 && (xfam & avx) == 0);
        if (!IsWithin(xfam, config.XfamFixed0, config.XfamFixed1) || unevenAvx512 || !AllOrNone(xfam, cet) || !AllOrNone(xfam, amx))
        {
            return Invalid(TdxOperand.XFAM);
        }
        value = MaxVcpus;
        if (value == 0)
        {
            return Invalid(TdxOperand.MAX_VCPUS);
        }
        value = _bytes[NumL2VmsAt];
        if (value > MaxL2Vms)
        {
            return Invalid(TdxOperand.NUM_L2_VMS);
        }
        if (!IsZero(20, 24))
        {
            return Invalid(TdxOperand.RDX);
        }
        value = ConfigFlags;
        if ((value & ~KnownConfigFlags) != 0)
        {
            return Invalid(TdxOperand.EXEC_CONTROLS);
        }
        value = EptpControls;
        if (!EptpControlsAreValid(config))
        {
            return Invalid(TdxOperand.EPTP_CONTROLS);
        }
        value = TscFrequency;
        if (value is < MinTsc or > MaxTsc)
        {
            return Invalid(TdxOperand.TSC_FREQUENCY);
        }
        if (!IsZero(42, 80) || !IsZero(232, 256))
        {
            return Invalid(TdxOperand.RDX);
        }
        for (int slot = 0; slot < config.CpuidSlots.Count; slot++)
        {
            if (!CpuidIsValid(config, slot))
            {
                TdxCpuidSlot named = config.CpuidSlots[slot];
                value = named.Function;
                rcx = named.Function | ((ulong)(named.HasSubleaf ? named.Index : uint.MaxValue) << 32);
                return Invalid(TdxOperand.CPUID_CONFIG);
            }
        }
        return IsZero(CpuidValuesAt + (config.CpuidSlots.Count * CpuidValueSize), Size) ? TdxStatus.SUCCESS : Invalid(TdxOperand.RDX);
    }

    private bool EptpControlsAreValid(TdxModuleConfig config)
    {
        const ulong writeBack = 6;
        ulong type = EptpControls & 7, length = ((EptpControls >> 3) & 7) + 1, rest = EptpControls >> 6;
        return type == writeBack && rest == 0 && (length == 4 || (length == 5 && config.FiveLevelEpt)) && ((ConfigFlags & Gpaw) == 0 || length == 5);
    }

    private bool CpuidIsValid(TdxModuleConfig config, int slot)
    {
        const uint hle = 1u << 4, rtm = 1u << 11;
        TdxCpuidSlot mask = config.CpuidSlots[slot];
        uint eax = Cpuid(slot, 0), ebx = Cpuid(slot, 1), ecx = Cpuid(slot, 2), edx = Cpuid(slot, 3);
        if ((eax & ~mask.Eax) != 0 || (ebx & ~mask.Ebx) != 0 || (ecx & ~mask.Ecx) != 0 || (edx & ~mask.Edx) != 0)
        {
            return false;
        }
        return (mask.Function, mask.Index) switch
        {
            (0x1, _) => eax == 0 || eax == config.Fms,
            (0x7, 0) => (ebx & hle) != 0 == ((ebx & rtm) != 0),
            _ => true,
        };
    }

    private static bool IsWithin(ulong value, ulong fixed0, ulong fixed1) => (value & ~fixed0) == 0 && (value & fixed1) == fixed1;

    private static bool AllOrNone(ulong value, ulong mask) => BitOperations.PopCount(value & mask) is var count && (count == 0 || count == BitOperations.PopCount(mask));

    private static TdxStatus Invalid(TdxOperand operand) => TdxStatus.OPERAND_INVALID.With(operand);

    private bool IsZero(int from, int to) => !_bytes[from..to].ContainsAnyExcept((byte)0);

    private ulong U64(int at) => BinaryPrimitives.ReadUInt64LittleEndian(_bytes[at..]);

    private ushort U16(int at) => BinaryPrimitives.ReadUInt16LittleEndian(_bytes[at..]);
}
