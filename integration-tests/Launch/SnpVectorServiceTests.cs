using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text.Json;
using VmmService.Client;
using VmmService.Client.Attestation;
using VmmService.Client.Digest;
using VmmService.Client.Launch;
using VmmService.Client.Launching;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;
using CpuidPage = VmmService.Client.Launch.CpuidPage;

namespace VmmService.IntegrationTests.Launch;

/// <summary>
/// The vectors of snp-vectors.json that are parts of a launch, by launches over gRPC: chains of pages, VMSAs, tables, sections. What is compared is what the simulated firmware measured.
/// Whole launches are next door (<see cref="SnpDigestVectorTests"/>), all kinds together in <see cref="SnpVectorCoverageTests"/>.
/// </summary>
public sealed class SnpVectorServiceTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = KernelNumbers.PAGE_SIZE;

    // Those that a launch brings about: it begins with zeros. All of them: Attestation/PspServiceTests.
    public static TheoryData<string> Chains =>
        [.. SnpVectors.All.Where(vector => vector.Kind == "page-info-chain" && vector.Params.GetProperty("initial").GetString()!.All(digit => digit == '0')).Select(vector => vector.Id)];

    public static TheoryData<string> Vmsas => SnpVectors.Ids("vmsa-page");

    public static TheoryData<string> Svsms => SnpVectors.Ids("snp-svsm-launch-digest");

    public static TheoryData<string> HashTables => SnpVectors.Ids("kernel-hashes-table");

    public static TheoryData<string> Footers => SnpVectors.Ids("ovmf-footer-parse");

    public static TheoryData<string> CpuSignatures => SnpVectors.Ids("cpu-signature");

    public static TheoryData<string> CpuidPages => SnpVectors.Ids("cpuid-page");

    public static TheoryData<string> IdBlocks => SnpVectors.Ids("id-block");

    [Theory]
    [MemberData(nameof(Chains))]
    public async Task AChainOfPages_IsMeasuredStepByStep(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        JsonElement[] ops = [.. vector.Params.GetProperty("ops").EnumerateArray()];
        JsonElement[] pages = [.. ops.Where(op => op.GetProperty("type").GetInt32() != (int)MeasuredPageType.VMSA)];
        JsonElement[] vcpus = [.. ops.Skip(pages.Length)];

        await using PartLaunch launch = await PartLaunch.CreateAsync(daemon);
        foreach (ulong gpa in pages.Select(Gpa))
            await launch.AddPageAsync(gpa);
        foreach (JsonElement op in vcpus)
        {
            JsonElement vmsa = op.GetProperty("vmsa");
            Assert.Equal(("QEMU", "0xfffffff0", "0x1"), (vmsa.GetProperty("vmm").GetString(), vmsa.GetProperty("eip").GetString(), vmsa.GetProperty("sev_features").GetString()));
            await launch.AddVcpuAsync(VmmFlavor.Qemu.Bsp(new((uint)SnpVector.Hex(vmsa.GetProperty("rdx").GetString()!))));
        }
        await launch.Snp.StartAsync();
        for (int i = 0; i < pages.Length; i++)
        {
            var type = (V1.SnpPageType)pages[i].GetProperty("type").GetInt32();
            await launch.UpdateAsync(Gpa(pages[i]), type, ContentOf(pages[i], i));
        }
        string digest = await launch.Snp.FinishAsync();

        Assert.Equal(vector.ExpectedText("digest"), digest);
        Assert.Equal(
            vector.Expected.GetProperty("steps").EnumerateArray().Select(step => step.GetString()), (await launch.TranscriptAsync()).Select(record => record.DigestAfter));

        static ulong Gpa(JsonElement op) => SnpVector.Hex(op.GetProperty("gpa").GetString()!);
    }

    // Contents are pages of an input, or of the buffer that the vector describes in words: "LGTM" four times at both ends of three pages.
    internal static byte[] ContentOf(JsonElement op, int index)
    {
        if (op.TryGetProperty("input", out JsonElement input))
        {
            byte[] page = TestInputs.Require(input.GetString()!)[(int)(op.GetProperty("page_index").GetUInt32() * Page)..][..(int)Page];
            Assert.Equal(op.GetProperty("contents_sha384").GetString(), Convert.ToHexStringLower(SHA384.HashData(page)));
            return page;
        }
        if (!op.TryGetProperty("data", out _))
            return op.GetProperty("type").GetInt32() == (int)V1.SnpPageType.Cpuid ? CpuidPage.Build([]) : new byte[Page];

        byte[] buffer = new byte[3 * Page];
        for (int i = 0; i < 16; i += 4)
        {
            "LGTM"u8.CopyTo(buffer.AsSpan(i));
            "LGTM"u8.CopyTo(buffer.AsSpan(buffer.Length - 16 + i));
        }
        return buffer[(index * (int)Page)..][..(int)Page];
    }

    [Theory]
    [MemberData(nameof(Vmsas))]
    public async Task AVcpu_IsMeasuredAsItsVmsa(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        ulong Number(string name) => SnpVector.Hex(vector.Params.GetProperty(name).GetString()!);
        ulong features = Number("sev_features");
        VcpuResetState state = StateOf(vector.Params.GetProperty("vmm_type").GetString()!, new((uint)Number("vcpu_sig")), Number("eip"));

        if ((features & SnpLaunchPlan.SnpActive) == 0)
        {
            // SEV-ES measures nothing but the bytes, so the digest of a launch of one vCPU is the page's hash.
            await using SevBench es = await SevBench.CreateAsync(daemon, VmType.SevEs);
            await VcpuRegisters.ApplyAsync(es.Vcpu, state, await (await es.Process.OpenKvmAsync()).GetSupportedCpuidAsync(), TestContext.Current.CancellationToken);
            await es.Launch.StartAsync(es.DefaultPolicy);
            await es.Launch.UpdateVmsaAsync();
            Assert.Equal(vector.ExpectedText("sha256"), (await es.Launch.GuestStatusAsync()).LaunchDigest);
            return;
        }
        await using PartLaunch launch = await PartLaunch.CreateAsync(daemon, features & ~SnpLaunchPlan.SnpActive);
        await launch.AddVcpuAsync(state);
        await launch.Snp.StartAsync();
        await launch.Snp.FinishAsync();
        TranscriptRecord record = Assert.Single(await launch.TranscriptAsync());
        Assert.Equal((V1.SnpPageType.Vmsa, VmsaPage.KvmGpa, vector.ExpectedText("sha384")), (record.PageType, record.Gpa, record.ContentHash));
    }

    private static VcpuResetState StateOf(string vmm, CpuSignature signature, ulong eip)
    {
        if (vmm != "svsm")
        {
            VcpuResetState bsp = VmmFlavor.Find(vmm).Bsp(signature);
            Assert.Equal(bsp.Cs.Base + bsp.Rip, eip);
            return bsp;
        }
        var firmware = FirmwareImage.Parse(TestInputs.Require("synfw-svsm-guest"));
        var svsm = FirmwareImage.Parse(TestInputs.Require("synsvsm"));
        return SvsmLaunch.Create(firmware, svsm, 0x10000, 1, signature).Vcpus[0] with { Rip = eip };
    }

    [Theory]
    [MemberData(nameof(Svsms))]
    public async Task ALaunchWithAnSvsm_GivesTheDigestBitForBit(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        string Text(string name) => vector.Params.GetProperty(name).GetString()!;
        TestInputs.RequireAll([Text("firmware"), Text("svsm")]);
        var plan = SnpLaunchPlan.CreateWithSvsm(
            FirmwareImage.Parse(TestInputs.Require(Text("firmware"))), FirmwareImage.Parse(TestInputs.Require(Text("svsm"))), vector.Params.GetProperty("vars_size").GetUInt64(),
            vector.Params.GetProperty("vcpus").GetInt32(), new CpuSignature((uint)SnpVector.Hex(Text("vcpu_sig"))));
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();

        await using LaunchedSnpGuest guest = await SnpLauncher.LaunchAsync(process, plan);

        Assert.Equal(vector.ExpectedText("digest"), guest.LaunchDigest);
        int firmware = (int)plan.Firmware.Size / (int)Page, svsm = (int)plan.Svsm!.Size / (int)Page;
        Assert.Equal(vector.ExpectedText("after_firmware"), guest.Transcript[firmware - 1].DigestAfter);
        Assert.Equal(vector.ExpectedText("after_svsm"), guest.Transcript[firmware + svsm - 1].DigestAfter);
        Assert.Equal(vector.ExpectedText("after_metadata"), guest.Transcript[^(plan.Vcpus.Count + 1)].DigestAfter);
    }

    [Theory]
    [MemberData(nameof(HashTables))]
    public async Task ATableOfKernelHashes_IsMeasuredInPlace_AndAsAPage(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        string? Text(string name) => vector.Params.GetProperty(name).GetString();
        KernelHashes hashes = await KernelHashes.ComputeAsync(
            new MemoryStream(TestInputs.Require(Text("kernel")!)), Text("initrd") is { } initrd ? new MemoryStream(TestInputs.Require(initrd)) : null, Text("append"));
        byte[] table = Convert.FromHexString(vector.ExpectedText("table_hex")!);

        await using SevBench sev = await SevBench.CreateAsync(daemon, VmType.Sev);
        await sev.Process.WriteAsync(sev.Memory, hashes.BuildTable());
        await sev.Launch.StartAsync(1);
        await sev.Launch.UpdateDataAsync(sev.Memory, (uint)table.Length);
        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(table)), (await sev.Launch.GuestStatusAsync()).LaunchDigest);

        ulong gpa = SnpVector.Hex(Text("table_gpa")!);
        await using PartLaunch snp = await PartLaunch.CreateAsync(daemon);
        await snp.AddPageAsync(gpa & ~(Page - 1));
        await snp.Snp.StartAsync();
        await snp.UpdateAsync(gpa & ~(Page - 1), V1.SnpPageType.Normal, hashes.BuildPage((uint)gpa));
        Assert.Equal(vector.ExpectedText("page_sha384"), Assert.Single(await snp.TranscriptAsync()).ContentHash);
    }

    [Theory]
    [MemberData(nameof(Footers))]
    public async Task AFirmware_IsLaunchedWhereItsFooterSays_WithTheSectionsOfItsMetadata(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        var firmware = FirmwareImage.Parse(TestInputs.Require(vector.Params.GetProperty("firmware").GetString()!));
        var signature = new CpuSignature(0x800f12);
        await using RemoteHost host = await daemon.Connection.CreateHostAsync();
        await using RemoteProcess process = await host.CreateProcessAsync();

        await using LaunchedSnpGuest guest = await SnpLauncher.LaunchAsync(process, SnpLaunchPlan.Create(firmware, VmmFlavor.Qemu, kernel: null, vcpus: 2, signature));

        int pages = (int)(firmware.Size / Page);
        Assert.Equal(SnpVector.Hex(vector.ExpectedText("load_gpa")!), guest.Transcript[0].Gpa);
        Assert.Equal(
            vector.Expected.GetProperty("sev_sections").EnumerateArray().SelectMany(Measured), guest.Transcript.Skip(pages).SkipLast(2).Select(record => (record.Gpa, record.PageType)));
        // The reset block is where the second vCPU starts.
        uint reset = BinaryPrimitives.ReadUInt32LittleEndian(Convert.FromHexString(vector.Expected.GetProperty("entries").GetProperty("00f771de-1a7e-4fcb-890e-68c77e2fb44e").GetString()!));
        byte[] vmsa = VmsaPage.Build(VmmFlavor.Qemu.Ap(signature, reset), SnpLaunchPlan.SnpActive);
        Assert.Equal(Convert.ToHexStringLower(SHA384.HashData(vmsa)), guest.Transcript[^1].ContentHash);

        // snp.md 8.3, without a kernel.
        static IEnumerable<(ulong, V1.SnpPageType)> Measured(JsonElement section)
        {
            ulong gpa = SnpVector.Hex(section[0].GetString()!), size = SnpVector.Hex(section[1].GetString()!);
            V1.SnpPageType type = section[2].GetInt32() switch { 2 => V1.SnpPageType.Secrets, 3 => V1.SnpPageType.Cpuid, _ => V1.SnpPageType.Zero };
            for (ulong at = 0; at < size; at += Page)
                yield return (gpa + at, type);
        }
    }

    [Theory]
    [MemberData(nameof(CpuSignatures))]
    public async Task ACpuModel_IsMeasuredByItsSignature(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        CpuModel model = CpuModel.Find(id["cpusig-".Length..]);
        await using PartLaunch launch = await PartLaunch.CreateAsync(daemon);
        await launch.AddVcpuAsync(VmmFlavor.Qemu.Bsp(model.Signature));
        await launch.Snp.StartAsync();
        await launch.Snp.FinishAsync();
        byte[] vmsa = VmsaPage.Build(VmmFlavor.Qemu.Bsp(default) with { Rdx = SnpVector.Hex(vector.ExpectedText("eax")!) }, SnpLaunchPlan.SnpActive);
        Assert.Equal(Convert.ToHexStringLower(SHA384.HashData(vmsa)), Assert.Single(await launch.TranscriptAsync()).ContentHash);
    }

    // The page is of a processor that the simulated one is like; what firmware would not take of it comes back corrected, and is taken then.
    [Theory]
    [MemberData(nameof(CpuidPages))]
    public async Task ACpuidPage_IsReadByFirmware_AndTakenAsItIsOrAsItWasCorrected(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        byte[] page = CpuidPage.Build([.. vector.Params.GetProperty("entries").EnumerateArray().Select(ReadEntry)]);
        Assert.Equal(vector.ExpectedText("page_sha256"), Convert.ToHexStringLower(SHA256.HashData(page)));
        await using PartLaunch launch = await PartLaunch.CreateAsync(daemon);
        await launch.AddPageAsync(0);
        await launch.Snp.StartAsync();

        SnpLaunchUpdateResponse first = await launch.TryUpdateAsync(0, V1.SnpPageType.Cpuid, page);
        if (first.Outcome.Errno != 0)
        {
            Assert.Equal(("EIO", "INVALID_PARAM"), (first.Outcome.ErrnoName, first.Sev.ErrorName));
            byte[] corrected = first.Content.ToByteArray();
            Assert.NotEqual(page, corrected);
            Assert.Equal(page[..16], corrected[..16]);
            page = corrected;
        }
        await launch.UpdateAsync(0, V1.SnpPageType.Cpuid, page);
        Assert.Equal(V1.SnpPageType.Cpuid, Assert.Single(await launch.TranscriptAsync()).PageType);
    }

    // The block is for the digest of a firmware that is not here, so a launch can only be refused for its digest: which firmware finds in the block where the vector says it is.
    // For the launch that it was made for it is accepted: Attestation/PspServiceTests.
    [Theory]
    [MemberData(nameof(IdBlocks))]
    public async Task AnIdBlock_OfAnotherLaunch_IsRefusedForItsDigest(string id)
    {
        SnpVector vector = SnpVectors.Get(id);
        byte[] block = Convert.FromHexString(vector.ExpectedText("id_block_hex")!), authentication = Authentication(vector);
        Assert.Equal(vector.ExpectedText("id_auth_sha256"), Convert.ToHexStringLower(SHA256.HashData(authentication)));
        await using PartLaunch launch = await PartLaunch.CreateAsync(daemon);
        await launch.Snp.StartAsync();

        SnpLaunchFinishResponse refused = await launch.Snp.FinishAsync(new SnpIdBlock(block, authentication, HasAuthor: true).ToFinish()).Reply;

        Assert.Equal(("EIO", "BAD_MEASUREMENT"), (refused.Outcome.ErrnoName, refused.Sev.ErrorName));
        Operand expected = refused.Outcome.Causes[0].Operands.Single(operand => operand.Name == "expected");
        Assert.Equal("0x" + vector.Params.GetProperty("launch_digest").GetString()![..16], expected.Text);
        var read = new SnpIdBlock(block, authentication, HasAuthor: true);
        Assert.Equal(vector.ExpectedText("id_key_digest"), Convert.ToHexStringLower(read.IdKeyDigest));
        Assert.Equal(vector.ExpectedText("author_key_digest"), Convert.ToHexStringLower(read.AuthorKeyDigest));
        Assert.True(IsSigned(block, authentication, 0x40, 0x240));
        Assert.True(IsSigned(authentication.AsSpan(0x240, SnpIdBlock.KeySize), authentication, 0x680, 0x880));
    }

    // The authentication page that the vector's keys and signatures make.
    internal static byte[] Authentication(SnpVector vector)
    {
        byte[] page = new byte[4096];
        page[0] = page[4] = 1;
        foreach ((string name, int at) in new[] { ("id_block_signature", 0x40), ("id_key_signature", 0x680) })
        {
            Convert.FromHexString(vector.Params.GetProperty(name + "_r_le72").GetString()!).CopyTo(page, at);
            Convert.FromHexString(vector.Params.GetProperty(name + "_s_le72").GetString()!).CopyTo(page, at + 72);
        }
        foreach ((string name, int at) in new[] { ("id_public_key", 0x240), ("author_public_key", 0x880) })
        {
            page[at] = 2;
            foreach ((string coordinate, int offset) in new[] { ("x", 4), ("y", 76) })
                Convert.FromHexString(vector.Params.GetProperty(name).GetProperty(coordinate).GetString()!).AsEnumerable().Reverse().ToArray().CopyTo(page, at + offset);
        }
        return page;
    }

    private static bool IsSigned(ReadOnlySpan<byte> content, byte[] page, int signatureAt, int keyAt)
    {
        using var key = ECDsa.Create(new ECParameters { Curve = ECCurve.NamedCurves.nistP384, Q = new ECPoint { X = Number(keyAt + 4), Y = Number(keyAt + 76) } });
        byte[] signature = [.. Number(signatureAt), .. Number(signatureAt + 72)];
        return key.VerifyData(content, signature, HashAlgorithmName.SHA384, DSASignatureFormat.IeeeP1363FixedFieldConcatenation);

        byte[] Number(int at) => [.. page[at..(at + 48)].AsEnumerable().Reverse()];
    }

    private static SnpCpuidEntry ReadEntry(JsonElement entry)
    {
        ulong Number(string name) => SnpVector.Hex(entry.GetProperty(name).GetString()!);
        return new SnpCpuidEntry(
            (uint)Number("eax_in"), (uint)Number("ecx_in"), Number("xcr0_in"), Number("xss_in"), (uint)Number("eax"), (uint)Number("ebx"), (uint)Number("ecx"), (uint)Number("edx"));
    }
}
