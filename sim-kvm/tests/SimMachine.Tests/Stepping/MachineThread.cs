using SimMachine.Stepping;

namespace SimMachine.Tests;

/// <summary>A thread for tests that execute instructions and firmware commands without an operating system.</summary>
internal sealed class MachineThread(Machine machine, int id = 0) : SimThread(machine, id);
