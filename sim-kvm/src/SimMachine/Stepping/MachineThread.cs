namespace SimMachine.Stepping;

/// <summary>A thread of a machine that no operating system runs on: executes instructions and issues firmware commands by hand.</summary>
public sealed class MachineThread(Machine machine, int id = 0) : SimThread(machine, id);
