/* Where sums are kept wider than float (x87), each result is stored, which rounds it. */
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
static float net_rounded(float x)
{
    volatile float stored = x;
    return stored;
}
#define NET_FLOAT(x) net_rounded(x)
#else
#define NET_FLOAT(x) (x)
#endif
