/* The mean of each channel over an image. The sum of an image's floats is exact in double, so its order changes nothing. */
static void net_mean_image(const net_float *x, int32_t pixels, int32_t channels, net_float *y)
{
    int32_t c, i;
    for (c = 0; c < channels; c++) {
        double sum = 0.0;
        for (i = 0; i < pixels; i++)
            sum += (double)x[i * channels + c];
        y[c] = NET_FLOAT((float)(sum / (double)pixels));
    }
}
