"""The native core (`csrc/`, one shared library with a C ABI) for torch tensors.

Words are int32 tensors `[N, H, W, planes, Cw]`, byte codes uint8 `[N, H, W, C]`, both contiguous; float and
integer results come back NCHW-shaped in channels_last memory. What does not change between calls (weights,
geometry, thresholds) is prepared once in a plan; a call then costs a few microseconds of Python. Plans are
immutable and may be shared by threads; they are not pickled, their owner keeps the weights.

    plan = ConvPlan.bits(weight_bits, w_mult=[2], w_zero=-1, x_mult=[2], x_zero=-1, padding=1)
    words = to_words((x >= 0).to(torch.uint8), planes=1)  # x [N, H, W, C]
    y = plan.run(words, FloatOutput(scale, add))

Without the library (no compiler when the package was built) `available()` is False and `notice()` says why.

This file is the public face; each part has its own: native_library (loading, instruction sets, errors),
native_output, native_conv, native_codes; native_run calls them in a row.
"""

from __future__ import annotations

from bitwright.engine.native_codes import PackPlan, to_words, unpack_codes
from bitwright.engine.native_conv import ConvPlan
from bitwright.engine.native_library import available, force_isa, isa, isas, notice, word_count
from bitwright.engine.native_output import CodeOutput, FloatOutput, GridOutput, KernelOutput

__all__ = [
    "CodeOutput", "ConvPlan", "FloatOutput", "GridOutput", "KernelOutput", "PackPlan", "available", "force_isa", "isa", "isas",
    "notice", "to_words", "unpack_codes", "word_count",
]  # fmt: skip
