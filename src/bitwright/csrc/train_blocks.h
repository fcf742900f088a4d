// Training kernels work on blocks of 64 floats and one 64-bit word of mask: the loops have a constant length, so that
// the compiler vectorizes them with each unit's flags; bfloat16 and the last, shorter block go through a buffer.
// No result depends on the instruction set or the thread count: sums are kept in double, in a fixed order.
#pragma once
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "parallel.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

const int64_t BLOCK = 64;             // elements per word of mask
const int64_t TASK = 256 * BLOCK;     // elements per task of a thread; fixed, so that partial sums are too

struct bfloat16 { uint16_t bits; };   // not a float type of C++17: only its layout is used

inline float widened(float value) { return value; }
inline float widened(bfloat16 value) {
  const uint32_t bits = (uint32_t)value.bits << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

// Round half to even, as torch does; a NaN must not carry into the exponent.
inline bfloat16 narrowed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return {(uint16_t)(value == value ? rounded : 0x7fc0)};
}

inline void store(float* p, float value) { *p = value; }
inline void store(bfloat16* p, float value) { *p = narrowed(value); }

// Half to even, for |value| < 2^23; the addition vectorizes where there is no rounding instruction.
inline float nearest(float value) {
#if defined(__AVX2__) || defined(__aarch64__)
  return __builtin_rintf(value);
#else
  return copysignf((fabsf(value) + 8388608.0f) - 8388608.0f, value);
#endif
}

// The floor, for |value| < 2^23.
inline float below(float value) {
#if defined(__AVX2__) || defined(__aarch64__)
  return __builtin_floorf(value);
#else
  const float near = nearest(value);
  return near - (float)(int32_t)(near > value);
#endif
}

// What a tensor of E holds after `value` was computed in float32.
inline float as_stored(float value, const float*) { return value; }
inline float as_stored(float value, const bfloat16*) { return widened(narrowed(value)); }

// 64 floats at p; of the `left` that exist, the rest zeros.
template <class E>
struct Reader {
  alignas(64) float room[BLOCK];
  const float* operator()(const E* p, int64_t left) {
    if (left >= BLOCK) {
      for (int i = 0; i < BLOCK; i++) room[i] = widened(p[i]);
    } else {
      for (int i = 0; i < BLOCK; i++) room[i] = i < left ? widened(p[i]) : 0.0f;
    }
    return room;
  }
};
template <>
inline const float* Reader<float>::operator()(const float* p, int64_t left) {
  if (left >= BLOCK) return p;
  for (int i = 0; i < BLOCK; i++) room[i] = i < left ? p[i] : 0.0f;
  return room;
}

// Where a block may write 64 floats, and bringing them home.
template <class E>
struct Writer {
  alignas(64) float room[BLOCK];
  float* at(E*, int64_t) { return room; }
  void done(E* p, int64_t left) {
    if (left >= BLOCK) {
      for (int i = 0; i < BLOCK; i++) p[i] = narrowed(room[i]);
    } else {
      for (int64_t i = 0; i < left; i++) p[i] = narrowed(room[i]);
    }
  }
};
template <>
inline float* Writer<float>::at(float* p, int64_t left) { return left >= BLOCK ? p : room; }
template <>
inline void Writer<float>::done(float* p, int64_t left) {
  for (int64_t i = 0; i < left && left < BLOCK; i++) p[i] = room[i];
}

// 64 lanes of 0 or -1 -> one bit each, and back to 0.0f or 1.0f.
inline uint64_t packed(const int32_t* lanes) {
  uint64_t bits = 0;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  for (int i = 0; i < 4; i++)
    bits |= (uint64_t)_mm512_movepi32_mask(_mm512_loadu_si512(lanes + 16 * i)) << (16 * i);
#elif defined(__AVX2__)
  for (int i = 0; i < 8; i++) {
    const __m256i eight = _mm256_loadu_si256((const __m256i*)(lanes + 8 * i));
    bits |= (uint64_t)(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(eight)) << (8 * i);
  }
#else
  for (int i = 0; i < BLOCK; i++) bits |= (uint64_t)(lanes[i] & 1) << i;
#endif
  return bits;
}

// A table of bits instead of shifts: not every instruction set shifts each lane by its own count.
struct BitTable {
  alignas(64) uint32_t bit[32];
  constexpr BitTable() : bit() {
    for (int i = 0; i < 32; i++) bit[i] = 1u << i;
  }
};
constexpr BitTable BITS;

inline void spread(uint64_t bits, float* lanes) {
  for (int half = 0; half < 2; half++) {
    const uint32_t word = (uint32_t)(bits >> (32 * half));
    for (int i = 0; i < 32; i++) lanes[32 * half + i] = (word & BITS.bit[i]) == BITS.bit[i] ? 1.0f : 0.0f;
  }
}

// sums[i % 16], then those in order: the same number whatever vectors the compiler chose.
struct Sum {
  alignas(64) double lanes[16] = {};
  void add(const float* values) {
    for (int i = 0; i < BLOCK; i += 16)
      for (int j = 0; j < 16; j++) lanes[j] += (double)values[i + j];
  }
  double total() const {
    double all = 0;
    for (int j = 0; j < 16; j++) all += lanes[j];
    return all;
  }
};

// run(first, count) for every TASK of n elements.
template <class Run>
inline void for_elements(int threads, int64_t n, const Run& run) {
  for_tasks(threads, bw_ceil_div(n, TASK), [&](int64_t task) {
    const int64_t first = task * TASK;
    run(first, n - first < TASK ? n - first : TASK);
  });
}

}  // namespace
