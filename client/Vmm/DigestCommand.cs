using System.CommandLine;

namespace VmmService.Vmm;

/// <summary>vmm digest: launch digests without a launch. Each command below it has a file of its own, for SNP and SEV; compute, diff and explain have a command tdx of their own, for MRTDs.</summary>
internal static class DigestCommand
{
    public static Command Create(VmmConsole console) => new("digest", "Compute launch digests, tell why two differ, find out what an unexpected one is of.")
    {
        DigestComputeCommand.Create(console), DigestDiffCommand.Create(console), DigestExplainCommand.Create(console), DigestRtmrCommand.Create(console),
    };
}
