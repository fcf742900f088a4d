"""TensorBoard's histograms of weights and activations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bitwright.training.probe import IMAGES
from bitwright.transforms.layers import candidates

LARGEST = 1e19
OUTPUT = "net-output"  # with a hyphen: no name of a module


class Histograms:
    """Keeps the inputs of every compute layer, and the net's output, for the one step whose histograms are written."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = {c.name: c.module for c in candidates(model)}
        self.inputs: dict[str, Tensor] = {}
        self._handles = [m.register_forward_pre_hook(self._keep(n)) for n, m in self.layers.items()]
        self._handles.append(model.register_forward_hook(self._keep_output))

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            self.inputs.setdefault(OUTPUT, output.detach()[:IMAGES].float())

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                self.inputs.setdefault(name, args[0].detach()[:IMAGES].float())

        return hook

    def write(self, writer: Any, step: int) -> None:
        for handle in self._handles:
            handle.remove()
        for name in [*self.layers, OUTPUT]:
            weight = getattr(self.layers.get(name), "weight", None)
            for kind, value in (("weights", weight), ("activations", self.inputs.get(name))):
                # beyond that TensorBoard has no bins, and a NaN has its own message
                if isinstance(value, Tensor) and value.numel() and bool((value.abs() < LARGEST).all()):
                    writer.add_histogram(f"{kind}/{name}", value.detach().float().cpu(), step)
