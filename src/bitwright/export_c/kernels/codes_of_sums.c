/* code = how many of the output's thresholds its sum has reached; outputs with a 1 in `flip` count down. */
static void net_NAME(const net_sum *sums, int32_t count, const TYPE *thresholds, int32_t levels,
                                const uint8_t *flip, uint8_t *codes)
{
    int32_t o;
    for (o = 0; o < count; o++, thresholds += levels) {
        int32_t code = 0, above = levels;
        while (code < above) {
            const int32_t middle = (code + above) / 2;
            if (sums[o] >= thresholds[middle])
                code = middle + 1;
            else
                above = middle;
        }
        if (flip != 0 && ((flip[o >> 3] >> (o & 7)) & 1))
            code = levels - code;
        codes[o] = (uint8_t)code;
    }
}
