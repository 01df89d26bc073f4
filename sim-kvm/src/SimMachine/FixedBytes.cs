using System.Runtime.CompilerServices;

namespace SimMachine;

// Byte fields of structures that firmware lays out: digests, identities, nonces. They convert to spans.

[InlineArray(16)]
public struct Bytes16
{
    private byte _first;
}

[InlineArray(32)]
public struct Bytes32
{
    private byte _first;
}

[InlineArray(48)]
public struct Bytes48
{
    private byte _first;
}

[InlineArray(64)]
public struct Bytes64
{
    private byte _first;
}

[InlineArray(512)]
public struct Bytes512
{
    private byte _first;
}
