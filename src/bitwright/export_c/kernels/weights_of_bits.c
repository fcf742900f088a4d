/* The weights of `count` outputs from `first` on as floats [number][count]: the bits of a weight choose one of the levels
   of its output. Bits: [output][plane][words]. */
static void net_weights_of_bits(const uint32_t *bits, int32_t planes, uint32_t words, const float *levels, int32_t first,
                                int32_t count, int32_t numbers, net_float *weight)
{
    int32_t o, k, q;
    for (o = 0; o < count; o++) {
        const uint32_t *from = bits + (uint32_t)((first + o) * planes) * words;
        for (k = 0; k < numbers; k++) {
            uint32_t code = 0;
            for (q = 0; q < planes; q++)
                code |= ((from[(uint32_t)q * words + ((uint32_t)k >> 5)] >> ((uint32_t)k & 31u)) & 1u) << q;
            weight[k * count + o] = levels[(uint32_t)((first + o) << planes) + code];
        }
    }
}
