// Inside the library: the table every instruction set fills, and the few things all translation units share.
//
// This header is included by units compiled with different -m flags. It therefore holds declarations, plain
// structs and `static` functions only: an inline function with external linkage would be emitted once per unit
// and the linker might keep the AVX-512 copy for all units.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "bitwright.h"

#define BW_INLINE inline __attribute__((always_inline))

enum bw_layout : int32_t {
  BW_LAYOUT_GENERIC_BITS = 1,
  BW_LAYOUT_GENERIC_BYTES = 2,
  BW_LAYOUT_LANES_BITS = 3,
  BW_LAYOUT_LISTS = 4,         // of bytes; see lists.h
  BW_LAYOUT_SLICED = 7,        // of bits; see sliced.h
  BW_LAYOUT_SKIP_FLOATS = 5,   // see skip.h
  BW_LAYOUT_SKIP_ROWS = 6,
  BW_LAYOUT_SKIP_QUADS = 8,
  BW_LAYOUT_SKIP_QUADS_SPLIT = 9,
  BW_LAYOUT_SKIP_WINOGRAD = 10,
  BW_LAYOUT_BIT_LOOKUPS = 11,  // see avx2_bits.h
  BW_LAYOUT_QUADS = 12,        // 12..15, see avx2_bytes.h
  BW_LAYOUT_PAIRS = 13,
  BW_LAYOUT_LANES_BYTES = 16,  // 16..23, see avx512_bytes.h
  BW_LAYOUT_WINOGRAD_PAIRS = 24,  // see avx2_winograd.h
  BW_LAYOUT_PHASE_PAIRS = 25,     // see avx2_phases.h
  BW_LAYOUT_SKIP_PART_QUADS = 26,  // see avx2_skip.h
  BW_LAYOUT_SKIP_PART_PAIRS = 27,
  BW_LAYOUT_TILES_BYTES = 32,  // 32..33, see amx_bytes.h
  BW_LAYOUT_DOT_BYTES = 48,    // see neon_dot.cpp
};

// First 64 bytes of prepared weights.
struct bw_weights_header {
  uint32_t magic;
  int32_t layout;
  int64_t c, o, kh, kw, groups, w_planes;
  int64_t unused;
};
static_assert(sizeof(bw_weights_header) == 64, "the layout that follows starts on a cache line");
static const uint32_t BW_WEIGHTS_MAGIC = 0x31575742;  // "BWW1"

// Where and how one call writes its result.
struct bw_sink : bw_output {
  void* out;
  const float* residual;   // or null
  void* extra;             // or null: codes or words of the floats that are written
};

static inline int64_t bw_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Outputs [outer][channels][inner] of a gated layer. halves: base and rest lie in one tensor with twice the channels, those of
// the partial sums over either half of the inputs: rest of the second half of the outputs, base of all, rest of the first half.
struct bw_gate_shape {
  int64_t outer, channels, inner;
  bool halves;
  bool rows() const { return inner == 1; }
  int64_t place(int64_t c, bool rest) const {
    const int64_t half = channels / 2;
    return !rest ? half + c : c < half ? 3 * half + c : c - half;
  }
  int64_t length() const {  // of a run: rows shorter than a block are taken together, until they fill whole blocks
    int64_t together = 1;
    while (rows() && channels < 64 && together * channels % 64) together++;
    return rows() ? together * channels : inner;
  }
  int64_t lanes() const { return rows() ? bw_ceil_div(length(), 64) * 64 : 64; }  // of the sums of a task
  int64_t runs_per_task() const { return 16384 / length() + 1; }
  int64_t tasks() const { return rows() ? bw_ceil_div(bw_ceil_div(outer * channels, length()), runs_per_task()) : channels; }
  int64_t spread() const { return rows() ? lanes() : channels * 64; }  // how often values per channel are repeated
  int64_t channel(int64_t i) const { return rows() ? i % channels : i / 64; }  // of the i-th of them
};
// spread() values each; the last two only for a normalized base, in backward
struct bw_gate_values { const float *mean, *rate, *threshold, *mean_dv, *mean_dvz; };
struct bw_gate_grads { const void* g; const float* g_on; void *to_base, *to_rest; float slope; bool sparse, normalized; };

// Training (train_*.h): forward and backward of parts on the CPU. n > 0; threads >= 1.
struct bw_train_table {
  void (*sign_forward)(bw_dtype, const void* x, void* y, uint64_t* mask, int64_t n, bool open, int threads);
  void (*step_forward)(bw_dtype, const void* x, void* y, int64_t n, float threshold, float on, float off, int threads);
  void (*mask_backward)(bw_dtype, const void* g, const uint64_t* mask, void* dx, int64_t n, int threads);
  void (*approx_backward)(bw_dtype, const void* g, const void* x, void* dx, int64_t n, int threads);
  void (*clip_forward)(bw_dtype, const void* x, void* y, uint64_t* inside, uint64_t* above, int64_t n, float high,
                       float up, float down, int threads);
  void (*odd_forward)(bw_dtype, const void* x, void* y, uint64_t* inside, int64_t n, float top, int threads);
  void (*masked_sums)(bw_dtype, const void* g, const uint64_t* mask, double* partial, int64_t n, int threads);
  int64_t (*lsq_partials)(int64_t outer, int64_t channels, int64_t inner);
  void (*lsq_forward)(bw_dtype, const void* x, const float* steps, void* y, int64_t outer, int64_t channels,
                      int64_t inner, float low, float high, int threads);
  void (*lsq_backward)(bw_dtype, const void* g, const void* x, const float* steps, void* dx, double* partial,
                       int64_t outer, int64_t channels, int64_t inner, float low, float high, int threads);
  void (*binary_forward)(bw_dtype, const void* w, void* y, float* scales, uint64_t* bits, int64_t filters,
                         int64_t count, bool one_scale, int threads);
  void (*binary_backward)(bw_dtype, const void* g, const float* scales, const uint64_t* bits, void* dw,
                          int64_t filters, int64_t count, bool exact, bool one_scale, int threads);
  void (*dorefa_forward)(bw_dtype, const float* t, void* y, float* peak, int64_t n, float top, int threads);
  void (*dorefa_backward)(bw_dtype, const void* g, const float* t, float peak, void* dw, int64_t n, int threads);
  // partial sums: [tasks][2][lanes]
  void (*gate_moments)(bw_dtype, const void* base, const bw_gate_shape&, double* partial, int threads);
  void (*gate_forward)(bw_dtype, const void* base, const void* rest, const bw_gate_shape&, const bw_gate_values&, void* y,
                       float* on, int threads);
  void (*gate_backward)(bw_dtype, const bw_gate_grads&, const void* base, const void* rest, const bw_gate_shape&,
                        const bw_gate_values&, double* partial, int threads);
  void (*gate_normalized)(bw_dtype, const void* g, const void* base, const bw_gate_shape&, const bw_gate_values&,
                          void* to_base, int threads);
  void (*split_forward)(bw_dtype, const void* x, void* high, void* low, int64_t n, float unit, float one, int threads);
};

// Convolutions with a base and a rest (skip_*.h).
struct bw_skip_table {
  int64_t (*floats_size)(const bw_conv&, const bw_skip&);
  void (*floats_weights)(const bw_conv&, const bw_skip&, const float* values, void* body);
  int (*floats)(const bw_conv&, const bw_skip&, const float* x, const void* body, float* out, const float* residual, int threads);
  int64_t (*bytes_size)(const bw_conv&, const bw_skip&);
  int32_t (*bytes_layout)(const bw_conv&, const bw_skip&, const int16_t* values);
  void (*bytes_weights)(const bw_conv&, const bw_skip&, const int16_t* values, int32_t layout, void* body);
  int (*bytes)(const bw_conv&, const bw_skip&, const uint8_t* x, int32_t layout, const void* body, const bw_sink&, int threads);
  int (*select)(const bw_conv&, const bw_skip&, const int32_t* sums, const bw_sink&, int threads);
};

// Arguments are valid when a kernel is called (api.cpp checks them) and n > 0. Return: a bw_error.
struct bw_kernel_table {
  const char* isa;
  bool (*runs_here)();
  // which layout this table wants for a convolution, its size, and writing it after the header
  int32_t (*bits_layout)(const bw_conv&);
  int64_t (*bits_size)(const bw_conv&);
  void (*bits_weights)(const bw_conv&, const uint8_t* bits, void* body);
  int32_t (*bytes_layout)(const bw_conv&, const int16_t* values);
  int64_t (*bytes_size)(const bw_conv&);
  void (*bytes_weights)(const bw_conv&, const int16_t* values, int32_t layout, void* body);

  int (*conv_bits)(const bw_conv&, const uint32_t*, int32_t layout, const void* body, const bw_sink&, int threads);
  int (*conv_bytes)(const bw_conv&, const uint8_t*, int32_t layout, const void* body, const bw_sink&, int threads);
  int (*pack_bits)(const bw_pack&, const float*, uint32_t*, int threads);
  int (*pack_bytes)(const bw_pack&, const float*, uint8_t*, int threads);
  int (*maxpool_bits)(const bw_pool&, const uint32_t*, uint32_t*, int threads);
  int (*maxpool_bytes)(const bw_pool&, const uint8_t*, uint8_t*, int threads);
  const bw_train_table* (*train)();
  const bw_skip_table* (*skip)();
  int (*conv_lists)(const bw_conv&, const uint8_t*, const void* body, const bw_sink&, int threads);
  bool (*sliced_pays)(const bw_conv&, const void* body);  // on this many pixels, against the dense weights of the same body
  int (*conv_sliced)(const bw_conv&, const uint32_t*, const void* body, const bw_sink&, int threads);
  int (*conv_gated)(const bw_gated&, const float*, const void* body, float* out, const float* residual, float* on, int threads);
  int (*conv_floats)(const bw_floats&, const float* x, const void* body, float* out, const float* residual, int threads);
  int (*linear_tables)(const bw_tables&, const float* x, const uint32_t* index, float* out, int threads);
  int (*linear_connections)(const bw_connections&, const float* x, float* out, int threads);
  int (*coded_connections)(const bw_coded_connections&, const uint8_t* x, const bw_sink&, int threads);
  int32_t pooling_layout;  // of byte weights: with this layout, or three above it, or phases, the convolution also does the pooling of its sink; 0: none
};

extern const bw_kernel_table bw_table_portable;
#if defined(BITWRIGHT_X86)
extern const bw_kernel_table bw_table_avx2;
extern const bw_kernel_table bw_table_avx512;
bool bw_cpu_has_avx2();
bool bw_cpu_has_avx512();       // F, BW, VL, DQ, VNNI, VPOPCNTDQ and the OS saves the registers
#if defined(BITWRIGHT_AMX)
extern const bw_kernel_table bw_table_amx;
bool bw_cpu_has_amx();          // all of avx512, BITALG, AMX-INT8, and the OS lets this process use tiles
#endif
bool bw_cpu_is_amd();
#endif

#if defined(BITWRIGHT_ARM)
extern const bw_kernel_table bw_table_neon;
extern const bw_kernel_table bw_table_neon_dot;
bool bw_cpu_has_dot();          // ARM's dot product of int8
#endif

const bw_kernel_table* bw_active_table();                   // null: BITWRIGHT_ISA is wrong, error text is set
int bw_fail(int code, const char* format, ...);             // sets the text of bw_last_error, returns code

bw_floats bw_floats_of(const bw_gated& layer);     // its convolution alone
bool bw_skip_winograd(const bw_conv& conv, const bw_skip& skip);  // whether floats of a channel gate take Winograd's form
bool bw_floats_winograd(const bw_floats& layer);  // whether its weights are those of Winograd's convolution
bool bw_floats_phases(const bw_floats& layer);    // whether they are those of its form for windows in steps of 2

// 1 for the channels that a gate keeps, 0 for the others; false: no memory
bool bw_winners(const float* size, int64_t o, int64_t count, int64_t block, float* on);

// Per-thread scratch that only grows; 64-byte aligned; null when memory is short. Slots are independent.
enum bw_scratch_slot {
  BW_SCRATCH_IMAGE, BW_SCRATCH_PATCH, BW_SCRATCH_ROW, BW_SCRATCH_CUTS, BW_SCRATCH_PANEL, BW_SCRATCH_ROWS, BW_SCRATCH_SUMS,
  BW_SCRATCH_POOL, BW_SCRATCH_RING, BW_SCRATCH_PLACES, BW_SCRATCH_RUN,
  BW_SCRATCH_SLOTS
};
void* bw_scratch(bw_scratch_slot slot, size_t bytes);

// vectors of 16 outputs
static inline int64_t bw_panels(int64_t outputs) { return bw_ceil_div(outputs, 16); }
// how many windows fit on an axis; 0: the kernel is larger than the padded input
static inline int64_t bw_windows(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t room = in + 2 * pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}
// words per plane and pixel
static inline int64_t bw_words(int64_t channels, int64_t groups) { return groups * bw_ceil_div(channels / groups, 32); }
