using System.Text.Json;
using VmmService.IntegrationTests.Support;
using Xunit;

namespace VmmService.IntegrationTests.Cli;

/// <summary>vmm run, map, watch, explain and profiles: what they print, and how they end.</summary>
public sealed class RunCommandTests(Daemon daemon) : IClassFixture<Daemon>, IDisposable
{
    private const string Vm = """
        - open: /dev/kvm
          as: kvm
        - create_vm: SW_PROTECTED
          as: vm

        """;

    private readonly string _folder = Directory.CreateTempSubdirectory("vmm-run-test-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task Run_UnmetExpectation_EndsWithExitCode1AndSaysBothSides()
    {
        VmmRun run = await VmmRun.Invoke("run", Script(Vm + "- create_guest_memfd: {size: 5}\n- echo: unheard"));
        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.Contains("expected errno = OK, it is EINVAL (line 5)", run.Output, StringComparison.Ordinal);
        Assert.Contains("3 steps, 1 unmet expectations", run.Output, StringComparison.Ordinal);
        Assert.DoesNotContain("unheard", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Run_KeepGoing_GoesOnAndStillEndsWithExitCode1()
    {
        VmmRun run = await VmmRun.Invoke("run", "--keep-going", Script(Vm + "- create_guest_memfd: {size: 5}\n- echo: heard"));
        Assert.Equal(1, run.ExitCode);
        Assert.Contains("heard", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Run_Verbose_PrintsFactsAndCauses()
    {
        VmmRun run = await VmmRun.Invoke("run", "-v", Script(Vm + "- create_guest_memfd: {size: 5}\n  expect: EINVAL"));
        Assert.Equal(0, run.ExitCode);
        Assert.Contains("errno = EINVAL", run.Output, StringComparison.Ordinal);
        Assert.Contains("kvm.gmem.create.size", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Run_Json_IsOneObject()
    {
        VmmRun run = await VmmRun.Invoke("run", "--json", "--profile", "K616", "--seed", "3", Script(Vm));
        JsonElement json = run.Json;
        Assert.Equal(("K616", "3"), (json.GetProperty("started").GetProperty("profile").GetString(), json.GetProperty("started").GetProperty("seed").GetString()));
        Assert.Equal(["open", "create_vm"], json.GetProperty("steps").EnumerateArray().Select(step => step.GetProperty("action").GetString()));
        Assert.Equal("0", json.GetProperty("summary").GetProperty("unmet").GetString());
    }

    [Fact]
    public async Task Run_FileContent_IsTakenFromBesideTheScript()
    {
        await File.WriteAllBytesAsync(Path.Combine(_folder, "blob"), [1, 2, 3]);
        VmmRun run = await VmmRun.Invoke("run", Script("- mmap: 4KiB\n  as: a\n- write: {addr: $a, content: {file: blob}}\n- read: {addr: $a, length: 3}\n  expect: {data: '010203'}"));
        Assert.True(run.ExitCode == 0, run.Output + run.Error);
    }

    [Theory]
    [InlineData("run", "needs the FILE", "--help-steps")]
    [InlineData("run {missing}", "cannot be read", "missing")]
    [InlineData("run {blob}", "blob.yaml:2: the file nowhere", "cannot be read")]
    [InlineData("run {ok} --set x", "--set x", "NAME=VALUE")]
    [InlineData("run {ok} --profile K1", "K1", "K72")]
    [InlineData("run {ok} --profile K1 --profile K72", "K1", "K72")]
    [InlineData("run {ok} --host h1 --profile K72", "--host", "--profile")]
    [InlineData("map", "--server", "--script")]
    [InlineData("map --script {ok} --fd 77", "no such VM", "--pid 1 --fd 4")]
    [InlineData("map --server {daemon} --profile K72", "--profile", "--script")]
    [InlineData("explain 99 --script {ok}", "no such revision", "revisions 1 to 2 are kept")]
    [InlineData("explain nine --script {ok}", "nine")]
    [InlineData("profiles K72", "two profiles", "1 were given")]
    [InlineData("profiles K72 K1", "K1", "K616")]
    public async Task Unusable_IsRefusedWithExitCode2(string commandLine, params string[] told)
    {
        VmmRun run = await VmmRun.Invoke([.. commandLine.Split(' ').Select(word => word switch
        {
            "{missing}" => Path.Combine(_folder, "missing.yaml"),
            "{blob}" => Script("- open: /dev/kvm\n- write: {addr: 0, content: {file: nowhere}}", "blob.yaml"),
            "{ok}" => Script(Vm),
            "{daemon}" => daemon.Address,
            _ => word,
        })]);
        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.All(told, each => Assert.Contains(each, run.Error, StringComparison.Ordinal));
        Assert.DoesNotContain("   at ", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Run_ScriptThatIsWrong_PrintsWhatCameBeforeAndEndsWithExitCode2()
    {
        VmmRun run = await VmmRun.Invoke("run", Script("- open: /dev/kvm\n- create_wm: DEFAULT", "wrong.yaml"));
        Assert.Equal(2, run.ExitCode);
        Assert.Contains("open /dev/kvm = 3", run.Output, StringComparison.Ordinal);
        Assert.Contains("wrong.yaml:2:3: there is no step `create_wm`. Try: did you mean `create_vm`?", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task TwoProfiles_ThatPart_AreShownSideBySideWithTheBehaviour()
    {
        string script = Script(Vm + "- create_guest_memfd: {size: 4KiB, flags: 1}\n  expect: any\n- create_guest_memfd: {size: 4KiB}\n  expect: any");
        VmmRun run = await VmmRun.Invoke("run", script, "--profile", "K616", "--profile", "K72");
        VmmRun json = await VmmRun.Invoke("run", script, "--profile", "K616", "--profile", "K72", "--json");

        Assert.Equal((1, ""), (run.ExitCode, run.Error));
        Assert.Contains("K616 and K72 part at line 5: create_guest_memfd", run.Output, StringComparison.Ordinal);
        Assert.Matches(@"outcome +EINVAL +OK", run.Output);
        Assert.Contains("kvm.gmem.create.flags", run.Output, StringComparison.Ordinal);
        Assert.Contains("Behaviour GuestMemfdFlags", run.Output, StringComparison.Ordinal);
        Assert.Equal(1, json.ExitCode);
        JsonElement comparison = json.Json.GetProperty("comparisons")[0];
        Assert.True(comparison.GetProperty("differ").GetBoolean());
        Assert.StartsWith("GuestMemfdFlags", comparison.GetProperty("behaviours")[0].GetProperty("name").GetString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task TwoProfiles_ThatAgree_EndWithExitCode0()
    {
        VmmRun run = await VmmRun.Invoke("run", Script(Vm), "--profile", "K616", "--profile", "K72");
        Assert.Equal((0, "K616 and K72: no difference in 2 steps"), (run.ExitCode, run.Output.Trim()));
    }

    [Fact]
    public async Task ProfilesOfTwo_ListsWhatDiffers()
    {
        VmmRun text = await VmmRun.Invoke("profiles", "K616", "K72");
        VmmRun json = await VmmRun.Invoke("profiles", "K616", "K72", "--json");
        Assert.Matches(@"GuestMemfdFlags +0x0 +0x3", text.Output);
        Assert.Equal(text.Output.Trim().Split('\n').Length - 1, json.Json.GetProperty("differences").GetArrayLength());
        Assert.Equal("K72 and K72 do not differ.", (await VmmRun.Invoke("profiles", "K72", "K72")).Output.Trim());
    }

    [Fact]
    public async Task MapWatchAndExplain_LookAtAHostOfADaemon()
    {
        await using BareProcess process = await BareProcess.Start(daemon.Stubs);
        int vm = await process.CreateVm(V1.VmType.SwProtected);
        await process.SetAttributes(vm, 0x1000, 0x2000, 8);
        await process.SetAttributes(vm, 1, 1, 8);
        string[] host = ["--server", daemon.Address, "--host", process.Host];

        VmmRun map = await VmmRun.Invoke(["map", .. host]);
        VmmRun gpa = await VmmRun.Invoke(["map", "--gpa", "0x2000", .. host]);
        VmmRun watch = await VmmRun.Invoke(["watch", "--from", "2", .. host]);
        VmmRun explain = await VmmRun.Invoke(["explain", "4", .. host]);

        Assert.Matches(@"0x1000 +8 KiB +- +private", map.Output);
        Assert.Contains("marked private", gpa.Output, StringComparison.Ordinal);
        Assert.Equal(3, watch.Output.Trim().Split('\n').Length);
        Assert.Contains("EINVAL", explain.Output, StringComparison.Ordinal);
        Assert.Contains("rule kvm.attributes.alignment", explain.Output, StringComparison.Ordinal);
        Assert.Contains("ioctl enter", explain.Output, StringComparison.Ordinal);
        foreach (VmmRun each in (VmmRun[])[map, gpa, watch, explain])
        {
            Assert.Equal((0, ""), (each.ExitCode, each.Error));
        }
    }

    [Fact]
    public async Task MapJson_HasTheVmAndTheRuns()
    {
        VmmRun run = await VmmRun.Invoke("map", "--json", "--script", Script(Vm + "- set_memory_attributes: {address: 0, size: 1TiB, attributes: 8}"));
        Assert.Equal("VM_TYPE_SW_PROTECTED", run.Json.GetProperty("vm").GetProperty("type").GetString());
        Assert.Equal((1UL << 40).ToString(System.Globalization.CultureInfo.InvariantCulture), run.Json.GetProperty("map")[0].GetProperty("size").GetString());
    }

    private string Script(string yaml, string name = "script.yaml")
    {
        string path = Path.Combine(_folder, name);
        File.WriteAllText(path, yaml);
        return path;
    }
}
