"""metrics.csv, health.csv, gates.csv, connections.csv, sweep.csv and TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bitwright.training import health
from bitwright.training.selfprune import CONNECTIONS, SWEEP
from bitwright.training.work import GATES
from bitwright.transforms.layers import candidates

if TYPE_CHECKING:
    from bitwright.runs import Run
    from bitwright.training.evaluate import Evaluation
    from bitwright.training.state import State

LARGEST = 1e19
METRICS = (
    "stage", "epoch", "step", "loss", "top1", "top5", "test_loss", "test_top1", "test_top5", "val_loss", "val_top1",
    "lr", "data_ms", "step_ms", "images_per_s", "seconds", "flips", "dead",
    "macs", "dense_macs", "bops", "dense_bops",
)  # fmt: skip


def metrics_row(state: State, sums: list[float], test: Evaluation, val: Evaluation | None, lr: float) -> dict[str, Any]:
    """sums: loss, top1, top5, images over all processes."""
    loss, top1, top5, images = sums
    s, means = state.sums, health.means(state.health)
    busy = s.data_seconds + s.step_seconds
    work = (None,) * 4 if test.work is None else tuple(test.work.means().values())
    values = (
        state.stage, state.epoch, state.step, loss / images, top1 / images, top5 / images,
        test.loss, test.top1, test.top5, None if val is None else val.loss, None if val is None else val.top1,
        lr, s.data_seconds / s.steps * 1e3, s.step_seconds / s.steps * 1e3, images / busy if busy else None, s.seconds,
        health.mean_of(means, "flips"), health.mean_of(means, "dead"),
        *work,
    )  # fmt: skip
    return dict(zip(METRICS, values, strict=True))


def health_rows(state: State) -> list[dict[str, Any]]:
    return [
        {"stage": state.stage, "epoch": state.epoch, "layer": name, **row}
        for name, row in health.means(state.health).items()
    ]


def write_tables(run: Run, state: State) -> None:
    """Whole files: after a resume, rows later than the checkpoint are gone and come again."""
    run.write_csv("metrics.csv", state.rows, METRICS)
    run.write_csv("health.csv", state.health_rows, ("stage", "epoch", "layer", *health.COLUMNS))
    for name, rows, columns in (
        ("gates.csv", state.gate_rows, GATES),
        ("connections.csv", state.connection_rows, CONNECTIONS),
        ("sweep.csv", state.sweep_rows, SWEEP),
    ):
        if rows:
            run.write_csv(name, rows, columns)
        else:
            run.file(name).unlink(missing_ok=True)  # rows after the checkpoint are gone


def write_scalars(
    writer: Any,
    row: dict[str, Any],
    layers: list[dict[str, Any]],
    gates: list[dict[str, Any]],
    connections: list[dict[str, Any]],
    sweep: list[dict[str, Any]],
    step: int,
) -> None:
    """The rows of an epoch as TensorBoard scalars."""
    place = {"loss": "train/loss", "top1": "train/top1", "top5": "train/top5"}
    for key, value in row.items():
        if value is None or key in ("stage", "epoch", "step"):
            continue
        head, _, tail = key.partition("_")
        name = place.get(key) or (f"{head}/{tail}" if head in ("test", "val") else f"run/{key}")
        writer.add_scalar(name, value, step)
    for layer in layers:
        for key in health.COLUMNS:
            if layer[key] is not None:
                writer.add_scalar(f"{key}/{layer['layer']}", layer[key], step)
    for gate in gates:
        for key in ("rate", "threshold_mean"):
            if gate[key] is not None:
                writer.add_scalar(f"gate_{key}/{gate['layer']}", gate[key], step)
    for layer in connections:
        for key, name in (("share", "on_share"), ("live", "live_units")):
            if layer[key] is not None:
                writer.add_scalar(f"{name}/{layer['layer']}", layer[key], step)
    for point in sweep:
        for key in ("accuracy", "preactivation", "agreement"):
            if point[key] is not None:
                writer.add_scalar(f"sweep_{point['norm']}_{key}/{point['on']:.1f}", point[key], step)
    writer.flush()


OUTPUT = "net-output"  # with a hyphen: no name of a module


class Watch:
    """Keeps the inputs of every compute layer, and the net's output, for the one step whose histograms are written."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = {c.name: c.module for c in candidates(model)}
        self.inputs: dict[str, Tensor] = {}
        self._handles = [m.register_forward_pre_hook(self._keep(n)) for n, m in self.layers.items()]
        self._handles.append(model.register_forward_hook(self._keep_output))

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            self.inputs.setdefault(OUTPUT, output.detach()[: health.IMAGES].float())

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                self.inputs.setdefault(name, args[0].detach()[: health.IMAGES].float())

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
