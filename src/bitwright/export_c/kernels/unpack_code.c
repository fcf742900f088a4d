/* The code at one place. */
static uint8_t net_unpack_code(net_bits from, uint32_t at)
{
    uint32_t code = 0;
    int32_t p;
    for (p = 0; p < from.planes; p++)
        code |= ((from.word[(uint32_t)p * from.plane_words + (at >> 5)] >> (at & 31u)) & 1u) << p;
    return (uint8_t)code;
}
