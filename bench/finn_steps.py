"""Nets of the zoo through FINN's front end: exported as QONNX, converted to FINN's dialect, streamlined, run and compared.

    pip install bitwright[qonnx]
    pip install --no-deps finn-plus      # its pins are for its own container; these steps need none of what they pin
    python bench/finn_steps.py [--images N] [NAME ...]

Prints the table of docs/guides/qonnx.md: images with the packed net's class, images with its bits, and the largest difference of an
output, once converted and once streamlined too; then thresholds, and products that are still float. FINN's later steps, which make
hardware layers, need the tools of the FPGA's maker and are not run.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitwright as bw
from bitwright.errors import InputError

PRODUCTS = ("MatMul", "Conv")


def answers(model: Any, x: np.ndarray) -> np.ndarray:
    """The file has a batch of 1."""
    run = import_module("qonnx.core.onnx_exec").execute_onnx
    given, found = model.graph.input[0].name, model.graph.output[0].name
    return np.concatenate([run(model, {given: one[None]})[found] for one in x])


def compared(got: np.ndarray, want: np.ndarray) -> list[str]:
    same, equal = (got.argmax(1) == want.argmax(1)).sum(), (got == want).all(1).sum()
    return [f"{same} of {len(want)}", f"{equal} of {len(want)}", f"{np.abs(got - want).max():.1e}"]


def floats(model: Any) -> int:
    """Products with an operand that is not whole numbers."""
    return sum(
        any(not model.get_tensor_datatype(name).is_integer() for name in node.input)
        for node in model.graph.node
        if node.op_type in PRODUCTS
    )


def row(name: str, images: int) -> list[str]:
    net, card = bw.zoo.load(name), bw.zoo.card(name)
    x = next(iter(bw.zoo.data(card, "test").limit(images).batches(images, normalize=card.normalize)))[0]
    with tempfile.TemporaryDirectory() as folder:
        bw.export.qonnx(net, x, Path(folder) / "net.onnx")
        model = import_module("qonnx.util.cleanup").cleanup_model(
            import_module("qonnx.core.modelwrapper").ModelWrapper(str(Path(folder) / "net.onnx"))
        )
    want = net(x).detach().numpy()
    convert = import_module("finn.transformation.qonnx.convert_qonnx_to_finn").ConvertQONNXtoFINN
    streamline = import_module("finn.transformation.streamline").Streamline
    found = []
    for change in (convert, streamline):
        model = model.transform(change())
        found += compared(answers(model, x.numpy()), want)
    kinds = [node.op_type for node in model.graph.node]
    return [name, *found, str(kinds.count("MultiThreshold")), f"{floats(model)} of {sum(k in PRODUCTS for k in kinds)}"]


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=bw.zoo.list("packed"))
    parser.add_argument("--images", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    titles = ("same class", "equal", "largest")
    head = ["net", *(f"{step}: {t}" for step in ("converted", "streamlined") for t in titles)]
    print(f"finn-plus {metadata.version('finn-plus')}, qonnx {metadata.version('qonnx')}\n")
    print(
        "| " + " | ".join([*head, "thresholds", "products in float"]) + " |\n|" + "---|" * (len(head) + 2), flush=True
    )
    for name in given.names:
        try:
            print("| " + " | ".join(row(name, given.images)) + " |", flush=True)
        except InputError as error:
            print(f"{name}: {error}", flush=True)


if __name__ == "__main__":
    main()
