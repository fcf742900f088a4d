/* y[o] = sum over the terms of sums[t][o] * scale[t][o], then + add[o], then + beside[o] if there is such; each step is
   rounded. y may be beside. */
static void net_scale_sums(const net_sum *sums, int32_t terms, int32_t count, const float *scale, const float *add,
                           const net_float *beside, net_float *y)
{
    int32_t o, t;
    for (o = 0; o < count; o++) {
        float value = NET_FLOAT((float)sums[o] * scale[o]);
        for (t = 1; t < terms; t++) {
            const float more = NET_FLOAT((float)sums[t * count + o] * scale[t * count + o]);
            value = NET_FLOAT(value + more);
        }
        value = NET_FLOAT(value + add[o]);
        y[o] = beside != 0 ? NET_FLOAT(value + beside[o]) : value;
    }
}
