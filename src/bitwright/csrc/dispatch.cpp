// Which kernel table is used: the best one this CPU and operating system can run, or the one BITWRIGHT_ISA or
// bw_force_isa names. Compiled with baseline flags, like every unit that runs before the choice is made.
#include <atomic>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#if defined(BITWRIGHT_X86)
#include <cpuid.h>
#if defined(BITWRIGHT_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(BITWRIGHT_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

thread_local char error_text[512] = "";

const bw_kernel_table* const tables[] = {  // slowest first
    &bw_table_portable,
#if defined(BITWRIGHT_X86)
    &bw_table_avx2,
    &bw_table_avx512,
#if defined(BITWRIGHT_AMX)
    &bw_table_amx,
#endif
#endif
#if defined(BITWRIGHT_ARM)
    &bw_table_neon,
    &bw_table_neon_dot,
#endif
};

std::atomic<const bw_kernel_table*> active{nullptr};

const bw_kernel_table* best() {
  const bw_kernel_table* found = nullptr;
  for (const bw_kernel_table* table : tables)
    if (table->runs_here()) found = table;
  return found;
}

const bw_kernel_table* named(const char* name) {
  if (!name || !*name) return best();
  for (const bw_kernel_table* table : tables)
    if (!strcmp(table->isa, name) && table->runs_here()) return table;
  bool known = false;
  for (const bw_kernel_table* table : tables) known |= !strcmp(table->isa, name);
  bw_fail(BW_BAD_ISA, "instruction set '%.40s' %s; this machine can run: %s", name,
          known ? "is not available on this CPU" : "is unknown to this build", bw_available_isas());
  return nullptr;
}

#if defined(BITWRIGHT_X86)
struct Cpu {
  bool avx2 = false, avx512 = false, amx = false, amd = false;
  Cpu() {
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d)) return;
    amd = b == signature_AMD_ebx;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = c >> 12 & 1, popcnt = c >> 23 & 1, xsave = c >> 27 & 1, avx = c >> 28 & 1;
    if (!xsave || !avx || !popcnt || !fma) return;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));  // which registers the OS saves on a task switch
    if ((low & 0x06) != 0x06) return;                    // xmm, ymm
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = b >> 5 & 1;
    const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
    const bool vnni = c >> 11 & 1, vpopcntdq = c >> 14 & 1;
    avx512 = avx2 && f && dq && bw && vl && vnni && vpopcntdq && (low & 0xe6) == 0xe6;  // + opmask, zmm
#if defined(BITWRIGHT_AMX)
    const bool bitalg = c >> 12 & 1, tile = d >> 24 & 1, int8 = d >> 25 & 1;
    // + tile configuration and data. Linux enlarges the saved state only for a process that asks; in a container or
    // an emulator it may refuse.
    amx = avx512 && bitalg && tile && int8 && (low & 0x60000) == 0x60000 &&
          syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#endif
  }
};
const Cpu& cpu() {
  static const Cpu found;
  return found;
}
#endif

}  // namespace

#if defined(BITWRIGHT_X86)
bool bw_cpu_has_avx2() { return cpu().avx2; }
bool bw_cpu_has_avx512() { return cpu().avx512; }
#if defined(BITWRIGHT_AMX)
bool bw_cpu_has_amx() { return cpu().amx; }
#endif
bool bw_cpu_is_amd() { return cpu().amd; }
#endif
#if defined(BITWRIGHT_ARM)
bool bw_cpu_has_dot() {
#if defined(__APPLE__)
  return true;  // every 64-bit Mac has it
#elif defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#else
  return false;
#endif
}
#endif

const bw_kernel_table* bw_active_table() {
  const bw_kernel_table* table = active.load(std::memory_order_acquire);
  if (!table) {  // two threads may both decide; they decide the same
    table = named(getenv("BITWRIGHT_ISA"));
    active.store(table, std::memory_order_release);
  }
  return table;
}

int bw_fail(int code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error_text, sizeof error_text, format, arguments);
  va_end(arguments);
  return code;
}

extern "C" {

int bw_abi_version(void) { return BW_ABI_VERSION; }
const char* bw_last_error(void) { return error_text; }

const char* bw_isa(void) {
  const bw_kernel_table* table = bw_active_table();
  return table ? table->isa : nullptr;
}

const char* bw_available_isas(void) {
  static const struct Names {
    char text[128] = "";
    Names() {
      for (const bw_kernel_table* table : tables)
        if (table->runs_here()) {
          if (*text) strcat(text, " ");
          strcat(text, table->isa);
        }
    }
  } names;
  return names.text;
}

int bw_force_isa(const char* name) {
  const bw_kernel_table* table = named(name);
  if (!table) return BW_BAD_ISA;
  active.store(table, std::memory_order_release);
  return BW_OK;
}

}  // extern "C"
