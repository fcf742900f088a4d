/* Sets `count` bits of `to`, which are 0, to those of `from`. */
static void net_copy_bits(net_word *to, uint32_t at, const net_word *from, uint32_t start, uint32_t count)
{
    while (count > 0) {
        const uint32_t n = count < 32u ? count : 32u;
        const uint32_t off = start & 31u, place = at & 31u;
        uint32_t bits = from[start >> 5] >> off;
        if (off + n > 32u)
            bits |= from[(start >> 5) + 1u] << (32u - off);
        if (n < 32u)
            bits &= ((uint32_t)1 << n) - 1u;
        to[at >> 5] |= bits << place;
        if (place + n > 32u)
            to[(at >> 5) + 1u] |= bits >> (32u - place);
        start += n;
        at += n;
        count -= n;
    }
}
