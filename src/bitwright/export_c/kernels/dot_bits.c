/* sums[o] = sum over the window of weight[o] * input, both whole numbers.

   weight  = constant + sum over q of weight_mult[q] * bit q
   input   = sum over p of input_mult[p] * bit p of the window
   so a pair of planes counts the bits that are 1 in both. `base`: what the input's constant adds, or NULL. */
static void net_dot_bits(const uint32_t *weight, const int32_t *weight_mult, int32_t weight_planes, int32_t constant,
                         const net_word *patch, const int32_t *input_mult, int32_t input_planes, uint32_t words,
                         const int32_t *base, int32_t outputs, net_sum *sums)
{
    int32_t o, p, q, common = 0;
    uint32_t i;
    if (constant != 0)
        for (p = 0; p < input_planes; p++) {
            int32_t ones = 0;
            for (i = 0; i < words; i++)
                ones += NET_POPCOUNT(patch[(uint32_t)p * words + i]);
            common += constant * input_mult[p] * ones;
        }
    for (o = 0; o < outputs; o++) {
        int32_t sum = base != 0 ? common + base[o] : common;
        for (q = 0; q < weight_planes; q++, weight += words)
            for (p = 0; p < input_planes; p++) {
                const net_word *x = patch + (uint32_t)p * words;
                int32_t both = 0;
                for (i = 0; i < words; i++)
                    both += NET_POPCOUNT(weight[i] & x[i]);
                sum += weight_mult[q] * input_mult[p] * both;
            }
        sums[o] = sum;
    }
}
