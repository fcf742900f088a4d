/* code = high where x has reached `value`, else low. */
static void net_step_codes(const net_float *x, int32_t count, float value, int32_t low, int32_t high, uint8_t *codes)
{
    int32_t i;
    for (i = 0; i < count; i++)
        codes[i] = (uint8_t)(x[i] >= value ? high : low);
}
