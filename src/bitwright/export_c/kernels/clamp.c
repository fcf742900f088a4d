/* y = x kept in low..high; y may be x. */
static void net_clamp(const net_float *x, int32_t count, float low, float high, net_float *y)
{
    int32_t i;
    for (i = 0; i < count; i++)
        y[i] = x[i] < low ? low : x[i] > high ? high : x[i];
}
