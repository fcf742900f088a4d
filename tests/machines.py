"""Programs for other machines: compiled by the clang of the package ziglang, run by qemu-user."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Machine:
    """A target of the compiler, the emulator's command, and how a Linux process there ends with a function's answer."""

    target: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...]
    end: str


ARM, THUMB = "bl net_self_check; mov r7, #1; svc #0", ".thumb; .thumb_func"
MACHINES = {
    "aarch64": Machine(
        "aarch64-freestanding", (), ("qemu-aarch64", "-cpu", "cortex-a53"),
        "begin: bl net_self_check; mov x8, #93; svc #0",
    ),
    "armv7": Machine(
        "arm-freestanding-eabihf", ("-mcpu=cortex_a7",), ("qemu-arm", "-cpu", "cortex-a7"), f"begin: {ARM}"
    ),
    # Thumb code as their compiler writes it; the emulator has no processes on a processor without supervisor
    "cortex-m4": Machine(
        "thumb-freestanding-eabihf", ("-mcpu=cortex_m4+vfp4d16sp",), ("qemu-arm",), f"{THUMB}; begin: {ARM}"
    ),
    "cortex-m0": Machine(
        "thumb-freestanding-eabi", ("-mcpu=cortex_m0",), ("qemu-arm",), f"{THUMB}; begin: {ARM.replace('mov', 'movs')}"
    ),
    "mips, big-endian": Machine(
        "mips-freestanding-eabi", (), ("qemu-mips",),
        ".set noreorder; begin: lui $25, %hi(net_self_check); addiu $25, $25, %lo(net_self_check); jalr $25; nop; "
        "move $4, $2; li $2, 4001; syscall",
    ),
    "powerpc, big-endian": Machine(
        "powerpc-freestanding-eabi", (), ("qemu-ppc",), "begin: bl net_self_check; li 0, 1; sc"
    ),
    "s390x, big-endian": Machine(
        "s390x-freestanding", (), ("qemu-s390x",),
        "begin: aghi %r15, -160; brasl %r14, net_self_check; lghi %r1, 1; svc 0",
    ),
    "x86": Machine(
        "x86-freestanding", ("-mcpu=i686",), ("qemu-i386",),
        "begin: call net_self_check; mov %eax, %ebx; mov $1, %eax; int $0x80",
    ),
}  # fmt: skip


def compiled(machine: Machine, source: Path, *flags: str) -> Path:
    """A program without a C library, whose exit status is the answer of the self-check."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler for other machines: pip install bitwright[cross]")
    start, out = source.with_name("start.S"), source.with_name("program")
    start.write_text("".join(f"{line.strip()}\n" for line in f".globl begin; {machine.end}".split(";")))
    command = [
        *(sys.executable, "-m", "ziglang", "cc", "-target", machine.target, *machine.flags),
        *("-std=c99", "-ffreestanding", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-DNET_SELF_CHECK", *flags),
        *(str(source), str(start), "-Wl,-e,begin", "-o", str(out)),
    ]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[:2000]
    return out


def emulated(emulator: tuple[str, ...], program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the program said, and its exit status."""
    if shutil.which(emulator[0]) is None:
        pytest.skip(f"no {emulator[0]}: apt-get install qemu-user")
    command = [*emulator, str(program), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1200, env={"PATH": os.environ["PATH"]})
    assert ended.returncode >= 0, (command, ended.returncode, ended.stderr[-1000:])
    return ended
