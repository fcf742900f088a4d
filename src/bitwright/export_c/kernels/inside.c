/* Whether every pixel of the window lies inside the image. */
static int net_inside(const net_window *g, int32_t row, int32_t column)
{
    const int32_t top = row * g->stride_rows - g->pad_rows;
    const int32_t left = column * g->stride_columns - g->pad_columns;
    return top >= 0 && left >= 0 && top + (g->kernel_rows - 1) * g->dilation_rows < g->height &&
           left + (g->kernel_columns - 1) * g->dilation_columns < g->width;
}
