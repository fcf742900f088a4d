"""`bitwright convert RUN`: the run's trained net, verified on all its test images; results go into the run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.cli.convert_text import show
from bitwright.cli.counted_batches import CountedBatches
from bitwright.cli.output import Output
from bitwright.cli.target import open_run, quoted, test_images, trained_net
from bitwright.runs.result_tables import Bench, ImageTime

if TYPE_CHECKING:
    from torch import Tensor

    from bitwright.engine.convert import Converted
    from bitwright.runs import Run

PACKED = "packed.safetensors"
OF_THE_NET = {"w": "w_part", "x": "x_part", "w_bits": "w_bits", "x_bits": "x_bits", "macs": "macs"}
BATCH = 256  # images per verified batch: every value of both nets is held


def convert_run(
    out: Output,
    target: str,
    data_root: str | None,
    backend: str,
    threads: int | None,
    force: bool,
    limit: int | None,
    details: bool,
    form: str = "auto",
    dynamic_size: bool = False,
) -> None:
    """Converts, verifies, shows; writes packed.safetensors, convert.json, layers.csv, a row of results.csv."""
    run = open_run(out, target, "convert")
    if not run.has("model.safetensors"):
        run.model()
    import bitwright as bw
    from bitwright.runs.build import normalized

    experiment = run.experiment
    images = test_images(experiment, data_root)
    net = trained_net(run, images)
    batches = images.batches(min(BATCH, experiment.data.eval_batch), normalize=normalized(experiment))
    before = _digest(run.file(PACKED))
    if before:
        out.head(f"convert {target}: replaces {PACKED}, convert.json and layers.csv of this run")
    out.detail(f"convert {target}: {len(images):,} test images of {images.name}, batches of {batches.batch_size}")
    x = next(iter(batches))[0][:1]
    shown = CountedBatches(out, "verify", batches)
    converted = bw.convert(
        net, x, form=form, backend=backend, threads=threads, verify=shown, force=force, dynamic_size=dynamic_size
    )
    show(out, converted, run.file(PACKED), "test images", limit=limit, details=details)
    _write(out, run, converted, images.labels, batches, x, before)
    if out.exit_code == 0:
        out.next(f"bitwright bench {quoted(target)}", "against the best fp32, bf16 and int8 programs here")


def _write(
    out: Output, run: Run, converted: Converted, labels: Tensor, batches: Any, x: Tensor, before: str | None
) -> None:
    report = converted.report
    accuracy, trained = accuracies(converted, labels, batches)
    if trained is None:
        trained = run.read_json("state.json").get("test_top1")
    facts = {**report.to_dict(), "accuracy": accuracy, "trained_accuracy": trained, "input": list(x.shape[1:])}
    out.data["accuracy"], out.data["trained_accuracy"] = accuracy, trained
    if accuracy is not None:
        out.detail(
            f"accuracy of the packed net {accuracy * 100:.1f} %, of the trained net {100 * (trained or 0):.1f} %"
        )
    run.write_json("convert.json", facts)
    run.write_csv("layers.csv", layer_rows(converted, x))
    if converted.model is None:
        if before:
            run.file(PACKED).unlink()
            out.note(f"convert: {run.file(PACKED)} of an earlier conversion is removed; it is not this trained net")
        _forget_times(out, run)
        return
    if before != _digest(run.file(PACKED)):
        _forget_times(out, run)
    from bitwright.measure.machine import machine
    from bitwright.measure.precision import precision_of

    here = machine(1)
    run.put_results(
        [
            {
                "net": "bitwright",
                "precision": precision_of(converted.model),
                "accuracy": accuracy,
                "images": len(labels),
                "bytes": report.file_bytes,
                "batch": 1,
                **{key: here[key] for key in ("cpu", "isa", "kernels", "torch", "bitwright", "date")},
            }
        ]
    )


def accuracies(converted: Converted, labels: Tensor, batches: Any) -> tuple[float | None, float | None]:
    """Shares of right answers of the packed net and of the trained one, on the verified images; None without classes.

    Where the two agree they are right or wrong together, so the trained net need not run again.
    """
    from torch import Tensor

    report = converted.report
    if converted.model is None or not len(labels):
        return None, None
    right = 0
    for x, y in batches:
        answer = converted.model(x)
        if not isinstance(answer, Tensor) or answer.dim() != 2:
            return None, None
        right += int((answer.argmax(1) == y).sum())
    packed_only = sum(int(labels[d.index]) == d.packed for d in report.disagreements)
    trained_only = sum(int(labels[d.index]) == d.trained for d in report.disagreements)
    return right / len(labels), (right - packed_only + trained_only) / len(labels)


def layer_rows(converted: Converted, x: Tensor) -> list[dict[str, Any]]:
    """The rows of layers.csv: what the report says of a layer, and what the trained net says."""
    from bitwright.runs.result_tables import Layer
    from bitwright.transforms import walk

    facts = {
        info.name or "(net)": {name: getattr(info, of) for name, of in OF_THE_NET.items()}
        for info in walk(converted.source, x)
    }
    columns = Layer.columns()
    return [{name: getattr(r, name, None) for name in columns} | facts.get(r.layer, {}) for r in converted.report.rows]


def _forget_times(out: Output, run: Run) -> None:
    """Times of another packed net must not stand beside this one's accuracy."""
    if run.has(ImageTime.file):
        run.file(ImageTime.file).unlink()
    if not run.has(Bench.file):
        return
    run.file(Bench.file).unlink()
    rows = run.read_csv("results.csv")
    run.write_csv("results.csv", [r for r in rows if not r.get("latency_ms") and not r.get("note")])
    out.note("convert: the times in bench.json were of another packed net and are removed; measure again")


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
