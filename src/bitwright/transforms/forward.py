"""Running a model without leaving a trace."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def eagerly() -> Iterator[None]:
    """Inside, compiled modules run eagerly: code compiled by `torch.compile` does not see hooks added later."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def version_of(t: Tensor) -> int | None:
    """Changes when t is written to; None for tensors made in `torch.inference_mode()`, where nobody counts."""
    return None if t.is_inference() else t._version


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, torch's operators run on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def evaluating(model: nn.Module, leave: Collection[nn.Module] = ()) -> Iterator[None]:
    """Eval mode, no gradients, own random stream; flags and buffers are put back afterwards.

    leave   modules whose buffers may change
    """
    free = {id(m) for m in leave}
    flags = [(m, m.training) for m in model.modules()]
    buffers = [
        (m, key, b, None if b is None else (version_of(b), b.detach().clone()))
        for m in model.modules()
        if id(m) not in free
        for key, b in m._buffers.items()
    ]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernels read weights past the layers: no hook fires
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), eagerly():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for module, key, buffer, saved in buffers:
                module._buffers[key] = buffer
                if buffer is None or saved is None:
                    continue
                version, value = saved
                if version is None and not torch.equal(buffer, value):
                    module._buffers[key] = value  # outside of inference mode such a tensor cannot be written to
                elif version != version_of(buffer):
                    buffer.copy_(value)


@contextmanager
def reproducible() -> Iterator[None]:
    """No gradients; the same random numbers in every run, for a forward that draws some."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernels read weights past the layers
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def run_model(model: nn.Module, example: Any) -> Any:
    """Calls the model: a tuple or list gives positional arguments, a dict keyword arguments."""
    if isinstance(example, dict):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    return model(example)
