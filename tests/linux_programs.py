"""Static Linux programs for 64-bit ARM, run by the emulator unicorn.

The emulator has one processor and no system below it. This file gives what a C library asks for before `main` and for memory and
output; no second thread can be made, and a program must get along without.
"""

from __future__ import annotations

import importlib
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machines import loaded

STACK, ROOM, HEAP, PAGE = 0x7000_0000, 0x80_0000, 0x1_0000_0000, 0x1000
DOT = 1 << 20  # of AT_HWCAP: the dot product of int8
AGAIN, UNKNOWN = -11, -38  # errors of Linux
WRITE, WRITEV, EXIT, EXIT_GROUP, CLONE, BRK, MUNMAP, MMAP = 64, 66, 93, 94, 220, 214, 215, 222
IGNORED = {
    29,
    96,
    98,
    124,
    134,
    135,
    215,
    226,
    233,
}  # ioctl, tid, futex, yield, signals, memory given back or protected


def run(program: Path, arguments: Sequence[str], dot: bool) -> tuple[int, str]:
    """(exit code, what it wrote) on a processor with or without the dot product of int8."""
    unicorn, arm = importlib.import_module("unicorn"), importlib.import_module("unicorn.arm64_const")
    uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_LITTLE_ENDIAN)
    uc.ctl_set_cpu_model(arm.UC_CPU_ARM64_MAX if dot else arm.UC_CPU_ARM64_A53)
    entry, segments = loaded(program.read_bytes())
    low = min(at for at, _, _ in segments) & -PAGE
    high = (max(at + size for at, _, size in segments) + PAGE - 1) & -PAGE
    uc.mem_map(low, high - low)
    for at, data, _ in segments:
        uc.mem_write(at, data)
    uc.mem_map(STACK, ROOM)
    uc.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)
    uc.reg_write(
        arm.UC_ARM64_REG_SP, _stack(uc, [program.name, *arguments], program.read_bytes(), low, DOT if dot else 0)
    )
    said, state = bytearray(), {"heap": HEAP, "code": -1}

    def system(_: object, number: int, __: object) -> None:
        if number != 2:
            state["code"] = 1000 + number  # an instruction that this processor does not have, or a wrong address
            uc.emu_stop()
            return
        call = uc.reg_read(arm.UC_ARM64_REG_X8)
        a, b, c = (uc.reg_read(getattr(arm, f"UC_ARM64_REG_X{i}")) for i in range(3))
        answer = 0 if call in IGNORED else UNKNOWN
        if call in (EXIT, EXIT_GROUP):
            state["code"] = a
            uc.emu_stop()
        elif call == WRITE:
            said.extend(uc.mem_read(b, c))
            answer = c
        elif call == WRITEV:
            parts = [struct.unpack("<QQ", bytes(uc.mem_read(b + 16 * i, 16))) for i in range(c)]
            for at, size in parts:
                said.extend(uc.mem_read(at, size))
            answer = sum(size for _, size in parts)
        elif call == CLONE:
            answer = AGAIN
        elif call == MMAP:
            size = (b + PAGE - 1) & -PAGE
            uc.mem_map(state["heap"], size)
            answer, state["heap"] = state["heap"], state["heap"] + size
        uc.reg_write(arm.UC_ARM64_REG_X0, answer & 0xFFFF_FFFF_FFFF_FFFF)

    uc.hook_add(unicorn.UC_HOOK_INTR, system)
    uc.emu_start(entry, 0)
    return state["code"], said.decode(errors="replace")


def _stack(uc: Any, arguments: list[str], program: bytes, low: int, features: int) -> int:
    """Arguments and the facts about machine and program that the C library reads; the stack pointer."""
    (table,), (size, count) = struct.unpack_from("<Q", program, 32), struct.unpack_from("<HH", program, 54)
    at, places = STACK + ROOM - 0x8000, []
    for text in arguments:
        uc.mem_write(at, text.encode() + b"\0")
        places.append(at)
        at += len(text) + 1
    seed = STACK + ROOM - 0x1000
    facts = {3: low + table, 4: size, 5: count, 6: PAGE, 16: features, 23: 0, 25: seed, 0: 0}
    words = [len(arguments), *places, 0, 0, *(v for pair in facts.items() for v in pair)]
    top = STACK + ROOM - 0x10000
    uc.mem_write(top, struct.pack(f"<{len(words)}Q", *words))
    return top


def emulated(program: Path, *arguments: str, dot: bool) -> tuple[int, str]:
    """`run` in a process of its own: an emulator that meets what it does not know may end its process."""
    command = [sys.executable, __file__, str(program), str(int(dot)), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-1000:])
    code, _, said = ran.stdout.partition("\n")
    return int(code), said


if __name__ == "__main__":
    result, text = run(Path(sys.argv[1]), sys.argv[3:], sys.argv[2] == "1")
    print(result)
    print(text, end="")
