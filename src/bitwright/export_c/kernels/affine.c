/* y = x * scale + add, one pair of numbers a channel (step 1) or one for all (step 0); each step rounded. y may be x. */
static void net_affine(const net_float *x, int32_t pixels, int32_t channels, const float *scale, const float *add,
                       int32_t step, net_float *y)
{
    int32_t c, i;
    for (i = 0; i < pixels; i++)
        for (c = 0; c < channels; c++, x++, y++) {
            const float product = NET_FLOAT(*x * scale[c * step]);
            *y = NET_FLOAT(product + add[c * step]);
        }
}
