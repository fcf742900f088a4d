/* Pixels [channel][pixel] into floats [pixel][channel]. scale NULL: k / 255; else k * scale[c] - offset[c]. */
static void net_pixels_to_floats(const uint8_t *in, int32_t channels, int32_t pixels, const float *scale,
                                 const float *offset, net_float *y)
{
    int32_t c, i;
    for (c = 0; c < channels; c++)
        for (i = 0; i < pixels; i++) {
            const float k = (float)in[c * pixels + i];
            if (scale != 0) {
                const float product = NET_FLOAT(k * scale[c]);
                y[i * channels + c] = NET_FLOAT(product - offset[c]);
            } else {
                y[i * channels + c] = NET_FLOAT(k / 255.0F);
            }
        }
}
