/* The numbers that codes stand for: (code * mult + zero of the channel) * unit. */
static void net_decode_bytes(const uint8_t *codes, int32_t pixels, int32_t channels, int32_t mult, const int32_t *zero,
                             int32_t step, float unit, net_float *y)
{
    int32_t c, i;
    for (i = 0; i < pixels; i++)
        for (c = 0; c < channels; c++)
            *y++ = NET_FLOAT((float)(*codes++ * mult + zero[c * step]) * unit);
}
