/* code = how many thresholds x has reached; `step` is 0 where one row of thresholds serves all channels. */
static void net_codes_of_floats(const net_float *x, int32_t count, const float *thresholds, int32_t levels, int32_t step,
                                const uint8_t *flip, uint8_t *codes)
{
    int32_t c, l;
    for (c = 0; c < count; c++, thresholds += step) {
        int32_t code = 0;
        for (l = 0; l < levels; l++)
            code += x[c] >= thresholds[l];
        if (flip != 0 && ((flip[c >> 3] >> (c & 7)) & 1))
            code = levels - code;
        codes[c] = (uint8_t)code;
    }
}
