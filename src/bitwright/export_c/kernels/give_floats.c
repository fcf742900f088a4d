/* The answer, [pixel][channel], as the net gives it: [channel][pixel]. */
static void net_give_floats(const net_float *y, int32_t channels, int32_t pixels, float *out)
{
    int32_t c, i;
    for (c = 0; c < channels; c++)
        for (i = 0; i < pixels; i++)
            out[c * pixels + i] = y[i * channels + c];
}
