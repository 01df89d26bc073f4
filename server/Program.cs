using VmmService.Server;

return await VmmServer.RunAsync(args);
