"""PCA of what each layer computes: how many directions its outputs really use, and where that number rises."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.analysis.hybrid import parts_of_ends
from bitwright.analysis.pca_result import Pca, PcaLayer
from bitwright.analysis.scatter import Scatter, everywhere, gathered, halves_of
from bitwright.analysis.select import COUNTS, components, cumulative, select_layers
from bitwright.errors import BitwrightWarning, InputError
from bitwright.nn.layers import KINDS
from bitwright.transforms.flow import Flow, trace_flow
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.layers import candidates
from bitwright.transforms.unwrap import unwrap

ROWS_PER_CHANNEL = 10


def pca(
    model: nn.Module,
    batches: Iterable[Any],
    threshold: float = 0.99,
    delta: float = 2,
    count: str = "below",
    *,
    relative: float | None = None,
    budget: float | None = None,
    residual: str = "latest",
    always: Iterable[str] = (),
    never: Iterable[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Pca:
    """Significant components of every inner conv and linear layer, and the layers where their number rises.

    value      X [rows, C]: the layer's linear output (before norm and activation), a row per sample and pixel, centered;
               c_j = share of the variance in the first j principal components; n = #{c_j < threshold} (count="below",
               as published) or one more ("needed"); a layer is significant where n rises by `delta` or more over the
               layer that makes its input
    batches    inputs, or (input, target) pairs; give training images without augmentation. One pass, in eval mode;
               float64 sums of C x C numbers, so any number of batches and processes gives the same
    relative   least rise of n / C, instead of delta;   budget   instead: the largest rises that hold at most this share
               of the analyzed weights
    residual   where adds give a layer's input several producers: "latest" takes the last one that ran, "largest" the
               one with most components
    always, never   globs of layers that are in, or out, whatever they count
    left out   first and last layer in execution order, and 1x1 shortcuts: those follow the layer that they bypass
    errors     fewer than 10 rows per channel; no batch; a layer that did not run
    source     Chakraborty et al. 2019, arXiv 1906.01493; its public code
    differs    several batches of training data, not the last test batch; that code takes the layer defined before,
               this the layer that makes the input

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 8), nn.Linear(8, 2))
    >>> found = pca(net, [torch.randn(200, 4)], delta=1, count="needed")
    >>> list(found.components), found.components["2"] <= 2
    (['1', '2'], True)
    """
    _check(threshold, count, residual, relative, budget)
    model = unwrap(model)
    kept: dict[str, list[Scatter]] = {}
    sources: Flow | None = None
    modules = {c.name: c.module for c in candidates(model) if not c.reason}
    seen = 0
    for batch in batches:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        first = _first(inputs)
        if first is None or not len(first):
            continue
        if sources is None:
            sources = trace_flow(model, first[:2] if inputs is first else inputs)
            kept = {name: [] for name in _inner(sources, modules)}
        _collect(model, inputs, halves_of(first), {name: modules[name] for name in kept}, kept)
        seen += len(first)
        if progress is not None:
            progress(seen)
    if not everywhere(sources is not None) or sources is None:
        raise InputError("pca: no batches. Give at least one batch of inputs", code="batches-none")
    whole = {name: gathered(pieces) for name, pieces in kept.items()}
    spectra = {name: (a.merged(b), a, b) for name, (a, b) in whole.items()}
    _check_rows({name: each[0] for name, each in spectra.items()})
    rows = []
    for name, (both, a, b) in spectra.items():
        curve = cumulative(both.spectrum())
        found = components(curve, threshold, count)
        if float(curve[-1]) == 0:
            warnings.warn(
                f"pca: {name} gives the same output for every input: no variance, 0 components. The layer is dead",
                BitwrightWarning,
                stacklevel=2,
            )
        halves = tuple(components(cumulative(s.spectrum()), threshold, count) for s in (a, b))
        rows.append(
            PcaLayer(
                name, len(curve), both.count, found, (halves[0], halves[1]), tuple(curve.tolist()),
                sum(p.numel() for p in modules[name].parameters(recurse=False) if p.dim() > 1),
            )
        )  # fmt: skip
    counts = {row.name: row.components for row in rows}
    before = _before(sources, counts, residual)

    def select(counts: dict[str, int]) -> list[str]:
        return select_layers(
            counts, before, delta, relative, {r.name: r.channels for r in rows}, budget,
            {r.name: r.weights for r in rows}, always, never,
        )  # fmt: skip

    half = [select({row.name: row.halves[i] for row in rows}) for i in (0, 1)]
    enough = all(min(a.count, b.count) >= ROWS_PER_CHANNEL * len(a.mean) / 4 for _, a, b in spectra.values())
    return Pca(
        layers=tuple(rows), before=before, significant=select(counts), halves=(half[0], half[1]) if enough else None,
        shortcuts=dict(sources.shortcuts), first=sources.order[0], last=sources.order[-1], threshold=threshold,
        delta=delta, count=count, relative=relative, budget=budget,
        parts=parts_of_ends(model, list(counts), (sources.order[0], sources.order[-1])),
    )  # fmt: skip


def _collect(
    model: nn.Module, inputs: Any, half: Tensor, layers: dict[str, nn.Module], kept: dict[str, list[Scatter]]
) -> None:
    """One eval forward; the outputs of these layers into their two subsets."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            rows = _rows(module, output)
            if not kept[name]:
                kept[name] += [Scatter(rows.shape[1], rows.device) for _ in range(2)]
            each, rest = divmod(len(rows), len(half))
            which = half.repeat_interleave(each) if not rest else torch.arange(len(rows), device=half.device) % 2 == 0
            which = which.to(rows.device)
            for spread, wanted in zip(kept[name], (~which, which), strict=True):
                spread.add(rows[wanted])

        return hook

    handles = [module.register_forward_hook(watch(name), prepend=True) for name, module in layers.items()]
    try:
        with evaluating(model):
            run_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def _rows(module: nn.Module, output: Tensor) -> Tensor:
    """[rows, C]: samples first, so that the rows of one sample stay together."""
    channel = -1 if isinstance(module, nn.Linear) else output.dim() - 1 - len(getattr(module, "kernel_size", ()))
    return output.movedim(channel, -1).reshape(-1, output.shape[channel])


def _inner(sources: Flow, modules: dict[str, nn.Module]) -> list[str]:
    names = [n for n in sources.order[1:-1] if n not in sources.shortcuts and isinstance(modules.get(n), tuple(KINDS))]
    if not names:
        raise InputError(
            f"pca: the model has {len(sources.order)} layers; PCA compares those between the first and the last",
            code="pca-layers",
        )
    return names


def _before(sources: Flow, counts: dict[str, int], residual: str) -> dict[str, str]:
    """Layer -> the analyzed layer that makes its input. Behind the first layer there is none."""
    found: dict[str, str] = {}
    for name in counts:
        makers = [n for n in sources.inputs[name] if n not in sources.shortcuts]
        if residual == "largest":
            makers = sorted((n for n in makers if n in counts), key=lambda n: counts[n])
        if makers and makers[-1] in counts and makers[-1] != name:
            found[name] = makers[-1]
    return found


def _first(inputs: Any) -> Tensor | None:
    values = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, (tuple, list)) else [inputs]
    return next((v for v in values if isinstance(v, Tensor)), None)


def _check(threshold: float, count: str, residual: str, relative: float | None, budget: float | None) -> None:
    for name, value, possible in (("count", count, COUNTS), ("residual", residual, ("latest", "largest"))):
        if value not in possible:
            words = ", ".join(possible)
            raise InputError(
                f"pca: {name}={value!r}; possible: {words}", code="option", given=str(value), possible=words
            )
    for name, value in (("threshold", threshold), ("relative", relative), ("budget", budget)):
        if value is not None and not 0 < value < 1:
            room = "between 0 and 1"
            raise InputError(f"pca: {name}={value}; possible: {room}", code="option", given=str(value), possible=room)
    if relative is not None and budget is not None:
        raise InputError(
            f"pca: relative={relative} and budget={budget} are two rules; give one of them",
            code="option",
            given="relative, budget",
            possible="relative or budget",
        )


def _check_rows(spreads: dict[str, Scatter]) -> None:
    short = {n: s for n, s in spreads.items() if s.count < ROWS_PER_CHANNEL * s.mean.numel()}
    if short:
        name, worst = min(short.items(), key=lambda item: item[1].count / item[1].mean.numel())
        channels = worst.mean.numel()
        more = -(-ROWS_PER_CHANNEL * channels // max(1, worst.count))
        raise InputError(
            f"pca: {name} has {channels} channels and gave {worst.count:,} rows (samples x pixels); needed: "
            f"{ROWS_PER_CHANNEL * channels:,}. Give {more} times as many images",
            code="pca-rows",
            layer=name,
            given=str(worst.count),
            possible=str(ROWS_PER_CHANNEL * channels),
        )
