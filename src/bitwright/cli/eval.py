"""`bitwright eval`: accuracy of the nets of a run on its test images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.output import Output

if TYPE_CHECKING:
    from bitwright.experiment import Experiment
    from bitwright.runs import Run


def eval(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run directory (bitwright train).", autocompletion=complete_run)],
    packed: Annotated[bool, typer.Option("--packed", help="Only the packed net.")] = False,
    weights: Annotated[
        Path | None, typer.Option(help="Another file of weights of the same model, trained or float, or a packed net.")
    ] = None,
) -> None:
    """Accuracy (top-1, top-5) of the trained and the packed net; writes predictions.csv and results.csv.

    Of a net with gates also the work done per image: MACs, bit operations (BOPs), their spread over the images, how much
    of it predictors and comparisons take, mean bits, and what papers and their codes would print for the same net.
    """
    screen: Output = ctx.obj
    from bitwright.runs import Run

    opened = Run.open(run, "eval")
    experiment = opened.experiment
    from bitwright.errors import InputError

    if packed and weights is not None:
        raise InputError("eval: --packed and --weights exclude each other", code="usage")
    if packed and not opened.has("packed.safetensors"):
        raise InputError(
            f"eval {run}: no packed net yet. Run: bitwright convert {shlex.quote(str(run))}", code="run-unpacked"
        )
    screen.head(f"eval {run}: {experiment.data.name}, {experiment.model.name}")
    rows = _rows(opened, experiment, packed, weights)
    from bitwright.numbers import macs, percent

    screen.table(
        ("net", "top-1 %", "top-5 %", "right", "images"),
        [(r["net"], percent(r["accuracy"]), percent(r["top5"]), f"{r['right']:,}", f"{r['images']:,}") for r in rows],
        right=(1, 2, 3, 4),
    )
    for row in rows:
        if (work := row.pop("counted", None)) is not None:
            from bitwright.training.work_words import detail_lines, spread_text

            at = work.means()
            screen.result(
                f"{row['net']}: {macs(round(at['macs']))} of {macs(round(at['dense_macs']))} MACs and "
                f"{macs(round(at['bops']))} of {macs(round(at['dense_bops']))} BOPs per image, counted: {work.text()}"
            )
            for line in (spread_text(work), *detail_lines(work)):
                screen.result(f"{' ' * len(row['net'])}  {line}")
    screen.data["eval"] = {"run": str(run), "nets": rows}


def _rows(run: Run, experiment: Experiment, packed: bool, weights: Path | None) -> list[dict[str, Any]]:
    """One row per net; those of the run go into its results.csv, a file given by hand does not."""
    from bitwright.engine.files import load
    from bitwright.runs import build_model, dataset, example_of
    from bitwright.runs.build import normalized
    from bitwright.training.evaluate import evaluate
    from bitwright.training.finish import write_predictions
    from bitwright.training.work import write_work
    from bitwright.transforms.layout import takes_channels_last

    test = dataset(experiment, "test")
    nets: list[tuple[str, Any]] = []
    if weights is not None:
        nets.append((str(weights), _other(experiment, test, weights)))
    else:
        if not packed:
            nets.append(("trained", run.model()))
        if run.has("packed.safetensors"):
            own = run.read_json("convert.json").get("form") == "layers"  # packed layers live in the user's model
            model = build_model(experiment, test, weights=False) if own else None
            nets.append(("bitwright", load(run.file("packed.safetensors"), model).eval()))
    rows = []
    for name, net in nets:
        last = name != "bitwright" and experiment.train.channels_last
        last = last and takes_channels_last(net, example_of(experiment, test))
        if last:
            import torch

            net.to(memory_format=torch.channels_last)
        found = evaluate(
            net.eval(), test, batch=experiment.data.eval_batch, normalize=normalized(experiment), channels_last=last,
            count=True,
        )  # fmt: skip
        rows.append(
            {
                "net": name,
                "accuracy": found.top1,
                "top5": found.top5,
                "right": round(found.top1 * found.images),
                "images": found.images,
            }
        )
        if found.work is not None:
            rows[-1] |= {"work": found.work.to_dict(), "counted": found.work}
            if name == "trained":
                write_work(run, test, found.said, found.work)
        if name == "trained":
            write_predictions(run, test, found, _float_said(run, len(test)))
    if weights is None:
        run.put_results({k: r[k] for k in ("net", "accuracy", "images")} for r in rows)
    return rows


def _other(experiment: Experiment, test: Any, path: Path) -> Any:
    """A packed file, a trained one, or plain weights of the float model."""
    from bitwright.engine.files import load
    from bitwright.runs import build_model
    from bitwright.runs.weight_files import put_weights, read_weights

    tensors, metadata = read_weights(path, "eval")
    if metadata.get("bitwright") == "packed":
        return load(path)
    net = build_model(experiment, test, weights=False)
    if "bitwright" in metadata:
        return load(path, net)
    put_weights(net, tensors, f"eval {path}", "load-keys")
    return net


def _float_said(run: Run, images: int) -> Any:
    """The float net's answers that training wrote down, if it did."""
    import torch

    said = [row.get("float_said", "") for row in run.read_csv("predictions.csv")]
    return torch.tensor([int(s) for s in said]) if len(said) == images and all(said) else None
