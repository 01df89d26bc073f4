// The entry of the daemon: health and reflection on the configured endpoints.
using Grpc.Health.V1;
using VmmService.Server.Health;
using VmmService.Server.Reflection;

var builder = WebApplication.CreateBuilder(args);
builder.Services.AddGrpc();
builder.Services.AddSingleton(new HealthStatus([Health.Descriptor.FullName]));
builder.Services.AddSingleton(new ReflectionIndex(
    [Health.Descriptor, Grpc.Reflection.V1.ServerReflection.Descriptor, Grpc.Reflection.V1Alpha.ServerReflection.Descriptor]));

var app = builder.Build();
app.MapGrpcService<HealthService>();
app.MapGrpcService<ReflectionService>();
app.MapGrpcService<ReflectionV1AlphaService>();
await app.RunAsync();
