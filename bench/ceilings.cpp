// What this CPU can do at most, in registers, one thread: the reason behind a ratio that cannot be reached.
//   g++ -O2 -march=native bench/ceilings.cpp -o ceilings && ./ceilings
// 1-bit: xor, vpopcntd, add on 512-bit registers (512 bit products each). int8: vpdpbusd (64 products) and, where
// there is AMX, tdpbusd on full tiles (16 x 16 x 64 products). float32: vfmadd231ps (16 products). With AVX2 alone: 1-bit by look-ups for
// two pixels (csrc/avx2_folded.h: three vpshufb, four vpaddb and a shift for 3 x 256 products), int8 by vpmaddubsw and vpaddw (32),
// vfmadd231ps (8). Prints the median of 9 runs in 1e12 products a second; then how fast 5 MB are read, again and again.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

template <class F>
static double median_rate(F run, double products) {
  std::vector<double> rates;
  run();
  for (int i = 0; i < 9; i++) {
    auto start = std::chrono::steady_clock::now();
    run();
    rates.push_back(products / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(rates.begin(), rates.end());
  return rates[4] * 1e-12;
}

static const long kLoops = 4'000'000;

// step(v, x) on ten chains: they hide the latencies. Steps are asm, which keeps the compiler from folding them.
template <class Vector, class Step>
static void chains(Vector x, const Step& step) {
  Vector a[10];
  for (auto& v : a) v = x;
  for (long i = 0; i < kLoops; i++)
#pragma GCC unroll 10
    for (auto& v : a) step(v, x);
}

#if defined(__AVX512VPOPCNTDQ__)
static void bits() {
  chains(_mm512_set1_epi32(0x1234567), [](__m512i& v, __m512i x) {
    __m512i t;
    asm volatile("vpxord %2, %0, %1\n\tvpopcntd %1, %1\n\tvpaddd %1, %0, %0" : "+v"(v), "=&v"(t) : "v"(x));
  });
}
#endif

#if defined(__AVX512VNNI__)
static void vnni() {
  chains(_mm512_set1_epi32(0x01020304), [](__m512i& v, __m512i x) { asm volatile("vpdpbusd %1, %1, %0" : "+v"(v) : "v"(x)); });
}
#endif

#if defined(__AVX512F__)
static void floats() {
  chains(_mm512_set1_ps(0.5f), [](__m512& v, __m512 x) { asm volatile("vfmadd231ps %1, %1, %0" : "+v"(v) : "v"(x)); });
}
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
static void look_ups() {
  __m256i all[4], high[4], x = _mm256_set1_epi8(3);
  for (int i = 0; i < 4; i++) all[i] = high[i] = x;
  for (long i = 0; i < kLoops; i++)
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      __m256i t, u;
      asm volatile(
          "vpshufb %4, %4, %2\n\tvpshufb %4, %4, %3\n\tvpaddb %3, %2, %2\n\tvpshufb %4, %4, %3\n\tvpaddb %3, %2, %2\n\t"
          "vpaddb %2, %0, %0\n\tvpsrlw $4, %2, %2\n\tvpaddb %2, %1, %1"
          : "+x"(all[k]), "+x"(high[k]), "=&x"(t), "=&x"(u) : "x"(x));
    }
}

static void quads() {
  chains(_mm256_set1_epi8(1), [](__m256i& v, __m256i x) {
    __m256i t;
    asm volatile("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(v), "=&x"(t) : "x"(x));
  });
}

static void narrow_floats() {
  chains(_mm256_set1_ps(0.5f), [](__m256& v, __m256 x) { asm volatile("vfmadd231ps %1, %1, %0" : "+x"(v) : "x"(x)); });
}
#endif

static const size_t kRead = 5 << 20;
typedef uint64_t Four __attribute__((vector_size(32), aligned(8)));
static void read_all() {
  static const std::vector<uint64_t> data(kRead / 8, 1);
  const Four* const from = (const Four*)data.data();
  Four sum[4] = {};
  for (int pass = 0; pass < 20; pass++)
    for (size_t i = 0; i < kRead / 32; i += 4)
      for (int k = 0; k < 4; k++) sum[k] += from[i + k];
  for (const Four& s : sum) asm volatile("" ::"m"(s));
}

#if defined(__AMX_INT8__)
static void tiles() {
  alignas(64) uint8_t config[64] = {};
  config[0] = 1;
  for (int t = 0; t < 8; t++) {
    config[16 + 2 * t] = 64;
    config[48 + t] = 16;
  }
  asm volatile("" ::: "memory");  // GCC 12 thinks that only the first 8 bytes of the table are read
  _tile_loadconfig(config);
  alignas(64) static uint8_t data[1024];
  memset(data, 1, sizeof data);  // zeros would run faster than real data
  _tile_loadd(4, data, 64);
  _tile_loadd(5, data, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long i = 0; i < kLoops / 40; i++) {
    _tile_dpbusd(0, 4, 5);
    _tile_dpbusd(1, 4, 5);
    _tile_dpbusd(2, 4, 5);
    _tile_dpbusd(3, 4, 5);
  }
  _tile_release();
}
#endif

int main() {
#if defined(__AVX512VPOPCNTDQ__)
  printf("1 bit, xor + vpopcntd + vpaddd   %.2f T products/s\n", median_rate(bits, 512.0 * 10 * kLoops));
#endif
#if defined(__AVX512VNNI__)
  printf("int8, vpdpbusd                   %.2f T products/s\n", median_rate(vnni, 64.0 * 10 * kLoops));
#endif
#if defined(__AVX512F__)
  printf("float32, vfmadd231ps             %.3f T products/s\n", median_rate(floats, 16.0 * 10 * kLoops));
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
  printf("1 bit, look-ups for two pixels   %.2f T products/s\n", median_rate(look_ups, 768.0 * 4 * kLoops));
  printf("int8, vpmaddubsw + vpaddw        %.3f T products/s\n", median_rate(quads, 32.0 * 10 * kLoops));
  printf("float32, vfmadd231ps             %.3f T products/s\n", median_rate(narrow_floats, 8.0 * 10 * kLoops));
#endif
#if defined(__AMX_INT8__)
  if (syscall(SYS_arch_prctl, 0x1023, 18) == 0)
    printf("int8, tdpbusd (AMX tiles)        %.2f T products/s\n", median_rate(tiles, 16384.0 * 4 * (kLoops / 40)));
#endif
  printf("5 MB, read by 64-bit words       %.3f TB/s\n", median_rate(read_all, 20.0 * kRead));
  return 0;
}
