using Grpc.Core;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Scripts;

/// <summary>Scripts that cannot be executed as they stand: where, what, and what to try.</summary>
public sealed class BadScriptTests(Daemon daemon) : IClassFixture<Daemon>
{
    [Theory]
    [InlineData("", 1, 1, "empty")]
    [InlineData("steps", 1, 1, "begin with `steps:`")]
    [InlineData("steps: 1", 1, 8, "`steps` is a scalar")]
    [InlineData("profile: K72", 1, 1, "no `steps`")]
    [InlineData("stepz: []", 1, 1, "did you mean `steps`?")]
    [InlineData("steps:\n  - open: [", 0, 0, "not YAML")]
    [InlineData("steps:\n\t- open: x", 0, 0, "not YAML")]
    [InlineData("steps: &a []", 1, 0, "anchors")]
    [InlineData("steps: !!seq []", 1, 0, "tags")]
    [InlineData("steps: []\n---\nsteps: []", 0, 0, "second document")]
    [InlineData("machine: {memory: 1}\nsteps: []", 1, 11, "did you mean `memory_bytes`?")]
    [InlineData("machine: {sev: maybe}\nsteps: []", 1, 16, "`maybe` is neither a number nor a constant")]
    [InlineData("- 5", 1, 3, "a step is an action")]
    [InlineData("- {}", 1, 3, "does nothing")]
    [InlineData("- opne: /dev/kvm", 1, 3, "did you mean `open`?")]
    [InlineData("- open: /dev/kvm\n  close: 3", 2, 3, "`close` does not belong to it")]
    [InlineData("- open: /dev/kvm\n  open: /dev/sev", 2, 3, "there twice")]
    [InlineData("- create_vm: DEFAULT", 1, 3, "no variable `kvm`")]
    [InlineData("- create_vm: {typo: 1, fd: 3}", 1, 15, "did you mean `type`?")]
    [InlineData("- munmap: {addr: 0}", 1, 3, "no `length`")]
    [InlineData("- close: three", 1, 10, "`three` is neither a number nor a constant")]
    [InlineData("- close: 0x1_0000_0000", 1, 10, "out of range")]
    [InlineData("- close: 1 +", 1, 10, "ends too early")]
    [InlineData("- close: 1 / 0", 1, 10, "divides by zero")]
    [InlineData("- close: 1 << 64", 1, 10, "shifts by 64")]
    [InlineData("- close: $fd", 1, 10, "no variable `fd`")]
    [InlineData("- close: (3", 1, 10, "ends too early")]
    [InlineData("- close: 3)", 1, 10, "`)` is not expected")]
    [InlineData("- close: 3 3", 1, 10, "`3` is not expected")]
    [InlineData("- close: KVM_MEM_READONYL", 1, 10, "did you mean `KVM_MEM_READONLY`?")]
    [InlineData("- mmap: 0x1ffffffffffffffff", 1, 9, "out of range")]
    [InlineData("- mmap: 340282366920938463463374607431768211456", 1, 9, "not a number")]
    [InlineData("- write: {addr: 0, content: xyz}", 1, 29, "not bytes in hex")]
    [InlineData("- write: {addr: 0, content: abc}", 1, 29, "even number")]
    [InlineData("- write: {addr: 0, content: {byte: 256}}", 1, 36, "out of range")]
    [InlineData("- write: {addr: 0, content: {byte: 1, length: 1TiB}}", 1, 47, "at most")]
    [InlineData("- write: {addr: 0, content: {rope: 1}}", 1, 30, "no kind of content")]
    [InlineData("- write: {addr: 0, content: {file: nowhere}}", 1, 36, "no file `nowhere`")]
    [InlineData("- set: {1a: 5}", 1, 9, "not a name")]
    [InlineData("- set: {a: text}\n- close: $a", 2, 10, "is no number")]
    [InlineData("- open: /dev/kvm\n  as: kvm\n  expect: {errnos: OK}", 3, 12, "did you mean `errno`?")]
    [InlineData("- echo: hello\n  expect: {errno: OK}", 2, 12, "nothing to expect")]
    [InlineData("- open: /dev/kvm\n  as: {valeu: kvm}", 2, 8, "did you mean `value`?")]
    [InlineData("- open: /dev/kvm\n  as: {value: [kvm]}", 2, 15, "a list")]
    [InlineData("- open: /dev/kvm\n  as: {value: 1a}", 2, 15, "not a name")]
    [InlineData("- open: /dev/kvm\n  in: 99", 2, 7, "none of the script's")]
    [InlineData("- program: {fd: 3, steps: [{reed: {}}]}", 1, 29, "did you mean `read`?")]
    [InlineData("- program: {fd: 3, steps: [halt]}", 1, 3, "no vCPU")]
    [InlineData("- repeat: {times: 1}", 1, 3, "no `steps`")]
    [InlineData("- repeat: {times: 1, steps: {}}", 1, 29, "a map")]
    [InlineData("- repeat: {times: 0xffffffffffffffff, steps: []}", 1, 3, "the daemon's limit")]
    [InlineData("- explain_gpa: {gpa: 0, fd: 77}", 1, 3, "no VM")]
    public async Task Script_IsRefusedWithPlaceAndAdvice(string yaml, int line, int column, string told)
    {
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, yaml);

        Assert.NotNull(outcome.Error);
        Assert.Contains(told, $"{outcome.Error.Problem}. {outcome.Error.Advice}", StringComparison.Ordinal);
        Assert.NotEqual("", outcome.Error.Advice);
        // 0 where the parser is free to choose.
        Assert.True(line == 0 || outcome.Error.Line == line, $"line {outcome.Error.Line}: {outcome.Error.Problem}");
        Assert.True(column == 0 || outcome.Error.Column == column, $"column {outcome.Error.Column}: {outcome.Error.Problem}");
    }

    [Fact]
    public async Task Nesting_DeeperThanTheLimit_IsRefused()
    {
        string yaml = string.Concat(Enumerable.Repeat("[", 1000)) + string.Concat(Enumerable.Repeat("]", 1000));
        Assert.Contains("nested deeper", (await ScriptOutcome.Run(daemon.Connection, yaml)).Error!.Problem, StringComparison.Ordinal);
        string expression = string.Concat(Enumerable.Repeat("(", 500)) + "1" + string.Concat(Enumerable.Repeat(")", 500));
        Assert.Contains("nested deeper", (await ScriptOutcome.Run(daemon.Connection, $"- close: {expression}")).Error!.Problem, StringComparison.Ordinal);
    }

    [Fact]
    public async Task StepsBeforeTheError_AreAnswered()
    {
        ScriptOutcome outcome = await ScriptOutcome.Run(daemon.Connection, "- open: /dev/kvm\n- echo: one\n- nonsense: 1");
        Assert.Equal(["open", "echo"], outcome.Steps.Select(step => step.Action));
        Assert.Equal(3u, outcome.Error!.Line);
    }

    [Fact]
    public async Task FirstMessage_OtherThanTheHeader_IsRefused()
    {
        using AsyncDuplexStreamingCall<RunScriptRequest, RunScriptResponse> call = daemon.Stubs.Scripts.RunScript();
        await call.RequestStream.WriteAsync(new RunScriptRequest { Step = new ScriptText { Yaml = "echo: x" } });
        RpcException refused = await Assert.ThrowsAsync<RpcException>(() => call.ResponseStream.MoveNext(CancellationToken.None));
        Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
        Assert.Contains("header", refused.Status.Detail, StringComparison.Ordinal);
    }

    [Fact]
    public async Task UnknownHostAndProfile_AreTheDaemonsErrors()
    {
        VmmServiceException host = await Assert.ThrowsAsync<VmmServiceException>(() => ScriptOutcome.Run(daemon.Connection, "- echo: x", new ScriptHeader { Host = "h0" }));
        VmmServiceException profile = await Assert.ThrowsAsync<VmmServiceException>(
            () => ScriptOutcome.Run(daemon.Connection, "- echo: x", new ScriptHeader { Boot = new CreateHostRequest { Profile = "K1" } }));
        Assert.Equal((StatusCode.NotFound, StatusCode.InvalidArgument), (host.StatusCode, profile.StatusCode));
    }
}
