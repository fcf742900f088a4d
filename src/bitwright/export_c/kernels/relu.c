/* y = the larger of x and 0; y may be x. */
static void net_relu(const net_float *x, int32_t count, net_float *y)
{
    int32_t i;
    for (i = 0; i < count; i++)
        y[i] = x[i] > 0.0F ? x[i] : 0.0F;
}
