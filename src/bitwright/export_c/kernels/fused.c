/* a * b + c, rounded once: the instruction where the machine is known to have one, else in double, where the product is
   exact. -DNET_FUSED=f for your own. */
#ifndef NET_FUSED
#if defined(__GNUC__) && (defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA) || defined(__FMA__))
#define NET_FUSED(a, b, c) __builtin_fmaf(a, b, c)
#else
static float net_fused(float a, float b, float c)
{
    const double product = (double)a * (double)b, sum = product + (double)c;
    const float value = NET_FLOAT((float)sum);
    const double off = sum - (double)value, other = (double)value + 2.0 * off;
    const float next = NET_FLOAT((float)other);
    if (off != 0.0 && (double)next == other) { /* in the middle between two floats: what the sum has lost decides */
        const double part = sum - product, lost = (product - (sum - part)) + ((double)c - part);
        if ((off > 0.0 && lost > 0.0) || (off < 0.0 && lost < 0.0))
            return next;
    }
    return value;
}
#define NET_FUSED(a, b, c) net_fused(a, b, c)
#endif
#endif
