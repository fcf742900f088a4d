/* a * b + c, the product and the sum rounded. */
#define NET_PLUS(a, b, c) NET_FLOAT(NET_FLOAT((a) * (b)) + (c))
