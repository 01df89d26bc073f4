using System.Reflection;
using Grpc.Core;
using SimKvm;
using SimKvm.Profiles;
using SimKvm.Userspace;
using VmmService.Server.Sessions;
using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Services;

/// <summary>vmmservice.v1.CapabilitiesService: what this daemon is and can do.</summary>
internal sealed class CapabilitiesServiceImpl(HostRegistry hosts) : CapabilitiesService.CapabilitiesServiceBase
{
    public override Task<CapabilitiesResponse> Capabilities(CapabilitiesRequest request, ServerCallContext context)
    {
        VmmServerOptions options = hosts.Options;
        var response = new CapabilitiesResponse
        {
            Version = typeof(CapabilitiesServiceImpl).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0] ?? "",
            DefaultProfile = KernelProfiles.Default.Id,
            Limits = new Limits
            {
                MaxMessageBytes = (ulong)options.MaxMessageBytes,
                MaxReadBytes = (ulong)options.MaxReadBytes,
                MaxHosts = (uint)options.MaxHosts,
                MaxProcessesPerHost = (uint)options.MaxProcessesPerHost,
                MaxFdsPerProcess = (uint)options.MaxFdsPerProcess,
                MaxHostMemoryBytes = options.MaxHostMemoryBytes,
                MaxTranscriptPage = (uint)options.MaxTranscriptPage,
                ProcessIdleSeconds = (uint)options.ProcessIdleSeconds,
                MaxInspectPage = (uint)options.MaxInspectPage,
                MaxScriptSteps = (uint)options.MaxScriptSteps,
            },
        };
        response.Profiles.AddRange(KernelProfiles.All.Select(profile => profile.Id));
        response.ErrnoAs.AddRange([OutcomeInterceptor.AsOutcome, OutcomeInterceptor.AsStatus]);
        foreach (IoctlRow row in IoctlTable.All)
        {
            var ioctl = new Ioctl { Name = row.Name, Request = row.Request, Fd = Name(row.Fd), Argument = row.Argument, ArgumentSize = (uint)row.ArgumentSize };
            ioctl.Profiles.AddRange(KernelProfiles.All.Where(row.Exists).Select(profile => profile.Id));
            response.Ioctls.Add(ioctl);
        }
        foreach (var unknown in hosts.All
            .SelectMany(host => host.Run(sim => sim.UnknownIoctls.ToArray()))
            .GroupBy(unknown => (unknown.Fd, unknown.Request))
            .OrderBy(group => group.Key))
        {
            response.UnknownIoctls.Add(new UnknownIoctl
            {
                Fd = Name(unknown.Key.Fd),
                Request = unknown.Key.Request,
                Count = (ulong)unknown.Sum(each => (long)each.Count),
            });
        }
        return Task.FromResult(response);
    }

    private static string Name(FdKind fd) => fd switch
    {
        FdKind.Kvm => "/dev/kvm",
        FdKind.Vm => "VM",
        FdKind.Vcpu => "vCPU",
        FdKind.GuestMemfd => "guest_memfd",
        FdKind.Sev => "/dev/sev",
        FdKind.Pipe => "pipe",
        FdKind.Memfd => "memfd",
        FdKind.Proc => "procfs",
        FdKind.TdxModule => "TDX module",
        _ => fd.ToString(),
    };
}
