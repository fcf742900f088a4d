"""Programs for other machines: compiled by the clang of the package ziglang, run by the emulator unicorn."""

from __future__ import annotations

import importlib
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

START = "int net_self_check(void);\nint begin(void);\nint begin(void)\n{\n    return net_self_check();\n}\n"
STACK, ROOM = 0x70000000, 0x100000


@dataclass(frozen=True)
class Machine:
    """A target of the compiler, and how the emulator calls its processor: names of constants in unicorn.

    registers   stack pointer, return address, result
    on          registers to set first: the switches of the floating-point unit
    odd         addresses of functions are odd: Thumb
    """

    target: str
    flags: tuple[str, ...]
    processor: str
    mode: tuple[str, ...]
    registers: tuple[str, str, str]
    on: tuple[tuple[str, int], ...] = ()
    odd: bool = False

    def registers_of(self) -> dict[str, int]:
        module = importlib.import_module(f"unicorn.{self.processor.lower()}_const")
        return vars(module)


VFP = (("UC_ARM_REG_C1_C0_2", 0xF << 20), ("UC_ARM_REG_FPEXC", 1 << 30))
ARM = ("UC_ARM_REG_SP", "UC_ARM_REG_LR", "UC_ARM_REG_R0")
MACHINES = {
    "aarch64": Machine(
        "aarch64-freestanding", (), "ARM64", ("LITTLE_ENDIAN",),
        ("UC_ARM64_REG_SP", "UC_ARM64_REG_LR", "UC_ARM64_REG_X0"), (("UC_ARM64_REG_CPACR_EL1", 3 << 20),),
    ),
    "armv7": Machine("arm-freestanding-eabihf", ("-mcpu=cortex_a7",), "ARM", ("ARM",), ARM, VFP),
    "cortex-m4": Machine(
        "thumb-freestanding-eabihf", ("-mcpu=cortex_m4+vfp4d16sp",), "ARM", ("THUMB",), ARM, VFP, odd=True
    ),
    "cortex-m0": Machine("thumb-freestanding-eabi", ("-mcpu=cortex_m0",), "ARM", ("THUMB",), ARM, odd=True),
    # unrolled loops of this machine end the emulator's process
    "mips, big-endian": Machine(
        "mips-freestanding-eabi", ("-fno-unroll-loops",), "MIPS", ("MIPS32", "BIG_ENDIAN"),
        ("UC_MIPS_REG_SP", "UC_MIPS_REG_RA", "UC_MIPS_REG_V0"),
    ),
    "powerpc, big-endian": Machine(
        "powerpc-freestanding-eabi", (), "PPC", ("PPC32", "BIG_ENDIAN"), ("UC_PPC_REG_1", "UC_PPC_REG_LR", "UC_PPC_REG_3")
    ),
    "x86": Machine(
        "x86-freestanding", ("-mcpu=i686",), "X86", ("32",), ("UC_X86_REG_ESP", "", "UC_X86_REG_EAX")
    ),
}  # fmt: skip


def compiled(machine: Machine, source: Path, *flags: str) -> Path:
    """A program without an operating system; its entry runs the self-check."""
    start, out = source.with_name("start.c"), source.with_name("program.elf")
    start.write_text(START)
    command = [
        *(
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-target",
            machine.target,
            *machine.flags,
            "-std=c99",
            "-ffreestanding",
        ),
        *("-Wall", "-Wextra", "-Wconversion", "-Werror", "-DNET_SELF_CHECK", *flags),
        *(str(source), str(start), "-Wl,-e,begin", "-o", str(out)),
    ]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[:2000]
    return out


def run(machine: Machine, program: Path) -> int:
    """What the program's entry returns."""
    unicorn = importlib.import_module("unicorn")

    entry, segments = loaded(program.read_bytes())
    mode = sum(getattr(unicorn, f"UC_MODE_{m}") for m in machine.mode)
    uc = unicorn.Uc(getattr(unicorn, f"UC_ARCH_{machine.processor}"), mode)
    low = min(at for at, _, _ in segments) & ~0xFFF
    uc.mem_map(low, (max(at + size for at, _, size in segments) - low + 0xFFF) & ~0xFFF)
    for at, data, _ in segments:
        uc.mem_write(at, data)
    uc.mem_map(STACK, ROOM)
    names = machine.registers_of()
    stack, back, result = machine.registers
    top = STACK + ROOM - 0x10000
    if back:
        uc.reg_write(names[back], STACK | machine.odd)
    else:  # x86 returns to the address on the stack
        uc.mem_write(top, struct.pack("<I", STACK))
    uc.reg_write(names[stack], top)
    for name, value in machine.on:
        uc.reg_write(names[name], value)
    if machine.processor == "MIPS":
        uc.reg_write(names["UC_MIPS_REG_25"], entry)  # functions find their data by their own address
    uc.emu_start(entry | machine.odd, STACK)
    return int(uc.reg_read(names[result])) & 0xFFFFFFFF


def loaded(data: bytes) -> tuple[int, list[tuple[int, bytes, int]]]:
    """Entry and (address, bytes, size in memory) of the parts of an ELF program."""
    wide, end = data[4] == 2, "<" if data[5] == 1 else ">"
    entry, table = struct.unpack_from(end + ("QQ" if wide else "II"), data, 24)
    size, count = struct.unpack_from(end + "HH", data, 54 if wide else 42)
    found = []
    for i in range(count):
        row = struct.unpack_from(end + ("IIQQQQQQ" if wide else "IIIIIIII"), data, table + i * size)
        kind, start, at, stored, memory = (
            row[0],
            *((row[2], row[3], row[5], row[6]) if wide else (row[1], row[2], row[4], row[5])),
        )
        if kind == 1:
            found.append((at, data[start : start + stored], memory))
    return entry, found


def emulated(name: str, program: Path) -> int:
    """`run` in a process of its own: an emulator that meets what it does not know may end its process."""
    ran = subprocess.run([sys.executable, __file__, name, str(program)], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, (name, ran.returncode, ran.stderr[-500:])
    return int(ran.stdout)


if __name__ == "__main__":
    print(run(MACHINES[sys.argv[1]], Path(sys.argv[2])))
