"""Flash and RAM of nets as C files on a Cortex-M4, compiled with -Os and linked.

    apt-get install gcc-arm-none-eabi                # its compiler, and its `size`
    python bench/c_size.py                           # the zoo's packed nets
    python bench/c_size.py NAME ...                  # some of them
    python bench/c_size.py --compiler clang          # of the package ziglang: pip install bitwright[cross]
    python bench/c_size.py --csv sizes.csv

Flash is code, constants and the compiler's own library; RAM is static memory: the stack and the caller's input and answer come
on top. Beside each net stands the same topology with 8-bit weights and inputs (recipe `w8a8`, weights drawn at random: sizes do
not depend on them), written and compiled in the same way.
"""

from __future__ import annotations

import argparse
import csv
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import bitwright as bw
from bitwright.tabular import columns

COMPILERS = {
    "gcc": (
        *("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
        *("-nostartfiles", "--specs=nano.specs"),
    ),
    "clang": (
        *(sys.executable, "-m", "ziglang", "cc", "-target", "thumb-freestanding-eabihf"),
        "-mcpu=cortex_m4+vfp4d16sp",
    ),
}
FLAGS = ("-std=c99", "-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections,-e,begin")
START = """#include "net.h"
int begin(const uint8_t *in, float *out);
int begin(const uint8_t *in, float *out)
{
    return net_run(in, out);
}
"""


def sizes(net: nn.Module, shape: tuple[int, ...], compiler: str) -> tuple[int, int, int]:
    """Bytes of flash, of that the constants, and of RAM."""
    x = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path, start, out = (Path(folder) / name for name in ("net.c", "start.c", "net.elf"))
        report = bw.export.c(net, x, path, bare=True)
        start.write_text(START)
        said([*COMPILERS[compiler], *FLAGS, str(path), str(start), "-o", str(out)])
        flash, ram = linked(out.read_bytes())
        if compiler == "gcc":
            text, data, bss = map(int, said(["arm-none-eabi-size", str(out)]).splitlines()[1].split()[:3])
            assert (flash, ram) == (text + data, data + bss)
    return flash, report.flash, ram


def said(command: list[str]) -> str:
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"no {command[0]} here: apt-get install gcc-arm-none-eabi, or --compiler clang") from None
    if made.returncode:
        raise SystemExit(f"the compiler says: {made.stderr.strip()[:1000]}")
    return made.stdout


def linked(data: bytes) -> tuple[int, int]:
    """(flash, RAM) of a little-endian 32-bit ELF program, from its sections."""
    start, size, count = *struct.unpack_from("<I", data, 32), *struct.unpack_from("<HH", data, 46)
    flash = ram = 0
    for i in range(count):
        kind, flags, _, _, length = struct.unpack_from("<IIIII", data, start + i * size + 4)
        if not flags & 2:  # not in memory when the program runs
            continue
        stored, writable = kind != 8, bool(flags & 1)
        flash += length if stored else 0
        ram += length if writable else 0
    return flash, ram


def of_8_bits(card: bw.zoo.Card) -> nn.Module:
    """The same topology with 8-bit weights and inputs, packed."""
    torch.manual_seed(0)
    channels, size = card.input[0], card.input[-1]
    model = bw.models.create(
        str(card.model["name"]), card.classes,
        **{"in_channels": channels, "size": size, **{k: v for k, v in card.model.items() if k != "name"}},
    )  # fmt: skip
    x = torch.rand(4, *card.input)
    bw.apply(model, "w8a8", x)
    with torch.no_grad():
        model.train()(x)
    done = bw.convert(model.eval(), x, verify=False, force=True)
    if done.model is None:
        raise SystemExit(f"{card.name} with recipe w8a8: {done.report.verdict}")
    return done.model


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=bw.zoo.list("packed"))
    parser.add_argument("--compiler", choices=COMPILERS, default="gcc")
    parser.add_argument("--csv", type=Path, help="write the table there, too")
    given = parser.parse_args()
    names = ("net", "flash", "constants", "ram", "flash_8_bits", "constants_8_bits", "ram_8_bits")
    rows = []
    for name in given.names:
        card = bw.zoo.card(name)
        pair = (bw.zoo.load(name), of_8_bits(card))
        rows.append((name, *(n for net in pair for n in sizes(net, card.input, given.compiler))))
    print("\n".join(columns(names, [(r[0], *(f"{v:,}" for v in r[1:])) for r in rows], right=range(1, 7))))
    if given.csv:
        with given.csv.open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])


if __name__ == "__main__":
    main()
