"""The text of the C file and of its header."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bitwright.export_c import shared
from bitwright.export_c.program import CProgram
from bitwright.export_c.text import comment, identifier, lines, literals
from bitwright.version import __version__


@dataclass(frozen=True)
class Sizes:
    """What goes in and what comes out: [channels, height, width], numbers of an answer, images a call."""

    entry: tuple[int, ...]
    answer: tuple[int, ...]
    batch: int

    @property
    def inputs(self) -> int:
        return int(np.prod(self.entry))

    @property
    def outputs(self) -> int:
        return int(np.prod(self.answer))


@dataclass(frozen=True)
class Checks:
    """Stored inputs, pixels or floats, with the bits of their answers."""

    given: Tensor
    want: Tensor


def _axes(shape: tuple[int, ...]) -> str:
    names = {1: "[i]", 3: "[channel][row][column]"}.get(len(shape), "")
    return f"{' x '.join(map(str, shape))} {names}".strip()


def header(p: CProgram, shape: Sizes, arena: int, stem: str) -> str:
    guard = f"{identifier(stem).upper()}_H"
    floats = "".join(f"     {comment(line)}\n" for line in p.floats) or "     none\n"
    runs = []
    if p.takes_pixels:
        pixel = "k / 255" if p.pixels.scale is None else "(k / 255 - mean) / std of its channel"
        runs.append(
            f"/* in: {shape.inputs} pixels an image, {_axes(shape.entry)}; pixel k stands for {pixel}.\n"
            f"   out: {shape.outputs} floats an image. Returns 0. */\n"
            "int net_run(const uint8_t *in, float *out);\n"
        )
    if p.takes_floats:
        runs.append(
            f"/* in: {shape.inputs} floats an image, {_axes(shape.entry)}, as the trained net reads them.\n"
            f"   out: {shape.outputs} floats an image. Returns 0; 1 where a number is NaN or beyond 2^20: out is not complete then. */\n"
            "int net_run_float(const float *in, float *out);\n"
        )
    return (
        f"/* A packed neural network, written by bitwright {__version__}. The program is in {stem}.c.\n\n"
        f"   Constants: {p.flash} bytes. Memory: {arena * 4} bytes, static: one call at a time.\n"
        f"   Steps that compute in float:\n{floats}"
        "   Everything else is exact in integers. */\n"
        f"#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n\n"
        '#ifdef __cplusplus\nextern "C" {\n#endif\n\n'
        f"#define NET_BATCH {shape.batch}    /* images a call */\n"
        f"#define NET_INPUTS {shape.inputs}  /* numbers of an image */\n"
        f"#define NET_OUTPUTS {shape.outputs} /* numbers of an answer */\n"
        f"#define NET_ARENA_BYTES {arena * 4}\n\n"
        + "\n".join(runs)
        + "\n/* Runs the stored inputs: 0, or the number of the first whose answer differs in a bit. Only with -DNET_SELF_CHECK. */\n"
        "int net_self_check(void);\n\n"
        "#ifdef __cplusplus\n}\n#endif\n\n#endif\n"
    )


def source(p: CProgram, shape: Sizes, arena: int, stem: str, checks: Checks, progmem: bool, bare: bool) -> str:
    bodies = []
    for step in p.steps:
        bodies.append(f"/* {comment(step.comment)} */\nstatic void {step.name}(void)\n{{\n{step.body()}}}\n")
    main = _runs(p, shape) + _self_check(p, shape, checks, bare)
    reading = "static const uint8_t *net_in; /* the image that is being read */\n\n" if p.entry is None else ""
    program = reading + "\n".join(bodies) + "\n" + main
    return (
        f"/* A packed neural network, written by bitwright {__version__}; {stem}.h says how to call it.\n\n"
        f"   Compile it as C99 or later, or as C++:   cc -std=c99 -O2 -c {stem}.c\n"
        f"   Check it on this machine:                cc -std=c99 -O2 -DNET_SELF_CHECK {stem}.c && ./a.out && echo equal\n"
        "   Any optimization will do, but -ffast-math and clang's -ffp-contract=fast, which change how numbers are rounded.\n\n"
        "   It needs no library and no heap. First come the functions that all layers share, then the constants and one\n"
        "   function a layer, then the calls. Values lie in one arena, where those that are not needed any more make room;\n"
        "   images are stored [row][column][channel]. */\n"
        f'#include "{stem}.h"\n\n'
        + _storage(progmem)
        + shared.used(program)
        + f"\n/* The memory of all values. Places are in words of 32 bits. */\nstatic uint32_t net_arena[{max(1, arena)}];\n"
        "#define NET_WORDS(at) ((net_word *)(void *)(net_arena + (at)))\n"
        "#define NET_SUMS(at) ((net_sum *)(void *)(net_arena + (at)))\n"
        "#define NET_SHORTS(at) ((net_short *)(void *)(net_arena + (at)))\n"
        "#define NET_FLOATS(at) ((net_float *)(void *)(net_arena + (at)))\n"
        "#define NET_BYTES(at) ((uint8_t *)(void *)(net_arena + (at)))\n\n" + "\n".join(p.arrays) + "\n" + program
    )


def _storage(progmem: bool) -> str:
    if not progmem:
        return "#define NET_CONST const\n#define NET_SECTION\n\n"
    return (
        "/* Constants go to a section of their own, for the linker script to place in flash. */\n"
        "#define NET_CONST const\n"
        "#ifndef NET_SECTION\n"
        '#define NET_SECTION __attribute__((section(".rodata.net")))\n'
        "#endif\n\n"
    )


def _runs(p: CProgram, shape: Sizes) -> str:
    calls = "".join(f"    {step.name}();\n" for step in p.steps)
    answer = p.values[p.graph.nodes[-1].inputs[0]]
    give = f"    net_give_floats(NET_FLOATS({answer.at}), {answer.channels}, {answer.pixels}, out);\n"
    text = (
        f"/* One image: what was given -> the answer. */\nstatic void net_layers(float *out)\n{{\n{calls}{give}}}\n\n"
    )
    start = p.entry
    channels, pixels = (0, 0) if start is None else (start.channels, start.pixels)
    loop = (
        "    int32_t image;\n"
        "    for (image = 0; image < NET_BATCH; image++, in += NET_INPUTS, out += NET_OUTPUTS) {\n%s"
        "        net_layers(out);\n    }\n    return 0;\n"
    )
    if p.takes_pixels:
        if start is None:
            take = "        net_in = in;\n"
        else:
            scale, offset = p.pixel_arrays
            take = (
                f"        net_pixels_to_floats(in, {channels}, {pixels}, {scale}, {offset}, NET_FLOATS({start.at}));\n"
            )
        text += f"int net_run(const uint8_t *in, float *out)\n{{\n{loop % take}}}\n\n"
    if p.takes_floats:
        assert start is not None
        take = (
            f"        if (net_take_floats(in, {channels}, {pixels}, NET_FLOATS({start.at})))\n            return 1;\n"
        )
        text += f"int net_run_float(const float *in, float *out)\n{{\n{loop % take}}}\n\n"
    return text


def _self_check(p: CProgram, shape: Sizes, checks: Checks, bare: bool) -> str:
    ctype = "uint8_t" if p.takes_pixels else "float"
    function = "net_run" if p.takes_pixels else "net_run_float"
    bits = checks.want.numpy().astype(np.float32).reshape(-1).view(np.uint32)
    count = len(checks.given)
    main = "" if bare else "\nint main(void)\n{\n    return net_self_check();\n}\n"
    return (
        "#ifdef NET_SELF_CHECK\n"
        f"static NET_CONST {ctype} net_check_in[{count * shape.inputs}] NET_SECTION = {{\n"
        f"{lines(literals(checks.given, ctype))}\n}};\n"
        "/* the bits of the answers */\n"
        f"static NET_CONST uint32_t net_check_out[{count * shape.outputs}] NET_SECTION = {{\n"
        f"{lines(literals(bits, 'uint32_t'))}\n}};\n\n"
        "int net_self_check(void)\n{\n"
        f"    static {ctype} in[NET_BATCH * NET_INPUTS];\n"
        "    static float out[NET_BATCH * NET_OUTPUTS];\n"
        "    union { float value; uint32_t bits; } one;\n"
        "    int32_t check, i, image;\n"
        f"    for (check = 0; check < {count}; check++) {{\n"
        "        for (image = 0; image < NET_BATCH; image++) /* every place of a batch gets another input */\n"
        "            for (i = 0; i < NET_INPUTS; i++)\n"
        f"                in[image * NET_INPUTS + i] = net_check_in[(check + image) % {count} * NET_INPUTS + i];\n"
        f"        if ({function}(in, out))\n            return (int)check + 1;\n"
        "        for (image = 0; image < NET_BATCH; image++)\n"
        "            for (i = 0; i < NET_OUTPUTS; i++) {\n"
        "                one.value = out[image * NET_OUTPUTS + i];\n"
        f"                if (one.bits != net_check_out[(check + image) % {count} * NET_OUTPUTS + i])\n"
        "                    return (int)check + 1;\n"
        "            }\n"
        "    }\n    return 0;\n}\n"
        f"{main}#endif\n"
    )
