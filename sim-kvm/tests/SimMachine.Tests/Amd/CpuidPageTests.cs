// A CPUID page against the table of the simulated processor: what passes untouched, what is refused and how it is rewritten.

using System.Buffers.Binary;
using System.Security.Cryptography;
using SimMachine.Amd;
using SimMachine.Stepping;
using Xunit;

namespace SimMachine.Tests.Amd;

public sealed class CpuidPageTests : IDisposable
{
    private const uint Osxsave = 1u << 27;
    private const uint TscDeadline = 1u << 24;

    private static readonly PlatformCpuid Milan = PlatformCpuid.For(EpycProduct.Milan);

    private readonly Machine _machine = new(new MachineConfig(), 1);
    private readonly MachineThread _thread;

    public CpuidPageTests() => _thread = new MachineThread(_machine);

    public static TheoryData<EpycProduct> Products => [EpycProduct.Milan, EpycProduct.Genoa, EpycProduct.Turin];

    public static TheoryData<int> Seeds => [1, 2, 3, 5, 8, 13, 21, 34];

    // Function, subleaf, xcr0_in, xss_in, the register that is refused and what is provided and accepted there (the others are the processor's
    // own).
    public static TheoryData<uint, uint, ulong, ulong, CpuidRegister, uint, uint> RefusedValues => new()
    {
        { 0x0, 0, 0, 0, CpuidRegister.EBX, 0x756E6547, 0x68747541 },
        { 0x0, 0, 0, 0, CpuidRegister.ECX, 0, 0x444D4163 },
        { 0x1, 0, 0, 0, CpuidRegister.ECX, 0xFFFFFFFF, 0xF6FA320B | Osxsave },
        { 0x1, 0, 0, 0, CpuidRegister.EDX, 0xFFFFFFFF, 0x178BFBFF },
        { 0x6, 0, 0, 0, CpuidRegister.EBX, 0x2, 0 },
        { 0x7, 0, 0, 0, CpuidRegister.EBX, 0x219C97AB, 0x219C97A9 },
        { 0x7, 0, 0, 0, CpuidRegister.EDX, 0xAC000010, 0x10 },
        { 0xD, 0, 1, 0, CpuidRegister.EBX, 0x340, 0x240 },
        { 0xD, 0, 7, 0, CpuidRegister.EBX, 0x240, 0x340 },
        { 0xD, 0, 0x207, 0, CpuidRegister.EBX, 0x340, 0x988 },
        { 0xD, 1, 1, 0, CpuidRegister.EBX, 0, 0x240 },
        { 0xD, 1, 0x207, 0x1800, CpuidRegister.EBX, 0x240, 0x370 },
        { 0xD, 1, 1, 0, CpuidRegister.ECX, 0x1900, 0x1800 },
        { 0xD, 2, 0, 0, CpuidRegister.EAX, 0x80, 0x100 },
        { 0x80000000, 0, 0, 0, CpuidRegister.EDX, 0, 0x69746E65 },
        { 0x80000001, 0, 0, 0, CpuidRegister.ECX, 0x75C23FFF, 0x75C237FF },
        { 0x80000008, 0, 0, 0, CpuidRegister.EBX, 0x93BEF75F, 0x91BEF75F },
        { 0x8000001F, 0, 0, 0, CpuidRegister.EAX, 0x8001FC3F, 0x0001FC3F },
        { 0x8000001F, 0, 0, 0, CpuidRegister.EBX, 0x416F, 0x4173 },
        { 0x80000021, 0, 0, 0, CpuidRegister.EAX, 0x224D, 0x204D },
    };

    // Values that a VMM may set as it likes.
    public static TheoryData<uint, uint, CpuidRegister, uint> FreeValues => new()
    {
        { 0x0, 0, CpuidRegister.EAX, 0xD },
        { 0x1, 0, CpuidRegister.EAX, 0x00800F12 },
        { 0x1, 0, CpuidRegister.EBX, 0x01020800 },
        { 0x1, 0, CpuidRegister.ECX, 0 },
        { 0x1, 0, CpuidRegister.ECX, Osxsave },
        { 0x1, 0, CpuidRegister.ECX, 0x80000000 },
        { 0x7, 0, CpuidRegister.ECX, 0x10 },
        { 0xB, 1, CpuidRegister.EBX, 0x2 },
        { 0xD, 0, CpuidRegister.ECX, 0x240 },
        { 0x80000002, 0, CpuidRegister.EDX, 0x41414141 },
        { 0x80000008, 0, CpuidRegister.EAX, 0x3028 },
        { 0x8000001D, 3, CpuidRegister.EAX, 0x4163 },
        { 0x8000001E, 0, CpuidRegister.EBX, 0x0 },
        { 0x8000001F, 0, CpuidRegister.EBX, 0x73 },
        { 0x8000001F, 0, CpuidRegister.ECX, 0 },
        { 0x80000007, 0, CpuidRegister.EDX, 0x100 },
    };

    public void Dispose() => _machine.Dispose();

    [Fact]
    public void Read_PageOfTheVector_GivesItsEntries()
    {
        byte[] page = VectorPage();
        Assert.Equal("5cc4a883c9aaa0e39f6ec48e6008b725e9c3192918985dd2e68408f2597687ca", Convert.ToHexStringLower(SHA256.HashData(page)));
        IReadOnlyList<CpuidFunction> functions = CpuidPage.Read(page);
        Assert.Equal(5, functions.Count);
        Assert.Equal(new CpuidFunction(0xD, 1, 1, 0, 0xF, 0x240, 0x1800, 0, 0), functions[3]);
        Assert.Equal(new CpuidFunction(0x8000001F, 0, 0, 0, 0x1A, 0xC573, 0, 0, 0), functions[4]);
    }

    // A VMM that copies what KVM offers, without masking, meets this refusal on silicon too.
    [Fact]
    public void Validate_PageOfTheVector_IsRefusedForTheTscDeadlineTimerOnly()
    {
        byte[] page = VectorPage();
        byte[] before = [.. page];
        Assert.Equal(SevStatus.INVALID_PARAM, CpuidPage.Validate(_thread, page, Milan));
        AssertCause(CpuidPage.ValueRefused, 0x1, 0, (ulong)CpuidRegister.ECX, 0xFFF83203, 0xFFF83203 & ~TscDeadline, 1);
        SetOutput(before, 1, CpuidRegister.ECX, 0xFFF83203 & ~TscDeadline);
        Assert.Equal(before, page);
        Assert.Equal(SevStatus.SUCCESS, CpuidPage.Validate(_thread, page, Milan));
    }

    [Theory]
    [MemberData(nameof(Products))]
    public void Validate_TheProcessorsOwnTable_PassesUnchanged(EpycProduct product)
    {
        PlatformCpuid host = PlatformCpuid.For(product);
        byte[] page = Page([.. host.Entries.Select(entry => Own(host, entry.Function, entry.Index))]);
        byte[] before = [.. page];
        Assert.Equal(SevStatus.SUCCESS, CpuidPage.Validate(_thread, page, host));
        Assert.Equal(before, page);
        Assert.Empty(_thread.Causes);
    }

    [Theory]
    [MemberData(nameof(RefusedValues))]
    public void Validate_RefusedValue_IsReplacedAndNamed(
        uint function, uint index, ulong xcr0, ulong xss, CpuidRegister register, uint provided, uint accepted)
    {
        CpuidFunction own = Own(Milan, function, index) with { Xcr0In = xcr0, XssIn = xss };
        if (function == 0xD && index < 2)
        {
            own = own with { Ebx = Milan.XsaveSize(xcr0 | (index == 1 ? xss : 0), compacted: index == 1) };
        }
        byte[] page = Page(own);
        SetOutput(page, 0, register, provided);
        Assert.Equal(SevStatus.INVALID_PARAM, CpuidPage.Validate(_thread, page, Milan));
        AssertCause(CpuidPage.ValueRefused, function, index, (ulong)register, provided, accepted, 1);
        byte[] expected = Page(own);
        SetOutput(expected, 0, register, accepted);
        Assert.Equal(expected, page);
    }

    [Theory]
    [MemberData(nameof(FreeValues))]
    public void Validate_FreeValue_Passes(uint function, uint index, CpuidRegister register, uint provided)
    {
        byte[] page = Page(Own(Milan, function, index));
        SetOutput(page, 0, register, provided);
        byte[] before = [.. page];
        Assert.Equal(SevStatus.SUCCESS, CpuidPage.Validate(_thread, page, Milan));
        Assert.Equal(before, page);
    }

    [Theory]
    [InlineData(0x2u, 0u)]
    [InlineData(0x1u, 1u)]
    [InlineData(0xDu, 5u)]
    [InlineData(0x14u, 0u)]
    [InlineData(0xFFFFu, 0u)]
    [InlineData(0x80000025u, 0u)]
    [InlineData(0x8000FFFFu, 0xFFFFFFFFu)]
    public void Validate_UnknownLeaf_MustBeZero(uint function, uint index)
    {
        byte[] page = Page(new CpuidFunction(function, index, 0, 0, 0, 0, 7, 9, 0));
        Assert.Equal(SevStatus.INVALID_PARAM, CpuidPage.Validate(_thread, page, Milan));
        AssertCause(CpuidPage.UnknownLeaf, function, index, (ulong)CpuidRegister.ECX, 7, 0, 1);
        Assert.Equal(Page(new CpuidFunction(function, index, 0, 0, 0, 0, 0, 0, 0)), page);
        Assert.Equal(SevStatus.SUCCESS, CpuidPage.Validate(_thread, page, Milan));
    }

    [Theory]
    [InlineData(0x40000000u)]
    [InlineData(0x40000001u)]
    [InlineData(0x4FFFFFFFu)]
    public void Validate_HypervisorsOwnLeaf_Passes(uint function)
    {
        byte[] page = Page(new CpuidFunction(function, 1, 2, 3, 0x4B4D564B, 0x564B4D56, 0x4D, 5, 6));
        byte[] before = [.. page];
        Assert.Equal(SevStatus.SUCCESS, CpuidPage.Validate(_thread, page, Milan));
        Assert.Equal(before, page);
    }

    [Fact]
    public void Validate_SeveralOffences_AreAllRewrittenAndTheFirstIsNamed()
    {
        byte[] page = Page(
            Own(Milan, 0x0, 0),
            Own(Milan, 0x7, 0) with { Ebx = 0xFFFFFFFF, Edx = 0xFFFFFFFF },
            new CpuidFunction(0x4, 0, 0, 0, 1, 2, 3, 4, 0),
            Own(Milan, 0x8000001F, 0) with { Ebx = 0x4000 | 47 });
        Assert.Equal(SevStatus.INVALID_PARAM, CpuidPage.Validate(_thread, page, Milan));
        AssertCause(CpuidPage.ValueRefused, 0x7, 0, (ulong)CpuidRegister.EBX, 0xFFFFFFFF, 0x219C97A9, 3);
        byte[] expected = Page(
            Own(Milan, 0x0, 0),
            Own(Milan, 0x7, 0),
            new CpuidFunction(0x4, 0, 0, 0, 0, 0, 0, 0, 0),
            Own(Milan, 0x8000001F, 0) with { Ebx = 0x4000 | 51 });
        Assert.Equal(expected, page);
        Assert.Equal(SevStatus.SUCCESS, CpuidPage.Validate(_thread, page, Milan));
    }

    [Theory]
    [InlineData(65u)]
    [InlineData(0x80000000u)]
    [InlineData(0xFFFFFFFFu)]
    public void Validate_TooManyEntries_IsRefusedAndRewritesNothing(uint count)
    {
        byte[] page = Page(Own(Milan, 0x7, 0) with { Ebx = 0xFFFFFFFF });
        BinaryPrimitives.WriteUInt32LittleEndian(page, count);
        byte[] before = [.. page];
        Assert.Equal(SevStatus.INVALID_PARAM, CpuidPage.Validate(_thread, page, Milan));
        AssertCause(CpuidPage.TooManyEntries, count, 64);
        Assert.Equal(before, page);
        Assert.Equal(64, CpuidPage.Read(page).Count);
    }

    [Theory]
    [InlineData(4, 1UL, 0UL)]
    [InlineData(7, 0x1000000UL, 0UL)]
    [InlineData(8, 0UL, 1UL)]
    [InlineData(15, 0UL, 1UL << 56)]
    public void Validate_HeaderReservedByte_IsRefused(int offset, ulong reserved1, ulong reserved2)
    {
        byte[] page = Page();
        page[offset] = 1;
        Assert.Equal(SevStatus.INVALID_PARAM, CpuidPage.Validate(_thread, page, Milan));
        AssertCause(CpuidPage.HeaderReserved, reserved1, reserved2);
    }

    [Fact]
    public void Validate_EntryReserved_IsRefusedAndItsValuesAreStillCorrected()
    {
        byte[] page = Page(Own(Milan, 0x7, 0) with { Ebx = 0xFFFFFFFF, Reserved = 5 });
        Assert.Equal(SevStatus.INVALID_PARAM, CpuidPage.Validate(_thread, page, Milan));
        AssertCause(CpuidPage.EntryReserved, 0x7, 0, 5);
        Assert.Equal(Page(Own(Milan, 0x7, 0) with { Reserved = 5 }), page);
    }

    [Fact]
    public void Validate_FullPage_ChecksTheLastEntry()
    {
        CpuidFunction[] functions = [.. Enumerable.Repeat(Own(Milan, 0x1, 0), 63), Own(Milan, 0x1, 0) with { Edx = 0xFFFFFFFF }];
        byte[] page = Page(functions);
        Assert.Equal(SevStatus.INVALID_PARAM, CpuidPage.Validate(_thread, page, Milan));
        Assert.Equal(Own(Milan, 0x1, 0), CpuidPage.Read(page)[63]);
    }

    [Fact]
    public void Validate_EmptyTable_Passes() => Assert.Equal(SevStatus.SUCCESS, CpuidPage.Validate(_thread, Page(), Milan));

    // Whatever the page holds: no exception; a refused page that has only values wrong is accepted the second time; inputs are never touched.
    [Theory]
    [MemberData(nameof(Seeds))]
    public void Validate_RandomPages_AreAcceptedOnceCorrected(int seed)
    {
        var random = new Random(seed);
        for (int round = 0; round < 300; round++)
        {
            PlatformCpuid host = PlatformCpuid.For((EpycProduct)random.Next(3));
            var functions = new CpuidFunction[random.Next(65)];
            for (int i = 0; i < functions.Length; i++)
            {
                CpuidEntry entry = host.Entries[random.Next(host.Entries.Count)];
                bool known = random.Next(4) != 0;
                functions[i] = new CpuidFunction(
                    known ? entry.Function : Word(), known ? entry.Index : (uint)random.Next(4), Wide(), Wide(), Word(), Word(), Word(), Word(), 0);
            }
            byte[] page = Page(functions);
            SevStatus status = CpuidPage.Validate(_thread, page, host);
            Assert.True(status is SevStatus.SUCCESS or SevStatus.INVALID_PARAM, $"seed {seed}");
            Assert.True(CpuidPage.Validate(_thread, page, host) == SevStatus.SUCCESS, $"seed {seed}, round {round}: corrected page refused");
            Assert.Equal(
                functions.Select(f => (f.EaxIn, f.EcxIn, f.Xcr0In, f.XssIn)),
                CpuidPage.Read(page).Select(f => (f.EaxIn, f.EcxIn, f.Xcr0In, f.XssIn)));

            random.NextBytes(page);
            BinaryPrimitives.WriteUInt32LittleEndian(page, (uint)random.Next(70));
            if (random.Next(2) == 0)
            {
                page.AsSpan(4, 12).Clear();
            }
            CpuidPage.Validate(_thread, page, host);
            CpuidPage.Read(page);
        }

        uint Word() => random.Next(3) == 0 ? 0 : (uint)random.NextInt64(1L << 32);
        ulong Wide() => random.Next(2) == 0 ? 1 : (ulong)random.NextInt64() << random.Next(2);
    }

    [Theory]
    [MemberData(nameof(Products))]
    public void Entries_AreSortedDistinctAndNotEmpty(EpycProduct product)
    {
        PlatformCpuid host = PlatformCpuid.For(product);
        (uint, uint)[] keys = [.. host.Entries.Select(entry => (entry.Function, entry.Index))];
        Assert.Equal(keys.Distinct().Order(), keys);
        Assert.True(host.Entries.Count <= CpuidPage.MaxCount, "a VMM could not copy the table into a page");
        Assert.All(host.Entries, entry => Assert.True((entry.Eax | entry.Ebx | entry.Ecx | entry.Edx) != 0));
        Assert.All(host.Entries, entry => Assert.True(entry.SignificantIndex || entry.Index == 0));
        Assert.All(host.Entries, entry => Assert.True(host.TryFind(entry.Function, entry.Index, out CpuidEntry found) && found == entry));
        Assert.False(host.TryFind(0x40000000, 0, out _));
    }

    [Theory]
    [InlineData(EpycProduct.Milan, 0x19, 0x01, 1)]
    [InlineData(EpycProduct.Genoa, 0x19, 0x11, 1)]
    [InlineData(EpycProduct.Turin, 0x1A, 0x02, 1)]
    public void Fms_IsTheSignatureOfTheProduct(EpycProduct product, int family, int model, int stepping)
    {
        PlatformCpuid host = PlatformCpuid.For(product);
        uint fms = host.Fms;
        Assert.Equal(family, (int)(((fms >> 8) & 0xF) + ((fms >> 20) & 0xFF)));
        Assert.Equal(model, (int)(((fms >> 4) & 0xF) | ((fms >> 12) & 0xF0)));
        Assert.Equal(stepping, (int)(fms & 0xF));
        Assert.True(host.TryFind(0x1, 0, out CpuidEntry leaf1) && leaf1.Eax == fms);
        Assert.True(host.TryFind(0x80000001, 0, out CpuidEntry extended) && extended.Eax == fms);
    }

    [Theory]
    [MemberData(nameof(Products))]
    public void XsaveLeaves_AgreeWithTheirComponents(EpycProduct product)
    {
        PlatformCpuid host = PlatformCpuid.For(product);
        Assert.True(host.TryFind(0xD, 0, out CpuidEntry user));
        Assert.True(host.TryFind(0xD, 1, out CpuidEntry supervisor));
        Assert.Equal(user.Ecx, host.XsaveSize(user.Eax, compacted: false));
        Assert.Equal(user.Ebx, host.XsaveSize(user.Eax, compacted: false));
        Assert.Equal(supervisor.Ebx, host.XsaveSize(user.Eax | supervisor.Ecx, compacted: true));
        Assert.Equal(0x240u, host.XsaveSize(1, compacted: false));
        Assert.Equal(0x240u, host.XsaveSize(1, compacted: true));
        Assert.All(
            host.Entries.Where(entry => entry.Function == 0xD && entry.Index > 1),
            entry => Assert.NotEqual(0u, ((entry.Ecx & 1) != 0 ? supervisor.Ecx : user.Eax) & (1u << (int)entry.Index)));
    }

    [Fact]
    public void For_AsidsOfTheFirmwareSettings_ShowInTheEncryptionLeaf()
    {
        Assert.True(PlatformCpuid.For(EpycProduct.Genoa, 1006, 1).TryFind(0x8000001F, 0, out CpuidEntry leaf));
        Assert.Equal((1006u, 1u, 51u), (leaf.Ecx, leaf.Edx, leaf.Ebx & 0x3F));
    }

    private static CpuidFunction Own(PlatformCpuid host, uint function, uint index)
    {
        Assert.True(host.TryFind(function, index, out CpuidEntry entry));
        bool xsave = function == 0xD && index < 2;
        return new CpuidFunction(function, index, xsave ? 1u : 0, 0, entry.Eax, xsave ? 0x240 : entry.Ebx, entry.Ecx, entry.Edx, 0);
    }

    private static byte[] VectorPage() => Page(
        new CpuidFunction(0x0, 0, 0, 0, 0xD, 0x68747541, 0x444D4163, 0x69746E65, 0),
        new CpuidFunction(0x1, 0, 0, 0, 0xA00F11, 0x10800, 0xFFF83203, 0x178BFBFF, 0),
        new CpuidFunction(0xD, 0, 1, 0, 0x7, 0x240, 0x240, 0, 0),
        new CpuidFunction(0xD, 1, 1, 0, 0xF, 0x240, 0x1800, 0, 0),
        new CpuidFunction(0x8000001F, 0, 0, 0, 0x1A, 0xC573, 0, 0, 0));

    private static byte[] Page(params CpuidFunction[] functions)
    {
        byte[] page = new byte[CpuidPage.Size];
        BinaryPrimitives.WriteInt32LittleEndian(page, functions.Length);
        for (int i = 0; i < functions.Length; i++)
        {
            CpuidFunction function = functions[i];
            Span<byte> entry = page.AsSpan(16 + (48 * i), 48);
            BinaryPrimitives.WriteUInt32LittleEndian(entry, function.EaxIn);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[4..], function.EcxIn);
            BinaryPrimitives.WriteUInt64LittleEndian(entry[8..], function.Xcr0In);
            BinaryPrimitives.WriteUInt64LittleEndian(entry[16..], function.XssIn);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[24..], function.Eax);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[28..], function.Ebx);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[32..], function.Ecx);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[36..], function.Edx);
            BinaryPrimitives.WriteUInt64LittleEndian(entry[40..], function.Reserved);
        }
        return page;
    }

    private static void SetOutput(byte[] page, int index, CpuidRegister register, uint value) =>
        BinaryPrimitives.WriteUInt32LittleEndian(page.AsSpan(16 + (48 * index) + 24 + (4 * (int)register)), value);

    private void AssertCause(Rule rule, params ulong[] operands)
    {
        Cause cause = Assert.Single(_thread.Causes);
        Assert.Same(rule, cause.Rule);
        Assert.Equal("INVALID_PARAM 0x16", cause.Code);
        Assert.Equal(operands, cause.Operands.Select(operand => operand.Value));
    }
}
