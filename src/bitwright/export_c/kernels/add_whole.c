/* What inputs that never change add to the sums of a pixel. */
static void net_add_whole(net_sum *sums, const int32_t *more, int32_t count)
{
    int32_t o;
    for (o = 0; o < count; o++)
        sums[o] += more[o];
}
