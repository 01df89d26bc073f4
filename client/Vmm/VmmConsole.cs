namespace VmmService.Vmm;

/// <summary>Where the command writes: results to <see cref="Output"/>, everything else to <see cref="Error"/>.</summary>
/// <param name="Output">Standard output.</param>
/// <param name="Error">Standard error.</param>
/// <param name="ErrorIsTerminal">A person is watching standard error, so a progress bar makes sense.</param>
public sealed record VmmConsole(TextWriter Output, TextWriter Error, bool ErrorIsTerminal);
