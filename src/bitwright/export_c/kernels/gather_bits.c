/* The codes that one window of a group sees, without gaps: [plane][words]. Outside the image they are 0. */
static void net_gather_bits(const net_window *g, net_bits codes, int32_t group, int32_t row, int32_t column,
                            net_word *patch, uint32_t words)
{
    const int32_t depth = g->channels / g->groups;
    int32_t p, ky, kx;
    uint32_t i;
    for (i = 0; i < words * (uint32_t)codes.planes; i++)
        patch[i] = 0;
    for (ky = 0; ky < g->kernel_rows; ky++) {
        const int32_t y = row * g->stride_rows - g->pad_rows + ky * g->dilation_rows;
        if (y < 0 || y >= g->height)
            continue;
        for (kx = 0; kx < g->kernel_columns;) {
            const int32_t x = column * g->stride_columns - g->pad_columns + kx * g->dilation_columns;
            int32_t pixels = 1;
            if (x < 0 || x >= g->width) {
                kx++;
                continue;
            }
            if (g->groups == 1 && g->dilation_columns == 1) { /* neighbors lie side by side */
                pixels = g->kernel_columns - kx;
                if (pixels > g->width - x)
                    pixels = g->width - x;
            }
            for (p = 0; p < codes.planes; p++)
                net_copy_bits(patch + (uint32_t)p * words, (uint32_t)((ky * g->kernel_columns + kx) * depth),
                              codes.word + (uint32_t)p * codes.plane_words,
                              (uint32_t)((y * g->width + x) * g->channels + group * depth), (uint32_t)(pixels * depth));
            kx += pixels;
        }
    }
}
