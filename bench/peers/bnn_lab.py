"""bnn-lab on 1-bit fully connected layers, floats in and out; run by `bench/binary_peers.py` in an environment of its own."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from bnn.kernels import packed  # pyright: ignore[reportMissingImports]
from bnn.wrap.packed_linear import PackedBinaryXNORLinear  # pyright: ignore[reportMissingImports]
from serve import Call, Missing, serve


def build(case: dict[str, Any]) -> dict[str, Call]:
    if case["kind"] != "linear":
        raise Missing("has no 1-bit convolution kernel")
    if not packed.native_kernel_available():
        raise Missing("its compiled kernel does not load")
    torch.set_num_threads(1)
    packed.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    layer = PackedBinaryXNORLinear(torch.randn(case["outputs"], case["inputs"], generator=generator))
    x = torch.randn(case["batch"], case["inputs"], generator=generator)
    return {packed.kernel_name(): lambda: layer(x)}


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("bnn-lab", "torch")}


if __name__ == "__main__":
    with torch.inference_mode():
        serve(build, versions)
