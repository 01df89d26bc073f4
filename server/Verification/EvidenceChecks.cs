using VmmService.Server.Wire;
using VmmService.V1;

namespace VmmService.Server.Verification;

/// <summary>Collects the checks of a verifier, in the order in which they are made, and draws the conclusion.</summary>
internal sealed class EvidenceChecks
{
    private readonly EvidenceFindings _findings = new();
    private bool _failed;
    private bool _lacking;

    /// <summary>A check that was made.</summary>
    /// <param name="id">Stable.</param>
    /// <param name="demand">What must be.</param>
    /// <param name="problem">What was found instead; null where it holds.</param>
    public bool Made(string id, string demand, string? problem)
    {
        _failed |= problem is not null;
        Add(id, demand, problem is null ? EvidenceCheckResult.Held : EvidenceCheckResult.Failed, problem);
        return problem is null;
    }

    /// <summary>A check without which it is not known whose the evidence is, and that could not be made.</summary>
    /// <param name="lack">What to give, or which other check has to hold.</param>
    public void Lacks(string id, string demand, string lack)
    {
        _lacking = true;
        NotAsked(id, demand, lack);
    }

    /// <summary>A check that nobody asked for.</summary>
    /// <param name="lack">What to give.</param>
    public void NotAsked(string id, string demand, string lack) => Add(id, demand, EvidenceCheckResult.NotMade, lack);

    /// <summary>The conclusion.</summary>
    /// <param name="simulated">A certificate says so.</param>
    public EvidenceFindings Conclude(bool simulated)
    {
        _findings.Verdict = _failed ? EvidenceVerdict.Refused : _lacking ? EvidenceVerdict.Incomplete : EvidenceVerdict.Accepted;
        _findings.Simulated = simulated;
        return _findings;
    }

    private void Add(string id, string demand, EvidenceCheckResult result, string? found) =>
        _findings.Checks.Add(new EvidenceCheck { Id = id, Demand = demand, Result = result, Found = Printable(Refusals.Bounded(found ?? "")) });

    // It may quote what others wrote, and ends on somebody's terminal.
    private static string Printable(string text) => text.Any(char.IsControl) ? string.Concat(text.Select(each => char.IsControl(each) ? '\uFFFD' : each)) : text;
}
