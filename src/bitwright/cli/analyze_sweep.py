"""The work of `bitwright analyze sweep RUN` and `bitwright analyze connections RUN`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitwright.cli.output import Output
from bitwright.cli.target import at_root, open_run, quoted, trained_net
from bitwright.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitwright.analysis.sweep_result import WeightSweep
    from bitwright.data import Images
    from bitwright.experiment import Experiment
    from bitwright.runs import Run
    from bitwright.tabular import Row

TRAIN_IMAGES = 2000  # on which statistics are estimated anew, unless --images says otherwise
SHOWN = (0, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 10, 100)  # of a long list; all are in the file


def analyze_sweep(
    out: Output, target: str, on: str, norm: str, batch: int | None, images: int | None, test_images: int | None,
    data_root: str | None,
) -> None:  # fmt: skip
    """Accuracy over the weight value, in one to three norm modes; sweep.json in the run."""
    run, experiment, test, net, _ = _open(out, target, data_root)
    from bitwright.analysis.analyze import weight_sweep
    from bitwright.analysis.sweep_result import NORMS
    from bitwright.analysis.sweep_words import findings
    from bitwright.runs.build import normalized
    from bitwright.training.display import Screen
    from bitwright.transforms.batch_norms import batch_norms

    modes = _modes(norm, NORMS, bool(batch_norms(net)))
    values = _numbers(on)
    size, normalize = batch or experiment.data.eval_batch, normalized(experiment)
    shown = test.limit(test_images) if test_images else test
    known = _training_images(experiment, images) if "recalibrate" in modes else None
    text = "" if known is None else f", statistics from {len(known):,} training images"
    out.detail(f"analyze {target}: {len(shown):,} test images of {test.name}{text}")
    screen = Screen(note=out.note, live=out.live)
    sweeps = []
    for mode in modes:

        def step(what: str, done: int, total: int, mode: str = mode) -> None:
            screen.step(f"{mode}: {what}", done, max(done, total), lambda: "")

        train = None if known is None else known.batches(size, normalize=normalize)
        try:
            sweeps.append(
                weight_sweep(net, shown.batches(size, normalize=normalize), values, mode, train, progress=step)
            )
        finally:
            screen.pause()
    texts = findings(sweeps)
    found = {"batch": size, "sweeps": [s.to_dict() for s in sweeps], "findings": texts}
    run.write_json("sweep.json", found)
    out.data["analyze"] = {"run": target, "judge": "weight_sweep", **found, "file": str(run.file("sweep.json"))}
    _show(out, sweeps, norm == "all" and len(modes) == 1)
    for text in texts:
        out.prose(text, 2)
    n, count = len(sweeps[0].points), len(sweeps)
    out.verdict(
        f"done  {run.file('sweep.json')}  {sweeps[0].images:,} test images, {n} weight value{'s' if n > 1 else ''}, "
        f"{count} norm mode{'s' if count > 1 else ''}"
    )
    out.next(f"bitwright report {quoted(run.path)}", "the curves")


def analyze_connections(out: Output, target: str, data_root: str | None) -> None:
    """On weights, fan-in and live units of every 0/1 layer of the trained net."""
    run, _, _, net, x = _open(out, target, data_root)
    from bitwright.analysis.analyze import connections

    found = connections(net, x)
    out.data["analyze"] = {"run": target, "judge": "connections", **found.to_dict()}
    head, *cells = found.cells()
    out.table(head, cells, right=range(1, len(head)), drop=("most", "weights", "fan-in mean"))
    if found.inputs is not None and found.inputs_used is not None:
        out.prose(f"{found.inputs_used:,} of {found.inputs:,} inputs have a path to an output", 2)
    for name in found.left_out:
        out.warn(f"analyze: {name} is never called; its weights are not counted")
    for name in found.all_off:
        out.warn(f"analyze: all weights of {name} are off: everything behind it, norms too, is constant")
    out.verdict(f"done  {found.on:,} of {found.weights:,} weights on ({_share(found.share)} %), {_alive(found)}")
    out.next(f"bitwright analyze sweep {quoted(run.path)}", "accuracy over the weight value")


def _open(out: Output, target: str, data_root: str | None) -> tuple[Run, Experiment, Images, nn.Module, Tensor]:
    """The run, its data, the trained net and an input."""
    run = open_run(out, target, "analyze")
    if not run.has("model.safetensors"):
        run.model()  # its one line
    from bitwright.analysis.zero_one_nets import need_zero_one
    from bitwright.runs import dataset, example_of

    experiment = at_root(run.experiment, data_root)
    test = dataset(experiment, "test")
    net = trained_net(run, test)
    need_zero_one(net, f"analyze {target}")
    return run, experiment, test, net, example_of(experiment, test, 2)


def _training_images(experiment: Experiment, images: int | None) -> Images:
    from bitwright.runs import dataset

    train = dataset(experiment, "train")
    return train.limit(min(len(train), images or TRAIN_IMAGES))


def _modes(norm: str, known: tuple[str, ...], has_norms: bool) -> tuple[str, ...]:
    """The modes of a comma-separated list; "all": those that differ."""
    if norm == "all":
        return known if has_norms else ("running",)
    modes = tuple(dict.fromkeys(piece.strip() for piece in norm.split(",")))
    wrong = next((m for m in modes if m not in known), None)
    if wrong is not None:
        raise InputError(
            f"analyze: --norm {wrong!r}.{nearest(wrong, known)} Possible: all, {', '.join(known)}",
            code="option",
            given=wrong,
            possible=f"all, {', '.join(known)}",
        )
    return modes


def _numbers(text: str) -> list[float]:
    """Numbers and ranges FROM:TO:STEP, ends included; steps are counted, not summed up.

    >>> _numbers("0:0.4:0.1, 5,10")
    [0.0, 0.1, 0.2, 0.3, 0.4, 5.0, 10.0]
    """
    values: list[float] = []
    try:
        for piece in text.split(","):
            ends = [float(p) for p in piece.split(":")]
            if len(ends) == 1:
                values += ends
            else:
                low, high, step = ends
                count = round((high - low) / step)
                if step <= 0 or not 0 <= count <= 10_000:
                    raise ValueError
                values += [round(low + i * step, 9) for i in range(count + 1)]
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"analyze: --on {text!r}; possible: numbers and ranges, e.g. --on 0:4:0.1,10",
            code="option",
            given=text,
            possible="numbers and ranges, e.g. 0:4:0.1,10",
        ) from None
    return values


def _shown(sweep: WeightSweep, everything: bool) -> list[float]:
    values = [p.on for p in sweep.points]
    return values if everything or len(values) <= 2 * len(SHOWN) else [v for v in values if v in SHOWN]


def _show(out: Output, sweeps: list[WeightSweep], no_norm: bool) -> None:
    """The modes one below the other: side by side they would need 100 columns."""
    from bitwright.analysis.sweep_words import FROM
    from bitwright.numbers import percent

    values = _shown(sweeps[0], out.verbose)
    rows: list[Row] = []
    for sweep in sweeps:
        if len(sweeps) > 1:
            rows.append(f"{sweep.norm}: {FROM[sweep.norm][0].lower()}{FROM[sweep.norm][1:]}")
        for row in (r for r in sweep.rows if r["on"] in values):
            shares = (percent(row[key]) for key in ("accuracy", "preactivation", "agreement"))
            rows.append([f"{row['on']:g}", *shares])
    out.table(("on", "right %", "ranked %", "as circuit %"), rows, right=range(4))
    hidden = len(sweeps[0].points) - len(values)
    text = f"{hidden} more values are in sweep.json (-v shows them). " if hidden else ""
    ranking = {"smallest": ", the smallest wins", "largest": ", the largest wins"}.get(sweeps[0].ranking, "")
    text += f"ranked: by what {sweeps[0].output} computes, before tanh and norm{ranking}. "
    text += f"as circuit: the class is that at {sweeps[0].limit:g}"
    out.prose(text + (". No batch norm: all norm modes are one" if no_norm else ""), 2)


def _share(share: float) -> str:
    from bitwright.analysis.connections import share_text

    return share_text(share)


def _alive(found: Any) -> str:
    if found.live is None:
        return "live units unknown: the outputs of a layer do not fit what reads them"
    return f"{found.live:,} of {found.units:,} units live"
