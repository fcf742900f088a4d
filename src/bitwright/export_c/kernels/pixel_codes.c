/* The codes of one pixel: `table` says the code of each of the 256 values a pixel may have; `step` is 0 where one
   table serves all channels, else 256. */
static void net_pixel_codes(const uint8_t *in, int32_t channels, int32_t pixels, const uint8_t *table, int32_t step,
                            uint8_t *codes)
{
    int32_t c;
    for (c = 0; c < channels; c++)
        codes[c] = table[c * step + in[c * pixels]];
}
