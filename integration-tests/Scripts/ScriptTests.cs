using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Scripts;

/// <summary>Scripts through gRPC: what a step answers, when a script ends, what it leaves behind.</summary>
public sealed class ScriptTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const string Vm = """
        steps:
          - open: /dev/kvm
            as: kvm
          - create_vm: SW_PROTECTED
            as: vm

        """;

    [Fact]
    public async Task Steps_AreAnsweredInOrderWithOutcomeAndFacts()
    {
        ScriptOutcome outcome = await Run(Vm + """
              - set_memory_attributes: {address: 0x1001, size: 4KiB, attributes: 8}
                name: not aligned
                expect: {errno: EINVAL, rule: kvm.attributes.alignment}
            """);

        Assert.Equal(["open", "create_vm", "set_memory_attributes"], outcome.Steps.Select(step => step.Action));
        Assert.Equal([1ul, 2, 3], outcome.Steps.Select(step => step.Number));
        Assert.Equal([2u, 4, 6], outcome.Steps.Select(step => step.Line));
        Assert.Equal(("not aligned", "EINVAL"), (outcome.Steps[2].Name, outcome.Steps[2].Outcome.ErrnoName));
        Assert.Equal(0x1001ul, outcome.Steps[2].Outcome.Causes[0].Operands[0].Value);
        Assert.Equal("vm", outcome.Steps[1].Variable);
        Assert.Equal((3ul, 0ul), (outcome.Summary!.Steps, outcome.Summary.Unmet));
    }

    [Fact]
    public async Task SystemCallsOnFilesAndMemory_AreSteps()
    {
        ScriptOutcome outcome = await Run("""
            steps:
              - memfd_create: {flags: MFD_ALLOW_SEALING}
                as: file
              - ftruncate: {length: 8KiB, fd: $file}
              - pwrite: {fd: $file, content: "0badcafe", offset: 0x1ffe}
                expect: {errno: OK, value: 4}
              - mmap: {length: 12KiB, fd: $file, flags: MAP_SHARED}
                as: shared
              - read: {addr: $shared + 0x1ffe, length: 2}
                expect: {data: "0bad"}
              - pread: {fd: $file, length: 16, offset: 0x2000}
                expect: {value: 2, data: "cafe"}
              - dup: $file
              - mmap: {length: 8KiB}
                as: own
              - fill: {addr: $own, length: 8KiB, pattern: "77"}
              - mlock: {addr: $own, length: 4KiB}
              - madvise: {addr: $own, length: 8KiB, advice: MADV_DONTNEED}
                expect: EINVAL
              - munlock: {addr: $own, length: 4KiB}
              - mremap: {addr: $own, old_length: 8KiB, new_length: 16KiB, flags: MREMAP_MAYMOVE}
                as: moved
              - mprotect: {addr: $moved, length: 4KiB, prot: PROT_READ}
              - write: {addr: $moved, content: "00"}
                expect: EFAULT
              - fork:
                as: child
              - write: {addr: $shared, content: "11"}
                in: $child
              - write: {addr: $moved + 4KiB, content: "11"}
                in: $child
              - read: {addr: $shared, length: 1}
                expect: {data: "11"}
              - read: {addr: $moved + 4KiB, length: 1}
                expect: {data: "77"}
              - inject_memory_failure: {fd: $file, index: 0}
              - read: {addr: $shared, length: 1}
                expect: EFAULT
            """);
        Assert.Equal((22ul, 0ul), (outcome.Summary!.Steps, outcome.Summary.Unmet));
    }

    [Theory]
    [InlineData("GM23")]
    [InlineData("K72")]
    public async Task AttributesAreSet_WhateverNumberTheIoctlHasInThatKernel(string profile)
    {
        ScriptOutcome outcome = await Run($"profile: {profile}\n" + Vm + """
              - set_memory_attributes: {address: 0, size: 4KiB, attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE}
            """);
        Assert.Equal(0ul, outcome.Summary!.Unmet);
    }

    [Fact]
    public async Task StepByStep_EachIsAnsweredBeforeTheNextIsSent()
    {
        await using RemoteScript script = await daemon.Connection.StartScriptAsync(new ScriptHeader());
        IAsyncEnumerator<RunScriptResponse> replies = script.RepliesAsync().GetAsyncEnumerator();

        await script.SendStepAsync("open: /dev/kvm\nas: kvm");
        Assert.True(await replies.MoveNextAsync());
        Assert.NotNull(replies.Current.Started);
        Assert.True(await replies.MoveNextAsync());
        Assert.Equal("open", replies.Current.Step.Action);
        await script.SendStepAsync("- create_vm: DEFAULT", firstLine: 40);
        Assert.True(await replies.MoveNextAsync());
        Assert.Equal(("create_vm", 40u), (replies.Current.Step.Action, replies.Current.Step.Line));
        await script.CompleteAsync();
        Assert.True(await replies.MoveNextAsync());
        Assert.Equal(2ul, replies.Current.Summary.Steps);
        Assert.False(await replies.MoveNextAsync());
    }

    [Fact]
    public async Task UnmetExpectation_EndsTheScript()
    {
        ScriptOutcome outcome = await Run(Vm + """
              - create_guest_memfd: {size: 1}
              - echo: never said
            """);

        Assert.Equal(3, outcome.Steps.Count);
        UnmetExpectation unmet = Assert.Single(outcome.Unmet);
        Assert.Equal(("errno", "OK", "EINVAL", 6u), (unmet.Fact, unmet.Expected, unmet.Actual, unmet.Line));
    }

    [Fact]
    public async Task UnmetExpectation_WithKeepGoing_IsCountedOnly()
    {
        ScriptOutcome outcome = await Run(Vm + """
              - create_guest_memfd: {size: 1}
              - echo: said
            keep_going: true
            """);

        Assert.Equal("said", outcome.Steps[^1].Text);
        Assert.Equal(1ul, outcome.Summary!.Unmet);
    }

    [Theory]
    [InlineData("expect: {value: 5}", "value", "5", "4")]
    [InlineData("expect: {value: -1}", "value", "-1", "4")]
    [InlineData("expect: {errno: EBADF}", "errno", "EBADF", "OK")]
    [InlineData("expect: EBADF", "errno", "EBADF", "OK")]
    [InlineData("expect: {rule: kvm.create-vm.type}", "rule", "kvm.create-vm.type", "none")]
    [InlineData("expect: {findings: 1}", "findings", "1", "0")]
    public async Task Expectation_ThatIsNotMet_SaysWhatIs(string expect, string fact, string expected, string actual)
    {
        ScriptOutcome outcome = await Run(Vm + "    " + expect);
        UnmetExpectation unmet = outcome.Unmet.First(each => each.Fact == fact);
        Assert.Equal((expected, actual), (unmet.Expected, unmet.Actual));
    }

    [Fact]
    public async Task Content_OfEveryKind_IsStored()
    {
        ScriptOutcome outcome = await Run(
            """
            vars: {page: 4KiB, word: hello, raw: {u32: 0x11223344}}
            steps:
              - mmap: {length: $page}
                as: a
              - repeat:
                  times: 1
                  steps:
                    - write: {addr: $a, content: c0 ff ee}
                    - read: {addr: $a, length: 4}
                      as: back
                      expect: {data: c0ffee00}
                    - write: {addr: $a + 8, content: $back}
                    - read: {addr: $a + 8, length: 3}
                      expect: {data: {hex: c0ffee}}
              - write: {addr: $a, content: {text: "$word!"}}
              - read: {addr: $a, length: 6}
                expect: {data: {text: hello!}}
              - write: {addr: $a, content: {u64: -1}}
              - read: {addr: $a, length: 8}
                expect: {data: {byte: 255, length: 8}}
              - write: {addr: $a, content: $raw}
              - read: {addr: $a, length: 4}
                expect: {data: "44332211"}
              - write: {addr: $a, content: {bytes: [1, 0x02], length: 5}}
              - read: {addr: $a, length: 5}
                expect: {data: "0102010201"}
              - write: {addr: $a, content: {file: blob.bin}}
              - read: {addr: $a, length: 3}
                expect: {data: {pattern: 5a, length: 3}}
              - fill: {addr: $a, length: $page, pattern: abcd}
                expect: {value: $page}
              - read: {addr: $a + $page - 2, length: 2}
                expect: {data: abcd}
            """,
            null,
            ("blob.bin", [0x5a, 0x5a, 0x5a]));
        Assert.Null(outcome.Error);
        Assert.Empty(outcome.Unmet);
    }

    [Fact]
    public async Task SecondProcess_CannotUseTheVmOfTheFirst()
    {
        ScriptOutcome outcome = await Run(
            """
            steps:
              - process:
                as: other
              - open: /dev/kvm
                as: kvm
              - open: /dev/kvm
                in: $other
                expect: {value: $kvm}
              - create_vm: {type: DEFAULT, fd: $kvm}
                in: $other
                as: vm
              - create_vcpu: {fd: $vm}
                expect: EBADF
              - exit:
                in: $other
              - create_vcpu: {fd: $vm}
                in: $other
            """);
        Assert.Empty(outcome.Unmet);
        Assert.Equal(16u, outcome.Error!.Line);
        Assert.NotEqual(outcome.Steps[0].Pid, outcome.Steps[2].Pid);
    }

    [Fact]
    public async Task Variables_OfTheHeaderWinOverTheDocuments()
    {
        var header = new ScriptHeader { Variables = { ["size"] = "8KiB" } };
        ScriptOutcome outcome = await Run("vars: {size: 4KiB, twice: $size * 2}\nsteps: [{echo: $size and $twice}]", header);
        Assert.Equal("8192 and 16384", outcome.Steps[0].Text);
    }

    [Fact]
    public async Task Document_SaysWhatHostItRunsOn_AndTheHeaderWins()
    {
        const string document = """
            profile: K68
            seed: 7
            machine: {memory_bytes: 64MiB, sev: false, sev_es: false, sev_snp: false}
            kernel: {sw_protected_vm: false}
            steps:
              - open: /dev/kvm
                as: kvm
              - check_extension: KVM_CAP_VM_TYPES
                expect: {value: 1}
              - open: /dev/sev
                expect: ENOENT
            """;
        ScriptOutcome own = await Run(document);
        ScriptOutcome other = await Run(document, new ScriptHeader { SeedSet = true, Boot = new CreateHostRequest { Profile = "K72" } });

        Assert.Equal(("K68", 7ul), (own.Started!.Profile, own.Started.Seed));
        Assert.Equal(("K72", 0ul), (other.Started!.Profile, other.Started.Seed));
        Assert.Empty(own.Unmet.Concat(other.Unmet));
    }

    [Fact]
    public async Task Repeat_CountsItsVariable()
    {
        ScriptOutcome outcome = await Run(
            """
            - repeat: {for: i, from: 0x10, step: -4, times: 3, steps: [{echo: i is $i}]}
            - check: $i == 8
            """);
        Assert.Equal(["i is 16", "i is 12", "i is 8"], outcome.Steps.Where(step => step.Action == "echo").Select(step => step.Text));
        Assert.Empty(outcome.Unmet);
    }

    [Fact]
    public async Task Mismatch_OfAGuestsComparison_IsNotExpectedUnlessItIsNamed()
    {
        const string guest = """
              - mmap: {length: 4KiB}
                as: ram
              - create_vm: DEFAULT
                as: vm
              - set_user_memory_region: {memory_size: 4KiB, userspace_addr: $ram}
              - create_vcpu:
                as: vcpu
              - program:
                  - compare: {gpa: 16, pattern: "0001"}
                  - halt

            """;
        ScriptOutcome silent = await Run(Vm + guest + "  - run:");
        ScriptOutcome named = await Run(Vm + guest + "  - run:\n    expect: {mismatch: 1, exit: {reason: KVM_EXIT_HLT}, results: {0: {mismatch: 1}}}");

        Assert.Equal(("mismatch", "none", "1"), silent.Unmet.Select(each => (each.Fact, each.Expected, each.Actual)).Single());
        Assert.Empty(named.Unmet);
    }

    [Fact]
    public async Task ProcessAndHost_EndWithTheStream()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync(deleteWhenEmpty: false);
        string booted;
        await using (RemoteScript script = await daemon.Connection.StartScriptAsync(new ScriptHeader()))
        {
            await script.SendStepAsync("open: /dev/kvm");
            await script.CompleteAsync();
            booted = (await ScriptOutcome.ReadAll(script)).Started!.Host;
        }
        ScriptOutcome onHost = await Run(Vm, new ScriptHeader { Host = host.Id });

        Assert.DoesNotContain(await daemon.Connection.ListHostsAsync(), each => each.Host_ == booted);
        Host after = await host.GetStateAsync();
        Assert.Equal(host.Id, onHost.Started!.Host);
        Assert.Empty(after.Pids);
    }

    [Fact]
    public async Task ClientThatGoesAway_LeavesNoProcess()
    {
        await using RemoteHost host = await daemon.Connection.CreateHostAsync(deleteWhenEmpty: false);
        await using (RemoteScript script = await daemon.Connection.StartScriptAsync(new ScriptHeader { Host = host.Id }))
        {
            await script.SendDocumentAsync(Vm);
            await ScriptOutcome.ReadAll(script, toSummary: true);
            Assert.Single((await host.GetStateAsync()).Pids);
        }

        // The last call of the host is the exit.
        await foreach (WatchResponse each in host.Inspect.WatchAsync(follow: true))
        {
            if (each.Call is { What: "exit" })
            {
                break;
            }
        }
        Assert.Empty(await host.Inspect.ListVmsAsync());
    }

    [Fact]
    public async Task SnpLaunch_StepByStep_GivesTheDigestThatTheLibraryGives()
    {
        const string launch = """
            steps:
              - open: /dev/kvm
                as: kvm
              - open: /dev/sev
                as: sev
              - create_vm: SNP
                as: vm
              - sev_init2:
              - create_guest_memfd: {size: 2MiB}
                as: gmem
              - set_user_memory_region2: {flags: KVM_MEM_GUEST_MEMFD, memory_size: 2MiB, guest_memfd: $gmem}
              - set_memory_attributes: {address: 0, size: 2MiB, attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE}
              - snp_launch_start:
              - snp_launch_update: {gfn_start: 0, content: {byte: 7, length: 8KiB}}
              - snp_launch_finish:
                name: digest
            """;
        ScriptOutcome outcome = await Run(launch);

        await using BareProcess bare = await BareProcess.Start(daemon.Stubs);
        SnpVm vm = await bare.StartSnpVm();
        await vm.Update(0, 8192, SnpPageType.Normal, SnpVm.Page(7, 2));
        SnpLaunchFinishResponse finished = await daemon.Stubs.Sev.SnpLaunchFinishAsync(new SnpLaunchFinishRequest { Host = bare.Host, Pid = bare.Pid, Fd = vm.Fd, SevFd = vm.SevFd });

        Assert.Empty(outcome.Unmet);
        Assert.Equal(finished.LaunchDigest, outcome.Steps[^1].Facts.Single(fact => fact.Name == "digest").Text);
    }

    private Task<ScriptOutcome> Run(string yaml, ScriptHeader? header = null, params (string Name, byte[] Data)[] files) =>
        ScriptOutcome.Run(daemon.Connection, yaml, header, files);
}
