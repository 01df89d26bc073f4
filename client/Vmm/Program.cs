// The process around the command: signals become a cancelled token, the terminal is looked at once, the exit code is handed on.
using System.Runtime.InteropServices;
using VmmService.Vmm;

using var cancellation = new CancellationTokenSource();
void OnSignal(PosixSignalContext signal)
{
    // The first signal asks for an orderly end; a second one gets the default treatment.
    signal.Cancel = !cancellation.IsCancellationRequested;
    cancellation.Cancel();
}

using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, OnSignal);
using PosixSignalRegistration terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, OnSignal);

var console = new VmmConsole(Console.Out, Console.Error, ErrorIsTerminal: !Console.IsErrorRedirected);
return await VmmCommand.RunAsync(args, console, cancellation.Token);
