/* code = x * multiply / divide, rounded (a half to the even number), + base, kept in low..high. */
static void net_round_codes(const net_float *x, int32_t count, float multiply, float divide, int32_t base, int32_t low,
                            int32_t high, uint8_t *codes)
{
    int32_t i;
    for (i = 0; i < count; i++) {
        float place = divide != 1.0F ? NET_FLOAT(x[i] / divide) : NET_FLOAT(x[i] * multiply);
        int32_t whole;
        if (place < (float)(low - base))
            place = (float)(low - base);
        if (place > (float)(high - base))
            place = (float)(high - base);
        whole = (int32_t)place; /* towards 0 */
        place -= (float)whole;  /* exact */
        if (place > 0.5F || (place == 0.5F && (whole & 1)))
            whole++;
        if (place < -0.5F || (place == -0.5F && (whole & 1)))
            whole--;
        codes[i] = (uint8_t)(whole + base);
    }
}
