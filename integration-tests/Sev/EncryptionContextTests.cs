using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Sev;

/// <summary>KVM_CAP_VM_COPY_ENC_CONTEXT_FROM and KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: one guest of firmware and two VMs (snp.md 2.1, 4.3).</summary>
public sealed class EncryptionContextTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const ulong Page = GuestBench.Page;

    private static readonly byte[] s_content = GuestBench.Filled(1, 0x61);

    [Fact]
    public async Task AMirror_ReadsTheOthersMemory_AndTakesFewCommands()
    {
        await using SevBench bench = await LaunchedAsync(VmType.Sev);
        Client.Vm mirror = await CreateVmAsync(bench, VmType.Sev);
        await mirror.CopyEncContextFromAsync(bench.Vm);
        await mirror.SetUserMemoryRegion2Async(GuestBench.Region(0, 0, 0, 8, bench.Memory));
        Client.Vcpu vcpu = await mirror.CreateVcpuAsync(0);
        await vcpu.LoadProgramAsync([Guest.Compare(0, s_content, access: GuestAccess.Private), Guest.Halt()]);
        RunResponse run = await vcpu.RunAsync();
        Assert.False(run.Results[0].HasMismatchAt);

        SevLaunch launch = mirror.SevLaunch(bench.Sev);
        SevGuestStatusResponse status = await launch.GuestStatusAsync(), owner = await bench.Launch.GuestStatusAsync();
        Assert.Equal((owner.Handle, owner.Policy, owner.State), (status.Handle, status.Policy, status.State));
        ulong plain = await bench.Process.MmapAsync(Page);
        await launch.DebugAsync(encrypt: false, bench.Memory, plain, (uint)Page);
        Assert.Equal(s_content, (await bench.Process.ReadAsync(plain, Page)).ToArray());
        foreach (Outcome refused in new[]
        {
            (await launch.StartAsync(0).Reply).Outcome, (await launch.UpdateDataAsync(bench.Memory, 16).Reply).Outcome, (await launch.MeasureAsync().Reply).Outcome,
            (await launch.FinishAsync().Reply).Outcome, (await mirror.SnpLaunch(bench.Sev).Init2Async(ghcbVersion: 0).Reply).Outcome,
        })
        {
            Assert.Equal(("EINVAL", "sev.mirror.command"), (refused.ErrnoName, refused.Causes[0].Rule));
        }
        foreach (bool unregister in new[] { false, true })
        {
            Outcome region = (await launch.EncryptRegionAsync(unregister, bench.Memory, Page).Reply).Outcome;
            Assert.Equal(("EINVAL", "sev.mirror.region"), (region.ErrnoName, region.Causes[0].Rule));
        }
    }

    // The guest of firmware lives as long as the last VM that uses it.
    [Fact]
    public async Task AMirror_KeepsTheOtherAlive()
    {
        await using SevBench bench = await LaunchedAsync(VmType.Sev);
        Client.Vm mirror = await CreateVmAsync(bench, VmType.Sev);
        await mirror.CopyEncContextFromAsync(bench.Vm);
        await bench.Vcpu.DisposeAsync();
        await bench.Vm.DisposeAsync();
        Assert.Equal(1u, (await bench.Sev.PlatformStatusAsync()).GuestCount);
        Assert.Equal(3u, (await mirror.SevLaunch(bench.Sev).GuestStatusAsync()).State);
        await mirror.DisposeAsync();
        Assert.Equal(0u, (await bench.Sev.PlatformStatusAsync()).GuestCount);
    }

    [Fact]
    public async Task AGuestThatMoved_IsAtHomeInTheNewVm_AndTheOldOneIsDead()
    {
        await using SevBench bench = await LaunchedAsync(VmType.Default);
        Client.Vm target = await CreateVmAsync(bench, VmType.Default);
        await target.SetUserMemoryRegion2Async(GuestBench.Region(0, 0, 0, 8, bench.Memory));
        await target.MoveEncContextFromAsync(bench.Vm);
        Assert.Equal("EIO", (await bench.Launch.GuestStatusAsync().Reply).Outcome.ErrnoName);

        Client.Vcpu vcpu = await target.CreateVcpuAsync(0);
        await vcpu.LoadProgramAsync([Guest.Compare(0, s_content, access: GuestAccess.Private), Guest.Halt()]);
        RunResponse run = await vcpu.RunAsync();
        Assert.False(run.Results[0].HasMismatchAt);

        // The descriptor of /dev/sev does not move along, so firmware's commands have none.
        Outcome status = (await target.SevLaunch(bench.Sev).GuestStatusAsync().Reply).Outcome;
        Assert.Equal(("EBADF", "sev.guest.no-fd"), (status.ErrnoName, status.Causes[0].Rule));
        await vcpu.DisposeAsync();
        await target.DisposeAsync();
        Assert.Equal(0u, (await bench.Sev.PlatformStatusAsync()).GuestCount);
    }

    [Fact]
    public async Task ASevEsGuest_MovesWithItsVcpus()
    {
        await using SevBench bench = await LaunchedAsync(VmType.SevEs);
        Client.Vm target = await CreateVmAsync(bench, VmType.SevEs);
        Outcome without = (await target.MoveEncContextFromAsync(bench.Vm).Reply).Outcome;
        Assert.Equal(("EINVAL", "sev.context.vcpus"), (without.ErrnoName, without.Causes[0].Rule));
        await target.CreateVcpuAsync(0);
        await target.MoveEncContextFromAsync(bench.Vm);
    }

    [Fact]
    public async Task ASevEsGuest_WhoseVcpusWereNotMeasured_DoesNotMove()
    {
        await using SevBench bench = await SevBench.CreateAsync(daemon, VmType.SevEs);
        await bench.Launch.StartAsync(5);
        Client.Vm target = await CreateVmAsync(bench, VmType.SevEs);
        await target.CreateVcpuAsync(0);
        Outcome refused = (await target.MoveEncContextFromAsync(bench.Vm).Reply).Outcome;
        Assert.Equal(("EINVAL", "sev.context.vcpus"), (refused.ErrnoName, refused.Causes[0].Rule));
    }

    public static TheoryData<string, bool, string, string> Refusals
    {
        get
        {
            var data = new TheoryData<string, bool, string, string>();
            foreach (bool move in new[] { false, true })
            {
                data.Add("a closed descriptor", move, "EBADF", "sev.context.fd");
                data.Add("a descriptor of /dev/sev", move, "EBADF", "sev.context.fd");
                data.Add("the VM itself", move, "EINVAL", "sev.context.same-vm");
                data.Add("a source without INIT2", move, "EINVAL", "sev.context.state");
                data.Add("a target with INIT2", move, "EINVAL", "sev.context.state");
                data.Add("an SNP guest", move, "EINVAL", "sev.context.snp");
            }
            data.Add("a target with vCPUs", false, "EINVAL", "sev.context.state");
            data.Add("a mirror as source", false, "EINVAL", "sev.context.state");
            data.Add("a target of another type", true, "EINVAL", "sev.context.state");
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Refusals))]
    public async Task WhatDoesNotGoTogether_IsRefused(string what, bool move, string errno, string rule)
    {
        await using SevBench bench = await LaunchedAsync(VmType.Sev);
        Client.Vm target = await CreateVmAsync(bench, what switch { "a target of another type" => VmType.Default, "an SNP guest" => VmType.Snp, _ => VmType.Sev });
        Client.Vm source = bench.Vm;
        switch (what)
        {
            case "a source without INIT2":
                source = await CreateVmAsync(bench, VmType.Sev);
                break;
            case "a target with INIT2":
                await target.SnpLaunch(bench.Sev).Init2Async(ghcbVersion: 0);
                break;
            case "an SNP guest":
                source = await CreateVmAsync(bench, VmType.Snp);
                await source.SnpLaunch(bench.Sev).Init2Async();
                break;
            case "a target with vCPUs":
                await target.CreateVcpuAsync(0);
                break;
            case "a mirror as source":
                source = await CreateVmAsync(bench, VmType.Sev);
                await source.CopyEncContextFromAsync(bench.Vm);
                break;
        }
        int fd = what switch { "a closed descriptor" => 99, "a descriptor of /dev/sev" => bench.Sev.Fd, "the VM itself" => target.Fd, _ => source.Fd };
        var cap = new KvmEnableCap { Cap = (uint)(move ? KernelNumbers.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM : KernelNumbers.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM), Args = { (ulong)fd } };
        EnableCapResponse refused = await target.EnableCapAsync(cap).Reply;
        Assert.Equal((errno, rule), (refused.Outcome.ErrnoName, refused.Outcome.Causes[0].Rule));
    }

    private static async Task<Client.Vm> CreateVmAsync(SevBench bench, VmType type) => await (await bench.Process.OpenKvmAsync()).CreateVmAsync(type);

    private async Task<SevBench> LaunchedAsync(VmType type)
    {
        SevBench bench = await SevBench.CreateAsync(daemon, type);
        await bench.Process.WriteAsync(bench.Memory, s_content);
        await bench.Launch.StartAsync(type == VmType.SevEs ? 4u : 0u);
        await bench.Launch.UpdateDataAsync(bench.Memory, (uint)s_content.Length);
        if (type == VmType.SevEs)
            await bench.Launch.UpdateVmsaAsync();
        await bench.Launch.FinishAsync();
        return bench;
    }
}
