"""`bench`: ours beside the best programs of this machine, on the same inputs, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.measure.machine import machine
from bitwright.measure.peers import PEERS, Peer, build_peer
from bitwright.measure.peers_torch import last_inputs
from bitwright.measure.precision import precision_of
from bitwright.measure.table import BenchRow, BenchTable, ranked
from bitwright.measure.why import reasons
from bitwright.numbers import ms
from bitwright.quiet import quiet
from bitwright.timing import SPINNING, Timing, clock_for, interleave
from bitwright.transforms.forward import torch_threads
from bitwright.transforms.twin import FloatNet, float_net, one_line
from bitwright.transforms.unwrap import unwrap

if TYPE_CHECKING:
    from bitwright.engine.packed import PackedModel

AGAINST = tuple(PEERS)
NO_TWIN = "a packed file holds no float net; give the model too (baseline=, or --model on the command line)"


def bench(
    model_or_converted: Any,
    example: Tensor | tuple[Tensor, ...],
    *,
    threads: int = 1,
    against: str | Sequence[str] = AGAINST,
    rounds: int = 15,
    baseline: nn.Module | None = None,
) -> BenchTable:
    """Medians side by side, best peer of each precision; a peer that is not there is a row that says why.

    model_or_converted   what `convert` returned, in either form (its float twin feeds the peers), a packed module, or a
                         float module
    example              one batch; the batch size is its first dimension
    against              peers, see `AGAINST`; all get their inputs in their own type and layout beforehand
    rounds               each candidate runs one slice of about 6 ms in each round, in turn
    baseline             the net to build the peers from, where the first argument does not know it

    A packed net in graph form runs in torch and, exported, in onnxruntime with our operators; the faster one is its row.
    Times are medians over rounds: CPU time for one thread (preemption by other jobs does not count), else wall time.
    """
    against = (against,) if isinstance(against, str) else tuple(map(str, against))
    inputs = example if isinstance(example, tuple) else (example,)
    _check_arguments(inputs, threads, rounds)
    model, source, why_not = _sides(model_or_converted, baseline)
    with torch_threads(threads), torch.inference_mode():
        net = _peer_net(source, inputs) if source is not None else NO_TWIN
        # ours too gets its preferred layout beforehand
        graph = _is_graph(model)
        given = last_inputs(inputs) if graph else inputs
        ours: dict[str, Callable[[], object]] = {"plain": lambda: model(*given)} if model is not None else {}
        for call in ours.values():
            call()  # our own errors are raised, unlike a peer's
        missing = ""
        if graph:
            found, missing = _in_onnxruntime(cast("PackedModel", model), inputs, threads)
            ours = {"torch": ours["plain"], **found} if found else ours
        name, precision = ("bitwright", precision_of(model_or_converted))
        if isinstance(model_or_converted, nn.Module) and precision == "float":
            name, precision = "given", "as is"
        table = measure(
            ours,
            [build_peer(peer, net, threads) for peer in against],
            name=name,
            precision=precision,
            shape=tuple(inputs[0].shape),
            threads=threads,
            rounds=rounds,
            note=why_not or missing,
        )
        if not graph:
            return table
        return replace(table, why=reasons(table, cast("PackedModel", model), given))


def _in_onnxruntime(
    model: PackedModel, inputs: tuple[Tensor, ...], threads: int
) -> tuple[dict[str, Callable[[], object]], str]:
    """The packed net as an ONNX file with our operators, or why there is none: ours, too, is measured at its fastest."""
    from bitwright.measure import peers_ort

    try:
        with quiet():
            call = peers_ort.packed(model, inputs, threads)
            call()
    except Exception as error:
        return {}, f"not in onnxruntime: {one_line(error)}"
    return {"onnxruntime": call}, ""


def measure(
    ours: Callable[[], object] | Mapping[str, Callable[[], object]] | None,
    peers: Sequence[Peer],
    *,
    shape: tuple[int, ...],
    name: str = "bitwright",
    precision: str = "1 bit",
    threads: int = 1,
    rounds: int = 15,
    note: str = "",
) -> BenchTable:
    """The table of ready callables; shape is that of the input, batch first."""
    facts = machine(threads)  # first: the load before this measurement adds to it
    clock, clock_name = clock_for(threads)
    variants = {"plain": ours} if callable(ours) else dict(ours or {})
    everybody = [Peer(name, precision, variants, note), *peers]
    calls = {f"{peer.name}/{label}": call for peer in everybody for label, call in peer.variants.items()}
    timings = interleave(calls, rounds=rounds, clock=clock, pause=SPINNING if threads > 1 else 0.0)
    batch = shape[0] if shape else 1
    first, *rows = (
        _row(peer, {label: timings[f"{peer.name}/{label}"] for label in peer.variants}, batch) for peer in everybody
    )
    return BenchTable(ranked(first, rows), facts, batch, shape[1:], rounds, clock_name)


def _row(peer: Peer, timings: dict[str, Timing], batch: int) -> BenchRow:
    """The fastest way to run it is quoted; the others stand in the note."""
    if not timings:
        return BenchRow(peer.name, peer.precision, note=peer.note)
    order = sorted(timings, key=lambda label: timings[label].median)
    texts = [order[0]] if order[0] != "plain" or len(order) > 1 else []
    texts += [f"{label} {ms(timings[label].median * 1e3)}" for label in order[1:]]
    texts += [peer.note] if peer.note else []
    return BenchRow.measured(peer.name, peer.precision, timings[order[0]], batch, "; ".join(texts))


def _sides(given: Any, baseline: nn.Module | None) -> tuple[nn.Module | None, nn.Module | None, str]:
    """(what we run, what peers are built from, why we do not run). Knows `Converted` by its attributes only."""
    if hasattr(given, "report") and hasattr(given, "source"):
        source = baseline if baseline is not None else given.source
        why = "" if given.model is not None else f"unavailable: convert said {given.report.status}"
        return given.model, source, why
    if not isinstance(given, nn.Module):
        raise InputError(
            f"bench: got {type(given).__name__}; possible: what bw.convert returns, or a module", code="bench-model"
        )
    given = unwrap(given)
    return given.eval(), baseline if baseline is not None or _is_packed(given) else given, ""


def _is_graph(model: nn.Module | None) -> bool:
    """A packed net in graph form: it takes any layout, and knows its steps."""
    from bitwright.engine.packed import PackedModel

    return isinstance(model, PackedModel)


def _is_packed(model: nn.Module) -> bool:
    from bitwright.engine.layer_form import packed_layers

    return _is_graph(model) or bool(packed_layers(model))


def _peer_net(source: nn.Module, inputs: tuple[Tensor, ...]) -> FloatNet | str:
    try:
        return float_net(source, inputs)
    except Exception as error:
        return f"no float twin: {one_line(error)}"


def _check_arguments(inputs: tuple[Any, ...], threads: int, rounds: int) -> None:
    for tensor in inputs:
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            raise InputError("bench: example is not a batch; possible: a tensor, batch first", code="bench-example")
    for name, value in (("threads", threads), ("rounds", rounds)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"bench: {name}={value!r}; possible: an integer of at least 1", code=f"bench-{name}")
