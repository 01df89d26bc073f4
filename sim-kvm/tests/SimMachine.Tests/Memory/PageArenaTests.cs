using SimMachine.Addressing;
using Xunit;

namespace SimMachine.Tests.Memory;

public class PageArenaTests
{
    [Fact]
    public unsafe void Rent_PrefersTheRecycledPage()
    {
        var arena = new PageArena();
        var first = arena.Rent();
        var second = arena.Rent();
        arena.Return(first);
        Assert.True(arena.Rent() == first);
        arena.Return(first);
        arena.Return(second);
        Assert.Equal(0, arena.RentedPages);
    }

    [Fact]
    public unsafe void Rent_ByManyThreads_GivesEachPageToOneOwner()
    {
        var arena = new PageArena();
        Parallel.For(0, 4, worker =>
        {
            for (var round = 0; round < 200; round++)
            {
                var pages = new nint[16];
                for (var i = 0; i < pages.Length; i++)
                {
                    pages[i] = (nint)arena.Rent();
                    Assert.Equal(0, pages[i] % PageSize.Bytes);
                    *(long*)pages[i] = worker * 1000 + i;
                }
                for (var i = 0; i < pages.Length; i++)
                {
                    Assert.Equal(worker * 1000 + i, *(long*)pages[i]);
                    arena.Return((byte*)pages[i]);
                }
            }
        });
        Assert.Equal(0, arena.RentedPages);
    }
}
