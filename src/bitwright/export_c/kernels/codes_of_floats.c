/* code = how many thresholds x has reached; `step` is 0 where one row of thresholds serves all channels. */
static void net_codes_of_floats(const net_float *x, int32_t count, const float *thresholds, int32_t levels, int32_t step,
                                const uint8_t *flip, uint8_t *codes)
{
    int32_t c;
    for (c = 0; c < count; c++, thresholds += step) {
        int32_t code = 0, above = levels;
        while (code < above) {
            const int32_t middle = (code + above) / 2;
            if (x[c] >= thresholds[middle])
                code = middle + 1;
            else
                above = middle;
        }
        if (flip != 0 && ((flip[c >> 3] >> (c & 7)) & 1))
            code = levels - code;
        codes[c] = (uint8_t)code;
    }
}
