/* y = x, or x * slope where x is below 0; one slope a channel (step 1) or one for all (step 0). y may be x. */
static void net_prelu(const net_float *x, int32_t pixels, int32_t channels, const float *slope, int32_t step, net_float *y)
{
    int32_t c, i;
    for (i = 0; i < pixels; i++)
        for (c = 0; c < channels; c++, x++, y++)
            *y = *x > 0.0F ? *x : NET_FLOAT(*x * slope[c * step]);
}
