using SimMachine.Addressing;
using SimMachine.Stepping;

namespace SimMachine.Amd;

/// <summary>What an SNP guest's access comes to when the processor looks at the RMP.</summary>
public enum GuestAccessOutcome
{
    Allowed,

    /// <summary>#NPF to the host, with error code bits beside.</summary>
    NestedPageFault,

    /// <summary>#VC in the guest, exit code 0x404: the page is not validated.</summary>
    PageNotValidated,

    /// <summary>#VE in the guest, of a TD: the page waits to be accepted.</summary>
    VirtualizationException,
}

/// <summary>Error code bits of a nested page fault (APM vol. 2, 15.36.10).</summary>
public static class NpfBits
{
    public const ulong Write = 1UL << 1;
    public const ulong Rmp = 1UL << 31;
    public const ulong Enc = 1UL << 34;
    public const ulong SizeMismatch = 1UL << 35;
    public const ulong Vmpl = 1UL << 36;
}

/// <summary>Result codes of PVALIDATE and RMPADJUST (APM vol. 3).</summary>
public enum GuestRmpResult
{
    OK = 0,
    FAIL_INPUT = 1,
    FAIL_PERMISSION = 2,
    FAIL_SIZEMISMATCH = 6,
}

// The guest's side of the RMP: accesses, PVALIDATE, RMPADJUST.
public sealed partial class Rmp
{
    private const int Vmpls = 4;
    private const uint ReadPermission = 1;
    private const uint WritePermission = 2;

    private static readonly StepLabel PvalidateStep = new("pvalidate");
    private static readonly StepLabel RmpadjustStep = new("rmpadjust");

    /// <summary>The check of one guest access, behind the nested page tables.</summary>
    /// <param name="asid">The guest's.</param>
    /// <param name="vmpl">Its privilege level, 0 to 3.</param>
    /// <param name="gpa">Any byte of the page.</param>
    /// <param name="pfn">The frame that nested paging gives.</param>
    /// <param name="mapping">The size of that mapping.</param>
    /// <param name="encrypted">The C-bit: a private access.</param>
    /// <param name="write">A store.</param>
    /// <param name="errorCode">Of the nested page fault, <see cref="NpfBits"/>.</param>
    public GuestAccessOutcome CheckGuestAccess(uint asid, int vmpl, ulong gpa, Pfn pfn, PageLevel mapping, bool encrypted, bool write, out ulong errorCode)
    {
        RmpEntry entry = Entry(pfn);
        errorCode = write ? NpfBits.Write : 0;
        if (!encrypted)
        {
            errorCode |= NpfBits.Rmp;
            return write && entry.Assigned ? GuestAccessOutcome.NestedPageFault : GuestAccessOutcome.Allowed;
        }
        errorCode |= NpfBits.Rmp | NpfBits.Enc;
        if (!IsGuestPage(entry, asid, gpa))
        {
            return GuestAccessOutcome.NestedPageFault;
        }
        if (entry.Is2M != mapping >= PageLevel.Page2M)
        {
            return GuestAccessOutcome.NestedPageFault;
        }
        if (!entry.Validated)
        {
            return GuestAccessOutcome.PageNotValidated;
        }
        if (!Allows(entry, vmpl, write ? WritePermission : ReadPermission))
        {
            errorCode |= NpfBits.Vmpl;
            return GuestAccessOutcome.NestedPageFault;
        }
        return GuestAccessOutcome.Allowed;
    }

    /// <summary>PVALIDATE: the guest takes a page as its own, or gives it up.</summary>
    /// <param name="level">4 KiB or 2 MiB.</param>
    /// <param name="validate">The value to set.</param>
    /// <param name="result">RAX.</param>
    /// <param name="unchanged">CF: the entry had that value.</param>
    /// <param name="errorCode">Of the nested page fault.</param>
    /// <returns>Allowed if the instruction completed, with its result; else what the host gets.</returns>
    public GuestAccessOutcome Pvalidate(
        SimThread thread, uint asid, int vmpl, ulong gpa, Pfn pfn, PageLevel mapping, PageLevel level, bool validate,
        out GuestRmpResult result, out bool unchanged, out ulong errorCode)
    {
        thread.Step(PvalidateStep, gpa, validate ? 1UL : 0);
        unchanged = false;
        GuestAccessOutcome outcome = CheckInstruction(asid, vmpl, gpa, pfn, mapping, level, out result, out errorCode);
        if (outcome != GuestAccessOutcome.Allowed || result != GuestRmpResult.OK)
        {
            return outcome;
        }
        if (vmpl != 0)
        {
            result = GuestRmpResult.FAIL_PERMISSION;
            return outcome;
        }
        unchanged = Entry(pfn).Validated == validate;
        for (ulong i = 0; i < level.PagesPerLevel(); i++)
        {
            Set(pfn + i, Entry(pfn + i) with { Validated = validate, WrittenByCall = (uint)thread.Call });
        }
        return outcome;
    }

    /// <summary>RMPADJUST: a guest level gives a higher-numbered one rights to a page, or makes the page a VMSA.</summary>
    /// <param name="targetVmpl">Whose rights; must be higher than <paramref name="vmpl"/>.</param>
    /// <param name="permissions">Bit 0 read, 1 write, 2 execute-user, 3 execute-supervisor.</param>
    /// <param name="vmsa">The page is a VMSA.</param>
    public GuestAccessOutcome Rmpadjust(
        SimThread thread, uint asid, int vmpl, ulong gpa, Pfn pfn, PageLevel mapping, PageLevel level, int targetVmpl, uint permissions, bool vmsa,
        out GuestRmpResult result, out ulong errorCode)
    {
        thread.Step(RmpadjustStep, gpa, (ulong)targetVmpl);
        GuestAccessOutcome outcome = CheckInstruction(asid, vmpl, gpa, pfn, mapping, level, out result, out errorCode);
        if (outcome != GuestAccessOutcome.Allowed || result != GuestRmpResult.OK)
        {
            return outcome;
        }
        if (!Entry(pfn).Validated)
        {
            return GuestAccessOutcome.PageNotValidated;
        }
        if (targetVmpl is < 0 or >= Vmpls || permissions > 0xf)
        {
            result = GuestRmpResult.FAIL_INPUT;
            return outcome;
        }
        if (targetVmpl <= vmpl || (permissions & ~(Entry(pfn).Permissions >> (4 * vmpl)) & 0xf) != 0)
        {
            result = GuestRmpResult.FAIL_PERMISSION;
            return outcome;
        }
        for (ulong i = 0; i < level.PagesPerLevel(); i++)
        {
            RmpEntry entry = Entry(pfn + i);
            uint others = entry.Permissions & ~(0xfu << (4 * targetVmpl));
            Set(pfn + i, entry with { Permissions = others | (permissions << (4 * targetVmpl)), Vmsa = vmsa, WrittenByCall = (uint)thread.Call });
        }
        return outcome;
    }

    /// <summary>VMRUN's check of a VMSA: the page is a valid one of the guest's, and RMPADJUST made it a VMSA (APM vol. 2, 15.36.12).</summary>
    public bool IsVmsa(uint asid, Pfn pfn) => Entry(pfn) is { Assigned: true, Validated: true, Vmsa: true } entry && entry.Asid == asid;

    // What both instructions check of the page: it is the guest's, and sizes agree.
    private GuestAccessOutcome CheckInstruction(
        uint asid, int vmpl, ulong gpa, Pfn pfn, PageLevel mapping, PageLevel level, out GuestRmpResult result, out ulong errorCode)
    {
        errorCode = NpfBits.Rmp | NpfBits.Enc;
        result = GuestRmpResult.OK;
        if (vmpl is < 0 or >= Vmpls || level > PageLevel.Page2M || (gpa & (level.Bytes() - 1)) != 0)
        {
            result = GuestRmpResult.FAIL_INPUT;
            return GuestAccessOutcome.Allowed;
        }
        RmpEntry entry = Entry(pfn);
        if (!IsGuestPage(entry, asid, gpa))
        {
            return GuestAccessOutcome.NestedPageFault;
        }
        if (level == PageLevel.Page2M && (!entry.Is2M || mapping < PageLevel.Page2M))
        {
            result = GuestRmpResult.FAIL_SIZEMISMATCH;
            return GuestAccessOutcome.Allowed;
        }
        if (level == PageLevel.Page4K && (entry.Is2M || mapping != PageLevel.Page4K))
        {
            errorCode |= NpfBits.SizeMismatch;
            return GuestAccessOutcome.NestedPageFault;
        }
        return GuestAccessOutcome.Allowed;
    }

    private static bool IsGuestPage(RmpEntry entry, uint asid, ulong gpa) =>
        entry.Assigned && !entry.Immutable && entry.Asid == asid && entry.Gpa == (gpa & ~PageSize.OffsetMask);

    private static bool Allows(RmpEntry entry, int vmpl, uint permission) => ((entry.Permissions >> (4 * vmpl)) & permission) != 0;
}
