/* The largest of each channel in one window; pixels outside the image do not count. */
static void net_NAME(const net_window *g, const TYPE *x, int32_t row, int32_t column, TYPE *y)
{
    int32_t ky, kx, c;
    int first = 1;
    for (ky = 0; ky < g->kernel_rows; ky++)
        for (kx = 0; kx < g->kernel_columns; kx++) {
            const int32_t at_y = row * g->stride_rows - g->pad_rows + ky * g->dilation_rows;
            const int32_t at_x = column * g->stride_columns - g->pad_columns + kx * g->dilation_columns;
            if (at_y < 0 || at_y >= g->height || at_x < 0 || at_x >= g->width)
                continue;
            for (c = 0; c < g->channels; c++) {
                const TYPE value = x[(at_y * g->width + at_x) * g->channels + c];
                if (first || value > y[c])
                    y[c] = value;
            }
            first = 0;
        }
}
