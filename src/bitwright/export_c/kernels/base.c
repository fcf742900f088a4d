#if defined(__FAST_MATH__)
#error "compile without -ffast-math: it changes the order of sums, and with it the answers"
#endif

/* Every multiply and every add is rounded by itself. Compilers that would fuse them are told not to; clang does not listen
   where it is called with -ffp-contract=fast. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

/* The arena holds words, sums and floats one after the other: their pointers may point at the same memory. */
#if defined(__GNUC__)
#define NET_ALIAS __attribute__((may_alias))
#else
#define NET_ALIAS
#endif
typedef uint32_t NET_ALIAS net_word;
typedef int32_t NET_ALIAS net_sum;
typedef int16_t NET_ALIAS net_short;
typedef float NET_ALIAS net_float;

/* A window that slides over an image; a linear layer is a window of one pixel over one pixel. */
typedef struct {
    int32_t height, width, channels; /* of the input */
    int32_t rows, columns;           /* of the result */
    int32_t kernel_rows, kernel_columns;
    int32_t stride_rows, stride_columns;
    int32_t pad_rows, pad_columns;
    int32_t dilation_rows, dilation_columns;
    int32_t groups;
} net_window;

/* Codes as bits: plane p holds bit p of each code, one after the other, without gaps. */
typedef struct {
    net_word *word;
    uint32_t plane_words;
    int32_t planes;
} net_bits;
