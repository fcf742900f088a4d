/* How many bits of a word are 1: the instruction where the machine is known to have one. -DNET_POPCOUNT=f for your own. */
#ifndef NET_POPCOUNT
#if defined(__GNUC__) && (defined(__POPCNT__) || defined(__aarch64__) || defined(_ARCH_PWR7) || defined(__riscv_zbb))
#define NET_POPCOUNT(x) __builtin_popcount(x)
#else
static int32_t net_popcount(uint32_t x)
{
    x -= (x >> 1) & 0x55555555u;
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
    x = (x + (x >> 4)) & 0x0F0F0F0Fu;
    return (int32_t)((x * 0x01010101u) >> 24);
}
#define NET_POPCOUNT(x) net_popcount(x)
#endif
#endif
