/* z = x + y; z may be x or y. */
static void net_add(const net_float *x, const net_float *y, int32_t count, net_float *z)
{
    int32_t i;
    for (i = 0; i < count; i++)
        z[i] = NET_FLOAT(x[i] + y[i]);
}
