"""Shows every slot the data it will see."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from typing import Any

from torch import nn

from bitwright.errors import InputError
from bitwright.parts.moments import moment
from bitwright.transforms.batch_norms import BATCH_NORMS, norms_training
from bitwright.transforms.clips import awake
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.project import parts_of
from bitwright.transforms.unwrap import unwrap


def calibrate(
    model: nn.Module, batches: Iterable[Any], norms: str = "running", parts: Collection[nn.Module] | None = None
) -> None:
    """Runs eval forwards over `batches` (inputs, or (input, target) pairs) and feeds `observe` of the parts.

    A part observes a batch just before it quantizes it, so later layers see inputs that are already in range.
    Weights are observed once. Nothing else changes: no running statistics, no training flags.

    norms   "running": norms use their running statistics, as the net will after training or packing as it is;
            "batch": those of each batch, as training will. Before training take "batch": where the parts change the
            size of weights (dorefa_w puts them on [-1, 1]), the running statistics of the float net do not fit, the
            activations grow from layer to layer, and ranges read off them leave every later input at zero
    parts   only these; None: all of the model

    >>> import bitwright as bw, torch
    >>> net = nn.Sequential(bw.nn.Linear(2, 1, x={"part": "uniform", "bits": 8}))
    >>> calibrate(net, [torch.tensor([[0.5, 3.0]])])
    >>> net[0].x.high.item()
    3.0
    """
    if norms not in ("running", "batch"):
        raise InputError(f"calibrate: norms={norms!r} is neither running nor batch", code="option", given=norms)
    model = unwrap(model)
    wanted = None if parts is None else {id(part) for part in parts}
    observers = [
        (slot, part)
        for _, _, slot, part in parts_of(model)
        if moment(part, "observe") is not None and (wanted is None or id(part) in wanted)
    ]
    counted, done = 0, set[int]()

    def watch(slot: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: tuple[Any, ...]) -> None:
            if slot in ("w", "b") and id(part) in done:
                return  # the weight does not change from batch to batch
            done.add(id(part))
            observe = moment(part, "observe")
            value = args[1] if slot == "gate" else args[0]
            if observe is not None:
                observe(value.detach())

        return hook

    handles = [part.register_forward_pre_hook(watch(slot)) for slot, part in observers]
    try:
        leave = [m for _, part in observers for m in part.modules() if not isinstance(m, BATCH_NORMS)]
        of_batch = norms_training(model) if norms == "batch" else nullcontext()
        with evaluating(model, leave=leave), of_batch, awake(model):
            for batch in batches:
                counted += 1
                run_model(model, batch[0] if isinstance(batch, (tuple, list)) else batch)
    finally:
        for handle in handles:
            handle.remove()
    if not counted:
        raise InputError("calibrate: no batches. Give at least one batch of inputs", code="batches-none")
