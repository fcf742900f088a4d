/* The mean of each channel over all pixels: their sum in order, divided by their number. */
static void net_average(const net_float *x, int32_t pixels, int32_t channels, net_float *y)
{
    int32_t c, i;
    for (c = 0; c < channels; c++) {
        float sum = 0.0F;
        for (i = 0; i < pixels; i++)
            sum = NET_FLOAT(sum + x[i * channels + c]);
        y[c] = NET_FLOAT(sum / (float)pixels);
    }
}
