/* [pixel][channel] into [channel][pixel]. */
static void net_flatten(const net_float *x, int32_t pixels, int32_t channels, net_float *y)
{
    int32_t c, i;
    for (c = 0; c < channels; c++)
        for (i = 0; i < pixels; i++)
            *y++ = x[i * channels + c];
}
