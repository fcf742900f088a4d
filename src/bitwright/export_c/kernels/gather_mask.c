/* A 1 for each number of the window that lies inside the image. */
static void net_gather_mask(const net_window *g, int32_t row, int32_t column, net_word *mask, uint32_t words)
{
    const int32_t depth = g->channels / g->groups;
    int32_t ky, kx, c;
    uint32_t i;
    for (i = 0; i < words; i++)
        mask[i] = 0;
    for (ky = 0; ky < g->kernel_rows; ky++)
        for (kx = 0; kx < g->kernel_columns; kx++) {
            const int32_t y = row * g->stride_rows - g->pad_rows + ky * g->dilation_rows;
            const int32_t x = column * g->stride_columns - g->pad_columns + kx * g->dilation_columns;
            if (y < 0 || y >= g->height || x < 0 || x >= g->width)
                continue;
            for (c = 0; c < depth; c++) {
                const uint32_t at = (uint32_t)((ky * g->kernel_columns + kx) * depth + c);
                mask[at >> 5] |= (uint32_t)1 << (at & 31u);
            }
        }
}
