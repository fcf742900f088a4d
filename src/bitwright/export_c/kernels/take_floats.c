/* Floats [channel][pixel] into [pixel][channel]. Returns 1 for NaN and numbers beyond 2^20, which the net was not
   made for. */
static int net_take_floats(const float *in, int32_t channels, int32_t pixels, net_float *y)
{
    int32_t c, i;
    for (c = 0; c < channels; c++)
        for (i = 0; i < pixels; i++) {
            const float x = in[c * pixels + i];
            if (!(x >= -1048576.0F && x <= 1048576.0F))
                return 1;
            y[i * channels + c] = x;
        }
    return 0;
}
