/*
 * bitwright: a packed net as gates
 * x[i]: input i, 1 where it is at least 0.5
 * y: the class
 * count_C: the sum of class C
 */
#include <stdint.h>

#ifndef CIRCUIT_WORD
#define CIRCUIT_WORD uint64_t /* any type with & | ^ ~: a sample per bit */
#endif
#if defined(__GNUC__)
#define CIRCUIT_PART static __attribute__((noinline)) void
#else
#define CIRCUIT_PART static void
#endif

CIRCUIT_PART nor_net_part_0(const CIRCUIT_WORD *x, CIRCUIT_WORD *t)
{
    const CIRCUIT_WORD n4 = ~(x[0] | x[1]);
    const CIRCUIT_WORD n5 = x[2] ^ n4;
    const CIRCUIT_WORD n6 = ~x[2] & n4;
    t[0] = n4;
    t[1] = n5;
    t[2] = n6;
    (void)x;
    (void)t;
}

/* x[3] are the inputs, y[6] the outputs, lowest bit first */
void nor_net_circuit(const CIRCUIT_WORD *x, CIRCUIT_WORD *y);
void nor_net_circuit(const CIRCUIT_WORD *x, CIRCUIT_WORD *y)
{
    CIRCUIT_WORD t[3];
    nor_net_part_0(x, t);
    y[0] = ~x[2]; /* y[0] */
    y[1] = x[0] ^ x[0]; /* y[1] */
    y[2] = t[0]; /* count_0[0] */
    y[3] = ~t[1]; /* count_1[0] */
    y[4] = t[2]; /* count_1[1] */
    y[5] = x[0] ^ x[0]; /* count_2[0] */
    (void)t;
}
