/* z = x * y; z may be x. */
static void net_mul_scalar(const net_float *x, int32_t count, float y, net_float *z)
{
    int32_t i;
    for (i = 0; i < count; i++)
        z[i] = NET_FLOAT(x[i] * y);
}
