#!/bin/sh
# Build the PC emulator Bochs 3.0 with some mistakes of its AVX-512 and AMX mended, for run_emulated.sh.
#   apt-get source --download-only bochs    (Debian 13)
#   tar xf bochs_3.0+dfsg.orig.tar.xz && tests/native/build_bochs.sh bochs-3.0      changes that folder; leaves bochs-3.0/bochs
# As released, Linux finds no AMX in it, some gathers are invalid, and what tiles and an instruction of BITALG compute is wrong.
set -eu
cd "$1/cpu"
edit() { # file, what must be there, sed command
    grep -q "$2" "$1" || { echo "$1 has no '$2': is this Bochs 3.0, as released?" >&2; exit 1; }
    sed -i "$3" "$1"
}
# Bytes are signed or not as the instruction says; they were never.
edit avx/amx.cc 'Bit32s(xbyte' 's/Bit32s(\([xy]byte\[.\]\))/Bit32s(Bit8s(\1))/g; s/Bit32u(\([xy]byte\[.\]\))/Bit32s(\1)/g'
# VPSHUFBITQMB takes eight bits of a word.
edit avx/avx512_bitalg.cc 'i < 7;' 's/i < 7;/i < 8;/'
# A gather may take its places from one of the upper sixteen registers.
edit decoder/fetchdecode32.cc '(vvv & 0x10));' 's/| (vvv & 0x10));/& vvv \&= 15;/'
# A task switch keeps all sixteen rows of a tile, its width and height each in its place, and it knows which tiles are in use.
edit xsave.cc 'row < BX_TILE_REGISTERS' 's/row < BX_TILE_REGISTERS/row < BX_TILE_MAX_ROWS/
s/\(tilecfg.vmm16u(8+n) .*\)\.rows;/\1.bytes_per_row;/; s/\(tilecfg.vmmubyte(48+n) =.*\)\.bytes_per_row;/\1.rows;/
s/tile_use_tracker == 0/tile_use_tracker != 0/'
edit avx/amx.h 'start_row(0) {}' 's/start_row(0) {}/start_row(0), tile_use_tracker(0) {}/'
# XFD: Linux lets a process use tiles only where their first use can trap.
tiles=BX_XCR0_XTILEDATA_MASK off='(BX_CPU_THIS_PTR msr.ia32_xfd \& BX_XCR0_XTILEDATA_MASK)'
edit cpuid.cc 'BX_ISA_XSAVES' 's/leaf->eax |= (1<<3);/leaf->eax |= is_cpu_extension_supported(BX_ISA_AMX) ? 0x18 : 0x8;/
s/leaf->ecx = (cpu->ia32_xss_suppmask & (1 << subfunction)) != 0;/& if (subfunction == 18) leaf->ecx |= 4;/'
edit cpu.h 'Bit64u ia32_xss;' 's/Bit64u ia32_xss;/& Bit64u ia32_xfd, ia32_xfd_err;/'
edit init.cc 'msr.ia32_xss = 0;' 's/msr.ia32_xss = 0;/msr.ia32_xss = BX_CPU_THIS_PTR msr.ia32_xfd = BX_CPU_THIS_PTR msr.ia32_xfd_err = 0;/'
edit msr.cc 'BX_MSR_XSS:' 's/^  msr_desc\[BX_MSR_XSS\] =/  msr_desc[BX_MSR_IA32_XFD] = new MSR_Descriptor("XFD", BX_ISA_AMX);\
  msr_desc[BX_MSR_IA32_XFD_ERROR] = new MSR_Descriptor("XFD_ERR", BX_ISA_AMX);\
&/
/BX_CPU_C::rdmsr(/,/BX_CPU_C::wrmsr(/ s/^    case BX_MSR_XSS:/    case BX_MSR_IA32_XFD: val64 = BX_CPU_THIS_PTR msr.ia32_xfd; break;\
    case BX_MSR_IA32_XFD_ERROR: val64 = BX_CPU_THIS_PTR msr.ia32_xfd_err; break;\
&/
/BX_CPU_C::wrmsr(/,$ s/^    case BX_MSR_XSS:/    case BX_MSR_IA32_XFD: BX_CPU_THIS_PTR msr.ia32_xfd = val_64; handleAvxModeChange(); break;\
    case BX_MSR_IA32_XFD_ERROR: BX_CPU_THIS_PTR msr.ia32_xfd_err = val_64; break;\
&/'
edit proc_ctrl.cc 'clear_amx_ok' "/::handleAvxModeChange/,/clear_amx_ok/ s/$tiles)) != 0)\$/$tiles)) != 0 || $off)/
/::BxNoAMX/,/BX_ASSERT/ s/^  BX_ASSERT(0);/  if $off {\\
    BX_CPU_THIS_PTR msr.ia32_xfd_err = $tiles;\\
    exception(BX_NM_EXCEPTION, 0);\\
  }\\
&/"
cd ..
./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-all-optimizations \
    --enable-long-phy-address --enable-show-ips=no --disable-docbook --with-nogui
make
