/* The answer, [pixel][channel], as the net gives it: [channel][pixel]. -0 becomes 0. */
static void net_give_floats(const net_float *y, int32_t channels, int32_t pixels, float *out)
{
    int32_t c, i;
    for (c = 0; c < channels; c++)
        for (i = 0; i < pixels; i++)
            out[c * pixels + i] = NET_FLOAT(y[i * channels + c] + 0.0F);
}
