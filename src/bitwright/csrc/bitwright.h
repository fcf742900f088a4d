// The C ABI of bitwright_core: everything a caller (ctypes, an ONNX Runtime operator, a C program) needs.
//
// Words.  A "code" tensor with A bit planes is [N][H*W][A][Cw] uint32, channels last, no border.
//         Cw = groups * ceil(Cg / 32), Cg = C / groups; channel c of group g is bit (c % 32) of word
//         g * ceil(Cg / 32) + c / 32. Bits beyond Cg are zero; kernels rely on it and keep it so.
// Bytes.  The same code as one uint8 per element: [N][H*W][C].
// Values. Weight W = w_zero + sum_q w_mult[q] * bit_q.  Input X = x_zero[c] + sum_p x_mult[p] * bit_p; what
//         x_zero contributes does not depend on the data, so the caller gives it as the table `corr`.
// Result. I[n,oy,ox,o] = sum over taps inside the image of W * (X - x_zero) + corr[row][col][o], int32,
//         row = row_class[oy], col = col_class[ox].
//
// Every function that returns int returns 0, or an error code whose text bw_last_error() gives (per thread).
// No function throws, none keeps a pointer after it returned.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define BW_API __declspec(dllexport)
#else
#define BW_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BW_ABI_VERSION 11
#define BW_MAX_PLANES 8
#define BW_MAX_POOL 8  // of pool_kernel

enum bw_error { BW_OK = 0, BW_BAD_ARGUMENT = 1, BW_BAD_ISA = 2, BW_BAD_LAYOUT = 3, BW_NO_MEMORY = 4, BW_OUT_OF_RANGE = 5 };

// A linear layer is h = w = kh = kw = 1; a Conv1d is h = kh = 1; linear-after-flatten has kernel = whole map.
typedef struct bw_conv {
  int64_t n, h, w, c, o;
  int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  int64_t groups, oh, ow;
  int64_t x_planes, w_planes;   // bytes: codes are below 2^x_planes (0: any byte), w_planes is ignored
  int64_t w_zero;               // ignored by the byte convolution
  const int32_t* x_mult;        // [x_planes]
  const int32_t* w_mult;        // [w_planes]
  int64_t row_classes, col_classes;
  const int32_t* row_class;     // [oh]
  const int32_t* col_class;     // [ow]
  const int32_t* corr;          // [row_classes][col_classes][o]
} bw_conv;

enum bw_mode { BW_INT32 = 0, BW_FLOAT32 = 1, BW_WORDS = 2, BW_BYTES = 3 };

// An even ladder: code = rint(y * value) + base or rint(y / value) + base, kept in low..high; halves go to the even number.
// Or one step: code = y >= value ? high : low. NaN has the code 0. The caller has proven that this is the code for every y.
// A division takes long: bw_grid_prepare looks for numbers with rint(fma(z, quick, z * rest)) + base, z = y kept in
// bottom..top, the same code for every y, and proves them at each change of the code. quick = 0: none, or not prepared.
enum bw_grid_kind { BW_GRID_MULTIPLY = 0, BW_GRID_DIVIDE = 1, BW_GRID_STEP = 2 };
typedef struct bw_grid {
  float value;
  int32_t kind, base, low, high;
  float quick, rest, bottom, top;
} bw_grid;

// What becomes of I. All tensors are channels last. The structs hold nothing that changes from call to call, so
// that one may be shared by threads.
//   BW_INT32    out = I
//   BW_FLOAT32  out = fl(fl(float(I) * scale[o]) + add[o]), then fl(out + residual) if residual (like out), then
//               max(out, 0) with relu; `extra`, if given, gets codes of out: by `grid` one uint8 per element; else
//               out >= cuts[o] (0 without cuts), the other way round where flip[o], as one uint8 per element with
//               extra_bytes, else as one plane of words, [N][OH*OW][1][ceil(O/32)]; with levels > 1 the code
//               #{l : out >= cuts[l][o]} as out_planes planes of words
//               With pool_kernel the floats are those of a max-pooling (square windows) of the convolution, without residual
//   BW_WORDS    code = #{l : I >= thresholds[l][o]} (ascending in l), levels - code where flip[o];
//               out gets its out_planes binary digits as words with out_groups groups
//   BW_BYTES    the same code, one uint8 per element; with `grid` instead of thresholds the code of
//               fl(fl(float(I) * scale[o]) + add[o])
typedef struct bw_output {
  int64_t mode;
  int64_t levels, out_planes, out_groups;
  const float* scale;           // [o]
  const float* add;             // [o]
  const int32_t* thresholds;    // [levels][o]
  const uint8_t* flip;          // [o] or null
  int64_t relu, extra_bytes;
  const bw_grid* grid;          // or null
  const float* cuts;            // [o], of floats with levels > 1 [levels][o], or null
  int64_t pool_kernel, pool_stride, pool_pad;  // 0: no pooling
} bw_output;

// float -> code. thresholds [levels], or [c][levels] if per_channel; NaN counts no level; flip as above. Bytes of a
// shared ladder without flip come from `grid`, where it is given: thresholds may then be null.
typedef struct bw_pack {
  int64_t n, h, w, c;
  int64_t nchw;                 // 0: x is [n][h][w][c], 1: x is [n][c][h][w]
  int64_t levels, per_channel;
  int64_t planes, groups;       // of the words; ignored when bytes are written
  const float* thresholds;
  const uint8_t* flip;          // [c] or null
  const bw_grid* grid;          // or null
} bw_pack;

// `channels` counts words per plane for bw_maxpool_bits, bytes for bw_maxpool_bytes, and floats, of one plane, for the others.
typedef struct bw_pool {
  int64_t n, h, w, channels, planes;
  int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, oh, ow;
} bw_pool;

BW_API int bw_abi_version(void);
BW_API const char* bw_last_error(void);
BW_API const char* bw_isa(void);               // the one in use; null if BITWRIGHT_ISA names one we cannot run
BW_API const char* bw_available_isas(void);    // "portable avx2 avx512 amx": what this machine can run, slowest first
BW_API int bw_force_isa(const char* name);     // "" returns to the best one. Weights must be packed again.

// Prepared weights: a header that says which kernel layout follows, then that layout. 64-byte aligned dst.
// `bits` is uint8 0/1 [w_planes][o][c/groups][kh][kw]; `values` is int16 [o][kh][kw][c/groups], -255..255.
// The blob depends on c, o, kernel, dilation, groups, planes and multipliers, of bytes also on the stride; never on n, h, w or
// padding.
BW_API int64_t bw_weights_size(const bw_conv* conv);           // bytes, or -1
BW_API int bw_weights_pack(const bw_conv* conv, const uint8_t* bits, void* dst);
BW_API int64_t bw_byte_weights_size(const bw_conv* conv);      // bytes, or -1
BW_API int bw_byte_weights_pack(const bw_conv* conv, const int16_t* values, void* dst);

BW_API int bw_grid_prepare(bw_grid* grid);

BW_API int bw_conv_bits(const bw_conv* conv, const uint32_t* x, const void* weights, const bw_output* output,
                        void* out, const float* residual, void* extra, int threads);
BW_API int bw_conv_bytes(const bw_conv* conv, const uint8_t* x, const void* weights, const bw_output* output,
                         void* out, const float* residual, void* extra, int threads);
BW_API int bw_pack_bits(const bw_pack* pack, const float* x, uint32_t* out, int threads);
BW_API int bw_pack_bytes(const bw_pack* pack, const float* x, uint8_t* out, int threads);
BW_API int bw_maxpool_bits(const bw_pool* pool, const uint32_t* x, uint32_t* out, int threads);
BW_API int bw_maxpool_bytes(const bw_pool* pool, const uint8_t* x, uint8_t* out, int threads);
// words <-> bytes, `pixels` = n * h * w
BW_API int bw_unpack_bits(const uint32_t* x, int64_t pixels, int64_t planes, int64_t channels, int64_t groups,
                          uint8_t* out);
BW_API int bw_bytes_to_bits(const uint8_t* x, int64_t pixels, int64_t planes, int64_t channels, int64_t groups,
                            uint32_t* out);

// A float convolution whose gate chooses output channels, image by image (fbs). x [n][h][w][c], out [n][oh][ow][o]:
//   size[o] = max(0, sum over c of predictor[o][c] * mean|x| of channel c + bias[o])
//   on[n][o] = 1 for the channels of the `count` blocks with the largest mean size (of equal ones the first), where size > 0
//   out = fl(fl(conv + add[o]) * (size[o] * on[o])), then + residual if given, then max(out, 0) with relu
// What is off is not computed, and inputs that are 0 everywhere are not read; where a sum might overflow all is computed.
typedef struct bw_gated {
  int64_t n, h, w, c, o;
  int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, oh, ow;
  int64_t count, block, relu;
} bw_gated;
// Prepared weights are the same for every instruction set; they depend on c, o, kernel, stride and dilation.
BW_API int64_t bw_gated_size(const bw_gated* layer);  // bytes, or -1
BW_API int bw_gated_pack(const bw_gated* layer, const float* weight, const float* add, const float* predictor,
                         const float* bias, void* dst);  // weight [o][c][kh][kw], predictor [o][c]
BW_API int bw_conv_gated(const bw_gated* layer, const float* x, const void* weights, float* out, const float* residual,
                         float* on, int threads);

// A float convolution without groups. x [n][h][w][c], with nchw [n][c][h][w]; out [n][oh][ow][o]:
//   out = conv + add[o], then + residual if given (like out), then max(out, 0) with relu
typedef struct bw_floats {
  int64_t n, h, w, c, o;
  int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, oh, ow;
  int64_t nchw, relu;
} bw_floats;
// Prepared weights are the same for every instruction set; they depend on c, o, kernel, stride, dilation and nchw.
BW_API int64_t bw_floats_size(const bw_floats* layer);  // bytes, or -1
BW_API int bw_floats_pack(const bw_floats* layer, const float* weight, const float* add, void* dst);  // [o][c][kh][kw]; add: or null
BW_API int bw_conv_floats(const bw_floats* layer, const float* x, const void* weights, float* out, const float* residual, int threads);

// Images of floats [n][h][w][channels]: the largest or the average of the taps of each window that lie inside the image, and the mean of
// each image, summed in double: out [n][channels]; only n, h, w and channels count.
BW_API int bw_maxpool_floats(const bw_pool* pool, const float* x, float* out, int threads);
BW_API int bw_avgpool_floats(const bw_pool* pool, const float* x, float* out, int threads);
BW_API int bw_mean_floats(const bw_pool* pool, const float* x, float* out, int threads);
// Every so many rows and columns, with channels of zeros before and behind the c others.
typedef struct bw_subsample {
  int64_t n, h, w, c, stride_h, stride_w, before, behind;
} bw_subsample;
BW_API int bw_subsample_floats(const bw_subsample* layer, const float* x, float* out, int threads);

// A linear layer on floats whose weights have few levels, see float_tables.h. x [n][k], out [n][o]:
//   out = sum * scale[o] + add[o], with `more` + what out holds; sum = sum over k of levels[group place of k][index of (o, k)] x[k]
typedef struct bw_tables {
  int64_t n, k, o, group, more;  // group: inputs of a table, 1 to 4
  const float* levels;           // [group][16]: what each entry of a table takes of an input of the group
  const float *scale, *add;      // [o]
} bw_tables;
BW_API int bw_linear_tables(const bw_tables* layer, const float* x, const uint32_t* index, float* out, int threads);

// A linear layer on floats whose weights are nearly all zero, on the others alone. x [n][k], out [n][o]. The weights of output o are
// value[i] at input index[i], begin[o] <= i < begin[o + 1]; the sums of some weights take turns, four where there is one row.
//   sum over weights of value * (x, or tanh(x)) + bias[o], then its tanh, then fl(fl(y * scale[o]) + add[o]), each if asked for
typedef struct bw_connections {
  int64_t n, k, o;
  const int32_t *begin, *index;  // [o + 1], [begin[o]]
  const float *value, *bias, *scale, *add;  // the last three [o] or null
  int64_t tanh;                  // 1: of the inputs, 2: of the sums, 3: of both
} bw_connections;
BW_API int bw_linear_connections(const bw_connections* layer, const float* x, float* out, int threads);
// The same of codes, x [n][k], for a linear layer `conv`: whole weights whose sums stay below 2^24, so that floats add them exactly. Of
// the list only the weights count, of `conv` n, h, w, o and corr, of one class. No pooling.
typedef struct bw_coded_connections {
  const bw_connections* list;
  const bw_conv* conv;
} bw_coded_connections;
BW_API int bw_coded_linear_connections(const bw_coded_connections* layer, const uint8_t* x, const bw_output* output, void* out,
                                       const float* residual, void* extra, int threads);

// A run: operations one after the other, in one call. A place says where a value lies: at that many bytes of a scratch
// memory of the calling thread, or, below 0, at outside[-1 - place]. Nothing of a step changes from call
// to call, so that threads may share it; `outside` belongs to one call.
enum bw_operation {
  BW_CONV_BITS = 0, BW_CONV_BYTES = 1, BW_PACK_BITS = 2, BW_PACK_BYTES = 3, BW_MAXPOOL_BITS = 4, BW_MAXPOOL_BYTES = 5,
  BW_TERMS = 6, BW_CONV_GATED = 7, BW_CONV_FLOATS = 8, BW_SKIP_BYTES = 9, BW_SELECT = 10, BW_HIGH_BITS = 11, BW_SKIP_FLOATS = 12,
  BW_CONNECTIONS = 13, BW_CODED_CONNECTIONS = 14, BW_MAXPOOL_FLOATS = 15, BW_AVGPOOL_FLOATS = 16, BW_MEAN_FLOATS = 17,
  BW_SUBSAMPLE_FLOATS = 18
};
#define BW_NOWHERE INT64_MIN
typedef struct bw_step {
  int64_t operation;
  const void* shape;            // bw_conv, bw_pack, bw_pool, bw_terms, bw_gated, bw_floats, bw_connections, bw_coded_connections,
                                // bw_skip_call (of two), bw_high_bits or bw_subsample
  const void* weights;          // of a convolution; so is the next
  const bw_output* output;
  int64_t x, residual, out, extra;  // places
  int64_t alone;                // 1: too little work for a second thread
} bw_step;
// float [pixels][o] of the int32 sums of several terms, [terms][pixels][o]: fl(fl(I_0 s_0) + fl(I_1 s_1) ...) + add
typedef struct bw_terms {
  int64_t pixels, o, terms;
  const float* scale;           // [terms][o]
  const float* add;             // [o]
} bw_terms;
// The layer and its gate, of bw_skip_floats, bw_skip_bytes and bw_select.
typedef struct bw_skip_call {
  const bw_conv* conv;
  const struct bw_skip* skip;
} bw_skip_call;
// Bytes without their low bits: x >> shift, or table[x] where there is a table of 256
typedef struct bw_high_bits {
  int64_t count, shift;
  const uint8_t* table;
} bw_high_bits;
BW_API int bw_run(const bw_step* steps, int64_t count, void* const* outside, int64_t scratch, int threads);
// BW_OUT_OF_RANGE if any x is NaN or not in -limit..limit; limit >= 0
BW_API int bw_check_range(const float* x, int64_t count, float limit);

// A convolution whose rest is computed only where the base is large, output by output: sum = base + (base > threshold[o] ? rest : 0).
//   low_bits = 0   channel gate: base: the sum over one of `splits` shares of the input channels of a group (c / splits each, the last
//                  one takes the leftovers); the outputs fall into shares alike, and share j of them has input share j as
//                  base. With `shared` the first input share is the base of all
//   low_bits > 0   precision gate (bytes only; splits = 1): base: the sum over the codes without their low_bits lowest bits; rest: over these
typedef struct bw_skip {
  int64_t splits, shared, low_bits;
  const void* threshold;        // [o] float of float sums, int32 of sums of bytes
  // floats: base begins with bias; out = sum, or fl(fl(sum * scale[o]) + add[o]), where off by off_scale and off_add if given;
  // then + residual if given, then with relu max(out, 0)
  const float* bias;            // [o]
  const float *scale, *add;     // [o] or null
  const float *off_scale, *off_add;  // [o] or null
  int64_t relu;
  int64_t dense;                // floats: 1: the rest is computed everywhere, with the same decisions; only where Winograd's form takes the layer
  // bytes: of float outputs, and of codes by a grid, y becomes fl(fl(y * scale[o]) + add[o]) if given, where off by the other two if given, before the
  // residual; relu is that of the output. base begins with conv->corr, rest with this table, of the same shape, or null
  const int32_t* rest_corr;
} bw_skip;

// `values` [o][kh][kw][c/groups]. x [n][h][w][c], out [n][oh][ow][o]. Of `conv` only the geometry counts, and corr with its classes for bytes.
BW_API int64_t bw_skip_floats_size(const bw_conv* conv, const bw_skip* skip);  // bytes, or -1
BW_API int bw_skip_floats_pack(const bw_conv* conv, const bw_skip* skip, const float* values, void* dst);
BW_API int bw_skip_floats(const bw_conv* conv, const bw_skip* skip, const float* x, const void* weights, float* out,
                          const float* residual, int threads);  // weights: depend on the stride and on dense, too
// The same of byte codes, below 2^x_planes (0: any byte); `values` -255..255. The weights also depend on x_planes and the stride. No pooling.
BW_API int64_t bw_skip_bytes_size(const bw_conv* conv, const bw_skip* skip);  // bytes, or -1
BW_API int bw_skip_bytes_pack(const bw_conv* conv, const bw_skip* skip, const int16_t* values, void* dst);
BW_API int bw_skip_bytes(const bw_conv* conv, const bw_skip* skip, const uint8_t* x, const void* weights, const bw_output* output,
                         void* out, const float* residual, void* extra, int threads);
// The gate over two whole sums that were made by other kernels, [2][n][oh][ow][o], base / 2^low_bits and full: full where
// base > threshold[o], else base; then as bw_skip_bytes. Of `conv` only n, oh, ow and o count, of `skip` low_bits (0..30), threshold
// and the norms.
BW_API int bw_select(const bw_conv* conv, const bw_skip* skip, const int32_t* sums, const bw_output* output, void* out,
                     const float* residual, void* extra, int threads);

// Training. Forward and backward of a part in one pass each, elementwise over dense memory in whatever order the
// caller's tensors share. Masks are words of 64 bits, bit i % 64 of word i / 64 for element i. All tensors of one call
// have one type; a bfloat16 is computed in float32 and rounded once. Sums are kept in double, in an order that depends
// on sizes only. Products, not choices: where a mask is 0 the gradient is g * 0.
typedef enum bw_dtype { BW_FLOAT32_TYPE = 0, BW_BFLOAT16_TYPE = 1 } bw_dtype;

// y = x >= 0 ? 1 : -1 (NaN stays); mask, if given: |x| <= 1, with `open` |x| < 1
BW_API int bw_sign_forward(const void* x, void* y, uint64_t* mask, int64_t n, int dtype, int open, int threads);
// y = x >= threshold ? on : off (NaN stays)
BW_API int bw_step_forward(const void* x, void* y, int64_t n, float threshold, float on, float off, int dtype,
                           int threads);
// dx = g * mask
BW_API int bw_mask_backward(const void* g, const uint64_t* mask, void* dx, int64_t n, int dtype, int threads);
// dx = g * max(0, 2 - 2|x|)
BW_API int bw_approx_backward(const void* g, const void* x, void* dx, int64_t n, int dtype, int threads);
// y = rint(clip(x, 0, high) * (levels / high)) * (high / levels); inside, if given: 0 <= x <= high; above: x >= high
BW_API int bw_clip_forward(const void* x, void* y, uint64_t* inside, uint64_t* above, int64_t n, const float* high,
                           int64_t levels, int dtype, int threads);
// y = (2 floor((clip(x, -1, 1) + 1) * top / 2 + 1/2) - top) / top (NaN stays); inside, if given: |x| <= 1
BW_API int bw_odd_forward(const void* x, void* y, uint64_t* inside, int64_t n, int64_t top, int dtype, int threads);
// dx = g * inside;  *dhigh = sum of g where above. Either pair may be null.
BW_API int bw_clip_backward(const void* g, const uint64_t* inside, const uint64_t* above, void* dx, float* dhigh,
                            int64_t n, int dtype, int threads);
// x [outer][channels][inner], steps [channels]: y = rint(clip(x / s, low, high)) * s
BW_API int bw_lsq_forward(const void* x, const float* steps, void* y, int64_t outer, int64_t channels, int64_t inner,
                          float low, float high, int dtype, int threads);
// dx = g * (low <= x / s <= high);  dsteps[c] = factor * sum g * (low, high, or rint(x / s) - x / s)
BW_API int bw_lsq_backward(const void* g, const void* x, const float* steps, void* dx, float* dsteps, int64_t outer,
                           int64_t channels, int64_t inner, float low, float high, float factor, int dtype, int threads);
// w [filters][count]: y = scale * sign(w), scale = mean|w| per filter, or one_scale; scales [filters].
// bits, if given, [filters][2][ceil(count / 64)]: w >= 0 and |w| <= 1
BW_API int bw_binary_forward(const void* w, void* y, float* scales, uint64_t* bits, int64_t filters, int64_t count,
                             int one_scale, int dtype, int threads);
// exact: dw = scale g small + sign / n sum g sign (through the scale), else dw = g small
BW_API int bw_binary_backward(const void* g, const float* scales, const uint64_t* bits, void* dw, int64_t filters,
                              int64_t count, int exact, int one_scale, int dtype, int threads);
// t = tanh(w), float32: y = 2 rint((t / (2 peak) + 1/2) top) / top - 1, or 0 where peak = max|t| is; writes peak
BW_API int bw_dorefa_forward(const float* t, void* y, float* peak, int64_t n, int64_t top, int dtype, int threads);
// dw = g (1 - t t) / peak
BW_API int bw_dorefa_backward(const void* g, const float* t, const float* peak, void* dw, int64_t n, int dtype,
                              int threads);

// Gates. Outputs are [outer][channels][inner]; base and rest are tensors of their own, or with `halves` (channels even) one tensor
// [outer][2 channels][inner], given for both: rest of the second half of the channels, base of all, rest of the first half.
// sums [2][channels]: of base and of its squares
BW_API int bw_gate_moments(const void* base, double* sums, int64_t outer, int64_t channels, int64_t inner, int halves,
                           int dtype, int threads);
// y = base + rest where v = (base - mean) rate - threshold > 0, else base; NaN where v is. on, if given: 1, 0, NaN.
// mean, rate: [channels], or null for v = base - threshold
BW_API int bw_gate_forward(const void* base, const void* rest, const float* mean, const float* rate, const float* threshold,
                           void* y, float* on, int64_t outer, int64_t channels, int64_t inner, int halves, int dtype,
                           int threads);
// dv = (g rest + g_on) slope s (1 - s), s = sigmoid(slope v), with `sparse` 0 where v < 0; g_on may be null.
// drest = g on, dthreshold = -sum dv, dbase = g + dv; with mean and rate, which are then taken as those of base itself,
// dbase = g + rate (dv - mean dv - z mean (dv z)), z = (base - mean) rate
BW_API int bw_gate_backward(const void* g, const float* g_on, const void* base, const void* rest, const float* mean,
                            const float* rate, const float* threshold, void* dbase, void* drest, float* dthreshold,
                            int64_t outer, int64_t channels, int64_t inner, int halves, float slope, int sparse, int dtype,
                            int threads);
// x = k unit, k whole: high = one trunc(k / one) unit, low = (k - one trunc(k / one)) unit; one a power of two
BW_API int bw_split_forward(const void* x, void* high, void* low, int64_t n, const float* unit, float one, int dtype,
                            int threads);

#ifdef __cplusplus
}
#endif
