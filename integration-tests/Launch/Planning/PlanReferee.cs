using System.Buffers.Binary;
using System.Security.Cryptography;
using VmmService.Client.Launch;

namespace VmmService.IntegrationTests.Launch.Planning;

/// <summary>
/// Computes what a plan would measure, straight from the specification (snp.md 7.1, 8.1), so that a wrong plan is told from a wrong machine, and a wrong
/// calculator (VmmService.Client.Digest) from both. The product never uses it.
/// </summary>
internal static class PlanReferee
{
    private const byte VmsaPageType = 2;
    private const ulong VmsaGpa = 0xfffffffff000;

    /// <summary>Digest after the firmware, after all regions, and after the vCPUs, in lower-case hexadecimal.</summary>
    public static (string AfterFirmware, string AfterRegions, string Digest) Measure(SnpLaunchPlan plan) =>
        Measure(plan.Regions, plan.Vcpus.Select(vcpu => Vmsa(vcpu, plan.GuestFeatures)), VmsaGpa);

    /// <summary>The same of regions and VMSAs that no plan would have.</summary>
    public static (string AfterFirmware, string AfterRegions, string Digest) Measure(IEnumerable<LaunchRegion> regions, IEnumerable<byte[]> vmsas, ulong vmsaGpa)
    {
        byte[] digest = new byte[48];
        string? afterFirmware = null;
        foreach (LaunchRegion region in regions)
        {
            for (ulong offset = 0; offset < region.Size; offset += 4096)
            {
                byte[] contents = region.PageType == SnpPageType.NORMAL ? SHA384.HashData(region.Content.Span.Slice((int)offset, 4096)) : new byte[48];
                digest = Extend(digest, contents, (byte)region.PageType, region.Gpa + offset);
            }

            afterFirmware ??= Convert.ToHexStringLower(digest);
        }

        string afterRegions = Convert.ToHexStringLower(digest);
        foreach (byte[] vmsa in vmsas)
            digest = Extend(digest, SHA384.HashData(vmsa), VmsaPageType, vmsaGpa);
        return (afterFirmware!, afterRegions, Convert.ToHexStringLower(digest));
    }

    /// <summary>The VMSA of a vCPU.</summary>
    public static byte[] Vmsa(VcpuResetState state, ulong sevFeatures)
    {
        byte[] page = new byte[4096];
        SegmentState[] segments = [state.Es, state.Cs, state.Ss, state.Ds, state.Fs, state.Gs, Table(state.Gdtr), state.Ldtr, Table(state.Idtr), state.Tr];
        for (int i = 0; i < segments.Length; i++)
        {
            Put(i * 16, segments[i].Selector, 2);
            Put((i * 16) + 2, segments[i].Attrib.Value, 2);
            Put((i * 16) + 4, segments[i].Limit, 4);
            Put((i * 16) + 8, segments[i].Base, 8);
        }

        (int Offset, ulong Value)[] qwords =
        [
            (0xd0, state.Efer), (0x148, state.Cr4), (0x150, state.Cr3), (0x158, state.Cr0), (0x160, state.Dr7), (0x168, state.Dr6), (0x170, state.Rflags), (0x178, state.Rip),
            (0x1d8, state.Rsp), (0x1f8, state.Rax), (0x268, state.GPat), (0x308, state.Rcx), (0x310, state.Rdx), (0x318, state.Rbx), (0x328, state.Rbp), (0x330, state.Rsi),
            (0x338, state.Rdi), (0x340, state.R8), (0x348, state.R9), (0x350, state.R10), (0x358, state.R11), (0x360, state.R12), (0x368, state.R13), (0x370, state.R14),
            (0x378, state.R15), (0x3b0, sevFeatures), (0x3e8, state.Xcr0),
        ];
        foreach ((int offset, ulong value) in qwords)
            Put(offset, value, 8);
        Put(0x408, state.Mxcsr, 4);
        Put(0x410, state.Fcw, 2);
        return page;

        void Put(int offset, ulong value, int size)
        {
            Span<byte> bytes = stackalloc byte[8];
            BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
            bytes[..size].CopyTo(page.AsSpan(offset));
        }

        static SegmentState Table(DescriptorTableState table) => new(0, default, table.Limit, table.Base);
    }

    private static byte[] Extend(byte[] digest, byte[] contents, byte pageType, ulong gpa)
    {
        byte[] pageInfo = new byte[0x70];
        digest.CopyTo(pageInfo.AsSpan());
        contents.CopyTo(pageInfo.AsSpan(0x30));
        pageInfo[0x60] = 0x70;
        pageInfo[0x62] = pageType;
        BinaryPrimitives.WriteUInt64LittleEndian(pageInfo.AsSpan(0x68), gpa);
        return SHA384.HashData(pageInfo);
    }
}
