/* sums[o] = sum over the window of weight[o] * input. The weight is constant + sum over q of weight_mult[q] * bit q: where a
   bit is 1, the input is added. Bits: [output][plane][words]; behind the window they are 0, and the window has whole words. */
static void net_dot_bytes1(const uint32_t *weight, const int32_t *weight_mult, int32_t weight_planes, int32_t constant,
                           const net_short *patch, uint32_t words, int32_t outputs, net_sum *sums)
{
    int32_t o, q, all = 0;
    uint32_t i, bit;
    for (i = 0; i < words * 32u; i++)
        all += patch[i];
    for (o = 0; o < outputs; o++) {
        int32_t sum = constant * all;
        for (q = 0; q < weight_planes; q++) {
            const net_short *x = patch;
            int32_t chosen = 0;
            for (i = 0; i < words; i++, x += 32) {
                const uint32_t w = *weight++;
                for (bit = 0; bit < 32u; bit++)
                    chosen += (w >> bit) & 1u ? x[bit] : 0;
            }
            sum += weight_mult[q] * chosen;
        }
        sums[o] = sum;
    }
}
