using System.Reflection;
using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
using VmmService.Client;
using VmmService.IntegrationTests.Support;
using VmmService.V1;
using Xunit;

namespace VmmService.IntegrationTests.Sev;

/// <summary>
/// Every RPC of the SEV services with fields of any value, on VMs of every type and state: whatever comes, the answer is an errno or a refusal in words, never a failure of the daemon,
/// and it comes. What is random in all services at once is <c>FuzzTests</c>'.
/// </summary>
public sealed class HostileSevRequestsTests(Daemon daemon) : IClassFixture<Daemon>
{
    private const int Calls = 120;

    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(60);

    private static readonly ulong[] s_numbers = [0, 1, 2, 3, 15, 16, 17, 48, 52, 128, 208, 0xfff, 0x1000, 0x1001, 0x4000, 0x4001, 0x30000, uint.MaxValue, 1UL << 40, 1UL << 63, ulong.MaxValue - 0xfff, ulong.MaxValue];
    private static readonly int[] s_sizes = [0, 1, 16, 20, 52, 64, 96, 128, 432, 2084, 4096, 6252, 16384, 16385, 20480, 20481];

    public static TheoryData<string, int> Runs
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (ServiceDescriptor service in Services)
            {
                for (int seed = 1; seed <= 2; seed++)
                    data.Add(service.Name, seed);
            }
            return data;
        }
    }

    private static IReadOnlyList<ServiceDescriptor> Services =>
        [SevService.Descriptor, SevLegacyService.Descriptor, SevPlatformService.Descriptor, AttestationService.Descriptor];

    [Theory]
    [MemberData(nameof(Runs))]
    public async Task AnyRequest_IsAnswered(string name, int seed)
    {
        var random = new Random(seed);
        ServiceDescriptor service = Services.Single(each => each.Name == name);
        object stub = StubOf(service);
        await using RemoteHost host = await daemon.Connection.CreateHostAsync(seed: (ulong)seed);
        await using RemoteProcess process = await host.CreateProcessAsync();
        (ulong[] addresses, int[] fds) = await FurnishAsync(process);
        for (int i = 0; i < Calls; i++)
        {
            MethodDescriptor method = service.Methods[random.Next(service.Methods.Count)];
            IMessage request = Fill(method.InputType, random, host.Id, process.Pid, addresses, fds);
            try
            {
                await CallAsync(stub, method, request);
            }
            catch (RpcException refused)
            {
                Assert.True(
                    refused.StatusCode is StatusCode.InvalidArgument or StatusCode.NotFound or StatusCode.ResourceExhausted or StatusCode.FailedPrecondition,
                    $"seed {seed}, call {i}: {method.Name} {request} failed with {refused.Status}");
            }
        }
    }

    // A VM of each type: as created, initialised, started, and finished; memory, and descriptors that are none of these.
    private static async Task<(ulong[] Addresses, int[] Fds)> FurnishAsync(RemoteProcess process)
    {
        ulong memory = await process.MmapAsync(16 * KernelNumbers.PAGE_SIZE);
        Client.Kvm kvm = await process.OpenKvmAsync();
        SevDevice sev = await process.OpenSevAsync();
        List<int> fds = [-1, 0, 999, kvm.Fd, sev.Fd, sev.Fd, sev.Fd, sev.Fd];
        foreach (VmType type in new[] { VmType.Default, VmType.Sev, VmType.SevEs, VmType.Snp })
        {
            for (int state = 0; state < 4; state++)
            {
                Client.Vm vm = await kvm.CreateVmAsync(type);
                fds.Add(vm.Fd);
                if (state > 0)
                    _ = type == VmType.Default ? (object)await vm.SevLaunch(sev).InitAsync(es: state == 2).Reply : await vm.SnpLaunch(sev).Init2Async(ghcbVersion: 0).Reply;
                if (state == 2)
                    await vm.CreateVcpuAsync(0);
                if (state > 1)
                    _ = type == VmType.Snp ? (object)await vm.SnpLaunch(sev).StartAsync().Reply : await vm.SevLaunch(sev).StartAsync(type == VmType.SevEs ? 4u : 0).Reply;
                if (state > 2)
                    _ = type == VmType.Snp ? (object)await vm.SnpLaunch(sev).FinishAsync().Reply : await vm.SevLaunch(sev).FinishAsync().Reply;
            }
        }
        return ([memory, memory + 8, memory + (15 * KernelNumbers.PAGE_SIZE) + 0xff8], [.. fds]);
    }

    private static IMessage Fill(MessageDescriptor type, Random random, string host, uint pid, ulong[] addresses, int[] fds)
    {
        IMessage message = type.Parser.ParseFrom(ByteString.Empty);
        foreach (FieldDescriptor field in type.Fields.InDeclarationOrder())
        {
            object? value = field.Name switch
            {
                "host" => host,
                "pid" => pid,
                "fd" or "sev_fd" => fds[random.Next(fds.Length)],
                _ when random.Next(4) == 0 || field.IsRepeated || (field.RealContainingOneof is { } oneof && oneof.Fields[0] != field) => null,
                _ => field.FieldType switch
                {
                    FieldType.UInt64 => random.Next(2) == 0 ? addresses[random.Next(addresses.Length)] : s_numbers[random.Next(s_numbers.Length)],
                    FieldType.UInt32 => (uint)s_numbers[random.Next(s_numbers.Length)],
                    FieldType.Int32 => (int)s_numbers[random.Next(s_numbers.Length)],
                    FieldType.Bool => random.Next(2) == 0,
                    FieldType.Bytes => Bytes(random),
                    FieldType.Enum => random.Next(-1, field.EnumType.Values.Count + 1),
                    FieldType.Message => Fill(field.MessageType, random, host, pid, addresses, fds),
                    _ => null,
                },
            };
            if (value is not null)
                field.Accessor.SetValue(message, field.FieldType == FieldType.Enum ? Enum.ToObject(field.EnumType.ClrType, value) : value);
        }
        return message;
    }

    private static ByteString Bytes(Random random)
    {
        byte[] bytes = new byte[s_sizes[random.Next(s_sizes.Length)]];
        if (random.Next(2) == 0)
            random.NextBytes(bytes);
        return ByteString.CopyFrom(bytes);
    }

    private object StubOf(ServiceDescriptor service) =>
        typeof(VmmStubs).GetProperties().Select(property => property.GetValue(daemon.Stubs)!).Single(stub => stub.GetType().DeclaringType?.Name == service.Name);

    // The stub's method with the request and call options, which answers an AsyncUnaryCall.
    private static async Task CallAsync(object stub, MethodDescriptor method, IMessage request)
    {
        MethodInfo call = stub.GetType().GetMethod(method.Name + "Async", [method.InputType.ClrType, typeof(CallOptions)])!;
        object answer = call.Invoke(stub, [request, new CallOptions(deadline: DateTime.UtcNow + s_patience)])!;
        using var asDisposable = (IDisposable)answer;
        await (Task)answer.GetType().GetProperty(nameof(AsyncUnaryCall<IMessage>.ResponseAsync))!.GetValue(answer)!;
    }
}
