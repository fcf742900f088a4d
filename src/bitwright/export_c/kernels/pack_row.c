/* The codes of one pixel into the planes of bits, from number `at` on. */
static void net_pack_row(const uint8_t *codes, int32_t count, net_bits to, uint32_t at)
{
    int32_t i, p;
    for (p = 0; p < to.planes; p++) {
        net_word *plane = to.word + (uint32_t)p * to.plane_words;
        for (i = 0; i < count; i++) {
            const uint32_t place = at + (uint32_t)i, one = (uint32_t)1 << (place & 31u);
            if ((codes[i] >> p) & 1)
                plane[place >> 5] |= one;
            else
                plane[place >> 5] &= ~one;
        }
    }
}
