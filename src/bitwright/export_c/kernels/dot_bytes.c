/* sums[o] = sum over the window of weight[o] * input, both whole numbers: weight [output][number]. */
static void net_NAME(const TYPE *weight, const net_short *patch, int32_t numbers, int32_t outputs, net_sum *sums)
{
    int32_t o, k;
    for (o = 0; o < outputs; o++, weight += numbers) {
        int32_t sum = 0;
        for (k = 0; k < numbers; k++)
            sum += weight[k] * patch[k];
        sums[o] = sum;
    }
}
