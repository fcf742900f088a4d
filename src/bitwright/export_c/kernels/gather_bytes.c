/* The whole numbers that one window of a group sees: mult * code + zero of its channel; outside the image, and up to `size`, 0. */
static void net_gather_bytes(const net_window *g, const uint8_t *codes, int32_t mult, const int16_t *zero,
                             int32_t zero_step, int32_t group, int32_t row, int32_t column, net_short *patch,
                             int32_t size)
{
    const int32_t depth = g->channels / g->groups;
    net_short *const end = patch + size;
    int32_t ky, kx, c;
    for (ky = 0; ky < g->kernel_rows; ky++)
        for (kx = 0; kx < g->kernel_columns; kx++) {
            const int32_t y = row * g->stride_rows - g->pad_rows + ky * g->dilation_rows;
            const int32_t x = column * g->stride_columns - g->pad_columns + kx * g->dilation_columns;
            const int there = y >= 0 && y < g->height && x >= 0 && x < g->width;
            const uint8_t *from = there ? codes + (y * g->width + x) * g->channels + group * depth : 0;
            for (c = 0; c < depth; c++)
                *patch++ = (net_short)(there ? mult * from[c] + zero[(group * depth + c) * zero_step] : 0);
        }
    while (patch < end)
        *patch++ = 0;
}
