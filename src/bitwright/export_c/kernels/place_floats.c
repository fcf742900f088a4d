/* y[row][column][channel] = x[row * step + top][column * step + left][channel + front] where x has such a number, else
   `value`. It cuts, takes every second pixel, and pads. */
static void net_place_floats(const net_float *x, int32_t height, int32_t width, int32_t channels, const int32_t *start,
                             const int32_t *step, float value, int32_t rows, int32_t columns, int32_t outputs, net_float *y)
{
    int32_t r, s, o;
    for (r = 0; r < rows; r++)
        for (s = 0; s < columns; s++)
            for (o = 0; o < outputs; o++) {
                const int32_t at_y = r * step[0] + start[0], at_x = s * step[1] + start[1], c = o * step[2] + start[2];
                const int there = at_y >= 0 && at_y < height && at_x >= 0 && at_x < width && c >= 0 && c < channels;
                *y++ = there ? x[(at_y * width + at_x) * channels + c] : value;
            }
}
