/* y[o] = the sum over the window of x * weight, product by product in the order of rows, columns, channels, then
   + bias[o]. Computes `count` outputs from `first` on, all of one group: weight [row][column][channel][count]. */
static void net_NAME(const net_window *g, const net_float *x, const net_float *weight, const float *bias,
                     int32_t group, int32_t first, int32_t count, int32_t outputs, net_float *y)
{
    const int32_t depth = g->channels / g->groups;
    int32_t row, column, ky, kx, c, o;
    for (row = 0; row < g->rows; row++)
        for (column = 0; column < g->columns; column++) {
            net_float *to = y + (row * g->columns + column) * outputs + first;
            for (o = 0; o < count; o++)
                to[o] = 0.0F;
            for (ky = 0; ky < g->kernel_rows; ky++)
                for (kx = 0; kx < g->kernel_columns; kx++) {
                    const int32_t at_y = row * g->stride_rows - g->pad_rows + ky * g->dilation_rows;
                    const int32_t at_x = column * g->stride_columns - g->pad_columns + kx * g->dilation_columns;
                    const net_float *from, *w;
                    if (at_y < 0 || at_y >= g->height || at_x < 0 || at_x >= g->width)
                        continue;
                    from = x + (at_y * g->width + at_x) * g->channels + group * depth;
                    w = weight + (ky * g->kernel_columns + kx) * depth * count;
                    for (c = 0; c < depth; c++, w += count)
                        for (o = 0; o < count; o++)
                            to[o] = TYPE(from[c], w[o], to[o]);
                }
            if (bias != 0)
                for (o = 0; o < count; o++)
                    to[o] = NET_FLOAT(to[o] + bias[first + o]);
        }
}
