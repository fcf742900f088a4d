"""Larq Compute Engine on chains of 1-bit convolutions; run by `bench/binary_peers.py` in an environment of its own.

The engine's fast padding is used (`pad_values=1`: the border counts as +1), and both of its convolution kernels: the default, and
the indirect one, which its own documentation leaves off and which is the faster one on x86.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import larq  # pyright: ignore[reportMissingImports]
import larq_compute_engine  # pyright: ignore[reportMissingImports]
import numpy as np
import tf_keras as keras  # pyright: ignore[reportMissingImports]
from larq_compute_engine.tflite.python.interpreter import Interpreter  # pyright: ignore[reportMissingImports]
from serve import Call, Missing, serve


def build(case: dict[str, Any]) -> dict[str, Call]:
    if case["kind"] != "convolutions":
        raise Missing("has no 1-bit fully connected layer")
    channels, size, batch = case["channels"], case["size"], case["batch"]
    x = given = keras.Input((size, size, channels), batch_size=batch)
    for _ in range(case["layers"]):
        x = larq.layers.QuantConv2D(
            channels, 3, padding="same", pad_values=1, use_bias=False,
            input_quantizer="ste_sign", kernel_quantizer="ste_sign", kernel_constraint="weight_clip",
        )(x)  # fmt: skip
        x = keras.layers.BatchNormalization()(x)
    file = larq_compute_engine.convert_keras_model(keras.Model(given, x))
    images = np.random.default_rng(0).standard_normal((batch, size, size, channels), dtype=np.float32)

    def call(indirect: bool) -> Call:
        interpreter = Interpreter(file, num_threads=1, use_indirect_bgemm=indirect)
        return lambda: interpreter.predict(images)

    return {"default": call(False), "indirect": call(True)}


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("larq-compute-engine", "larq", "tensorflow-cpu")}


if __name__ == "__main__":
    serve(build, versions)
