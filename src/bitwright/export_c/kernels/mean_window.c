/* The mean of each channel in one window: the sum in the order of rows and columns, divided by `count`, or by the pixels
   inside the image where `count` is 0. */
static void net_mean_window(const net_window *g, const net_float *x, int32_t count, int32_t row, int32_t column,
                            net_float *y)
{
    int32_t ky, kx, c, inside = 0;
    for (c = 0; c < g->channels; c++)
        y[c] = 0.0F;
    for (ky = 0; ky < g->kernel_rows; ky++)
        for (kx = 0; kx < g->kernel_columns; kx++) {
            const int32_t at_y = row * g->stride_rows - g->pad_rows + ky * g->dilation_rows;
            const int32_t at_x = column * g->stride_columns - g->pad_columns + kx * g->dilation_columns;
            if (at_y < 0 || at_y >= g->height || at_x < 0 || at_x >= g->width)
                continue;
            for (c = 0; c < g->channels; c++)
                y[c] = NET_FLOAT(y[c] + x[(at_y * g->width + at_x) * g->channels + c]);
            inside++;
        }
    for (c = 0; c < g->channels; c++)
        y[c] = NET_FLOAT(y[c] / (float)(count != 0 ? count : inside));
}
