using Grpc.Core;
using SimKvm;
using SimKvm.Profiles;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;
using Host = VmmService.V1.Host;
using MachineConfig = SimMachine.MachineConfig;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.HostService.</summary>
internal sealed class HostServiceImpl(HostRegistry hosts) : HostService.HostServiceBase
{
    public override Task<CreateHostResponse> CreateHost(CreateHostRequest request, ServerCallContext context)
    {
        return Task.FromResult(new CreateHostResponse { Host = Describe(Boot(hosts, request)) });
    }

    /// <summary>Boots the host that a request describes.</summary>
    public static ServedHost Boot(HostRegistry hosts, CreateHostRequest request)
    {
        (KernelProfile profile, MachineConfig config, SimKvm.KernelConfig kernel) = Configure(hosts, request);
        return hosts.Add(
            () => new SimHost(profile, config, request.Seed) { FdLimit = hosts.Options.MaxFdsPerProcess, Config = kernel }, request.DeleteWhenEmpty);
    }

    /// <summary>What a request boots, within the daemon's limits.</summary>
    public static (KernelProfile Profile, MachineConfig Machine, SimKvm.KernelConfig Kernel) Configure(HostRegistry hosts, CreateHostRequest request)
    {
        KernelProfile profile = request.Profile.Length == 0 ? KernelProfiles.Default : FindProfile("profile", request.Profile);
        foreach (BorrowedBehaviour borrowed in request.Borrowed)
        {
            profile = KernelProfiles.Borrow(profile, FindProfile("borrowed.from_profile", borrowed.FromProfile), borrowed.Name)
                ?? throw Refusals.BadField("borrowed.name", $"'{borrowed.Name}' is not a behaviour; CompareProfiles names those in which two profiles differ");
        }
        MachineConfig config = ToConfig(hosts, request.Machine);
        return (profile, config, ToConfig(request.Kernel, config));
    }

    public override Task<CompareProfilesResponse> CompareProfiles(CompareProfilesRequest request, ServerCallContext context)
    {
        var response = new CompareProfilesResponse();
        response.Differences.AddRange(KernelProfiles.Differences(FindProfile("from", request.From), FindProfile("to", request.To)).Select(delta =>
            new Behaviour { Name = delta.Name, ParentValue = delta.Before, Value = delta.After, Source = delta.Source }));
        return Task.FromResult(response);
    }

    public override Task<GetHostResponse> GetHost(GetHostRequest request, ServerCallContext context) =>
        Task.FromResult(new GetHostResponse { Host = Describe(hosts.Get(request.Host)) });

    public override Task<ListHostsResponse> ListHosts(ListHostsRequest request, ServerCallContext context)
    {
        var response = new ListHostsResponse();
        response.Hosts.AddRange(hosts.All.Select(Describe));
        return Task.FromResult(response);
    }

    public override Task<DeleteHostResponse> DeleteHost(DeleteHostRequest request, ServerCallContext context)
    {
        hosts.Remove(hosts.Get(request.Host), "deleted");
        return Task.FromResult(new DeleteHostResponse());
    }

    public override Task<ListProfilesResponse> ListProfiles(ListProfilesRequest request, ServerCallContext context)
    {
        var response = new ListProfilesResponse();
        foreach (KernelProfile profile in KernelProfiles.All)
        {
            var message = new Profile { Id = profile.Id, Title = profile.Title, Parent = profile.Parent?.Id ?? "", IsDefault = profile == KernelProfiles.Default };
            if (profile.Parent is not null)
            {
                message.Deltas.AddRange(KernelProfiles.Differences(profile.Parent, profile).Select(delta =>
                    new Behaviour { Name = delta.Name, ParentValue = delta.Before, Value = delta.After, Source = delta.Source }));
            }
            response.Profiles.Add(message);
        }
        return Task.FromResult(response);
    }

    private static KernelProfile FindProfile(string field, string id) => KernelProfiles.Find(id)
        ?? throw Refusals.BadField(field, $"'{id}' is not a profile; use one of {string.Join(", ", KernelProfiles.All)}");

    private static MachineConfig ToConfig(HostRegistry hosts, V1.MachineConfig? message)
    {
        var config = new MachineConfig();
        if (message is null)
        {
            return config;
        }
        ulong memory = message.HasMemoryBytes ? message.MemoryBytes : config.MemoryBytes;
        if (memory > hosts.Options.MaxHostMemoryBytes)
        {
            throw Refusals.BadField("machine.memory_bytes", $"{memory} is more than this daemon gives a host, {hosts.Options.MaxHostMemoryBytes}");
        }
        config = config with
        {
            MemoryBytes = memory,
            Platform = message.Platform switch
            {
                V1.Platform.Unspecified or V1.Platform.Amd => SimMachine.Platform.Amd,
                V1.Platform.ArmPkvm => SimMachine.Platform.ArmPkvm,
                V1.Platform.IntelTdx => SimMachine.Platform.IntelTdx,
                _ => throw Refusals.BadEnum("machine.platform", message.Platform),
            },
            Sev = message.HasSev ? message.Sev : config.Sev,
            SevEs = message.HasSevEs ? message.SevEs : config.SevEs,
            SevSnp = message.HasSevSnp ? message.SevSnp : config.SevSnp,
            MaxAsid = message.HasMaxAsid ? message.MaxAsid : config.MaxAsid,
            MinSevAsid = message.HasMinSevAsid ? message.MinSevAsid : config.MinSevAsid,
            SupportedVmsaFeatures = message.HasSupportedVmsaFeatures ? message.SupportedVmsaFeatures : config.SupportedVmsaFeatures,
            ApiMajor = message.HasApiMajor ? Structs.U8("machine.api_major", message.ApiMajor) : config.ApiMajor,
            ApiMinor = message.HasApiMinor ? Structs.U8("machine.api_minor", message.ApiMinor) : config.ApiMinor,
            Build = message.HasBuild ? Structs.U8("machine.build", message.Build) : config.Build,
            Smt = message.HasSmt ? message.Smt : config.Smt,
        };
        config = Platforms.With(config, message) with { Tdx = TdxPlatforms.With(config.Tdx, message.Tdx) };
        return config.Problem() is { } problem ? throw Refusals.BadField("machine", problem) : config;
    }

    private static SimKvm.KernelConfig ToConfig(V1.KernelConfig? message, MachineConfig machine)
    {
        var config = new SimKvm.KernelConfig();
        if (message is null)
        {
            return config;
        }
        config = config with
        {
            Tdp = message.HasTdp ? message.Tdp : config.Tdp,
            Smm = message.HasSmm ? message.Smm : config.Smm,
            SwProtectedVm = message.HasSwProtectedVm ? message.SwProtectedVm : config.SwProtectedVm,
            Hugepages2M = message.HasHugepages2M ? message.Hugepages2M : config.Hugepages2M,
            Hugepages1G = message.HasHugepages1G ? message.Hugepages1G : config.Hugepages1G,
        };
        return config.Problem(machine) is { } problem ? throw Refusals.BadField("kernel", problem) : config;
    }

    private static Host Describe(ServedHost host) => host.Run(sim =>
    {
        MachineConfig config = sim.Machine.Config;
        var message = new Host
        {
            Host_ = host.Id,
            Profile = sim.Profile.Id,
            Seed = sim.Machine.Seed,
            Calls = sim.Calls,
            AllocatedPages = (ulong)sim.Machine.AllocatedPages,
            LeakedPages = (ulong)sim.Machine.LeakedPages,
            Findings = sim.Machine.Findings.Count,
            Machine = new V1.MachineConfig
            {
                MemoryBytes = config.MemoryBytes,
                Sev = config.Sev,
                SevEs = config.SevEs,
                SevSnp = config.SevSnp,
                MaxAsid = config.MaxAsid,
                MinSevAsid = config.MinSevAsid,
                SupportedVmsaFeatures = config.SupportedVmsaFeatures,
                ApiMajor = config.ApiMajor,
                ApiMinor = config.ApiMinor,
                Build = config.Build,
                Smt = config.Smt,
                Platform = config.Platform switch
                {
                    SimMachine.Platform.ArmPkvm => V1.Platform.ArmPkvm,
                    SimMachine.Platform.IntelTdx => V1.Platform.IntelTdx,
                    _ => V1.Platform.Amd,
                },
                Product = Platforms.FromProduct(config.Product),
                Attestation = Platforms.FromConfig(config),
                Tdx = config.Platform == SimMachine.Platform.IntelTdx ? TdxPlatforms.FromConfig(config.Tdx) : null,
            },
            Kernel = new V1.KernelConfig
            {
                Tdp = sim.Config.Tdp,
                Smm = sim.Config.Smm,
                SwProtectedVm = sim.Config.SwProtectedVm,
                Hugepages2M = sim.Config.Hugepages2M,
                Hugepages1G = sim.Config.Hugepages1G,
            },
        };
        message.Pids.AddRange(sim.Processes.Select(process => (uint)process.Pid));
        return message;
    });
}
