"""The peers: who they are, and building them so that no failure stops a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bitwright.errors import nearest
from bitwright.measure import peers_openvino, peers_ort, peers_torch
from bitwright.quiet import quiet
from bitwright.transforms.twin import FloatNet, one_line

Call = Callable[[], object]
Builder = Callable[[FloatNet, int], dict[str, Call]]
PEERS: dict[str, tuple[str, Builder]] = {
    "torch-fp32": ("fp32", peers_torch.fp32),
    "torch-bf16": ("bf16", peers_torch.bf16),
    "torch-int8": ("int8", peers_torch.int8),
    "ort-fp32": ("fp32", peers_ort.fp32),
    "ort-int8": ("int8", peers_ort.int8),
    "openvino-fp32": ("fp32", peers_openvino.fp32),
    "openvino-bf16": ("bf16", peers_openvino.bf16),
    "openvino-int8": ("int8", peers_openvino.int8),
}


@dataclass(frozen=True)
class Peer:
    """Ready to run: one callable for each memory layout worth trying, or the reason why there is none."""

    name: str
    precision: str
    variants: dict[str, Call] = field(default_factory=dict)
    note: str = ""


def build_peer(name: str, net: FloatNet | str, threads: int) -> Peer:
    """One peer of a float net, or the row that says why not: no such peer, or `net` is the reason."""
    if name not in PEERS:
        return Peer(
            name, "-", note=f"unavailable: unknown peer {name!r}.{nearest(name, PEERS)} Known: {', '.join(PEERS)}"
        )
    precision, builder = PEERS[name]
    if isinstance(net, str):
        return Peer(name, precision, note=f"unavailable: {net}")
    try:
        with quiet():
            variants, failed = _running(builder(net, threads))
            if failed is not None and not variants:
                raise failed
    except ImportError as error:
        package = "openvino" if error.name == "openvino" else "onnx onnxscript onnxruntime"
        return Peer(name, precision, note=f"unavailable: pip install {package}")
    except Exception as error:  # whatever a peer cannot do is its row's reason, never our failure
        return Peer(name, precision, note=f"unavailable: {one_line(error)}")
    return Peer(name, precision, variants, net.note if name.startswith("torch") else "")


def _running(variants: dict[str, Call]) -> tuple[dict[str, Call], Exception | None]:
    """The variants that run: a forward with `x.view(x.size(0), -1)` runs in plain layout only."""
    good: dict[str, Call] = {}
    failed: Exception | None = None
    for label, call in variants.items():
        try:
            call()
            good[label] = call
        except Exception as error:
            failed = error
    return good, failed
