using System.IO.Compression;

namespace Grpc.Net.Compression;

/// <summary>A way to compress messages, known to both sides by the name in <c>grpc-encoding</c>.</summary>
public interface ICompressionProvider
{
    string EncodingName { get; }

    /// <param name="stream">Where the compressed bytes go. It is left open.</param>
    /// <param name="compressionLevel">Null: the provider's own level.</param>
    Stream CreateCompressionStream(Stream stream, CompressionLevel? compressionLevel);

    Stream CreateDecompressionStream(Stream stream);
}
