"""The end of a training: the files that everything after it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bitwright.engine.files import load, save
from bitwright.measure.machine import machine
from bitwright.runs import build_model
from bitwright.runs.build import normalized
from bitwright.runs.tables import Classes, Prediction
from bitwright.tensors import write_tensors
from bitwright.training.evaluate import Evaluation, evaluate
from bitwright.training.work import Work, write_work

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitwright.data import Images
    from bitwright.experiment import Experiment
    from bitwright.runs import Run
    from bitwright.training.job import Job

WORST = 24


@dataclass(frozen=True)
class Result:
    """top1, top5 on `images` test images, of the last epoch; band: "inside", "BELOW", "above", or None.

    seconds   of training, over all interruptions
    work      what a net with gates computed on the test images
    """

    out: Path
    top1: float
    top5: float
    images: int
    seconds: float
    warnings: tuple[str, ...]
    band: str | None = None
    work: Work | None = None


def finish(job: Job) -> Result:
    """Writes model, predictions, worst images, results; each of them whole or not at all."""
    run, state, test = job.run, job.state, job.test
    net = job.net.eval()
    save(net, run.file("model.safetensors"))
    found = job.evaluate(test, None)
    floats = None
    if state.float_stage is not None and state.float_stage < len(job.experiment.stage) - 1:
        floats = float_answers(job)
    write_predictions(run, test, found, floats)
    if found.work is not None:
        write_work(run, test, found.said, found.work)
    run.write(Classes, [{"classes": list(test.classes)}])
    run.put_results(result_rows(job, found))
    band = expected_band(job.experiment, found.top1)
    job.write_status("done")
    return Result(
        run.path, found.top1, found.top5, found.images, state.seconds, tuple(state.warnings), band, found.work
    )


def float_answers(job: Job) -> Tensor:
    """What the float net of this run says about the test images."""
    net: nn.Module = build_model(job.experiment, job.test, weights=False)
    load(job.run.file(f"stages/{job.state.float_stage}.safetensors"), net)
    if job.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    feed = {**job.feed(), "normalize": normalized(job.experiment, (job.state.float_stage or 0) + 1)}
    return evaluate(net, job.test, batch=job.experiment.data.eval_batch, check=job.signals.check, **feed).said


def write_predictions(run: Run, test: Images, found: Evaluation, floats: Tensor | None) -> None:
    """predictions.csv, and worst.safetensors: the wrong answers that were given with most confidence."""
    true, said, sure = test.labels.tolist(), found.said.tolist(), found.confidence.tolist()
    other = [None] * len(true) if floats is None else floats.tolist()
    rows = (
        {"index": i, "true": true[i], "said": said[i], "confidence": f"{sure[i]:.6g}", "float_said": other[i]}
        for i in range(len(true))
    )
    run.write(Prediction, rows)
    wrong = (found.said != test.labels).nonzero().flatten()
    order = wrong[found.confidence[wrong].argsort(descending=True, stable=True)][:WORST]
    write_tensors(run.file("worst.safetensors"), {"images": test.pictures(order), "index": order}, {})


def result_rows(job: Job, found: Evaluation) -> list[dict[str, Any]]:
    """The rows of results.csv: `float`, if a stage was float, and `trained`."""
    facts = machine(torch.get_num_threads())
    keys = ("threads", "cpu", "isa", "kernels", "torch", "bitwright", "date")
    common = {"images": found.images, **{key: facts[key] for key in keys}}
    rows = []
    if job.state.float_top1 is not None:  # sizes are of files: the float net's beside the packed one's
        floats = job.run.file(f"stages/{job.state.float_stage}.safetensors").stat().st_size
        rows.append({"net": "float", "precision": "fp32", "accuracy": job.state.float_top1, "bytes": floats, **common})
    size, note = job.run.file("model.safetensors").stat().st_size, "as trained, in torch"
    rows.append({"net": "trained", "precision": "", "accuracy": found.top1, "bytes": size, "note": note, **common})
    return rows


def expected_band(experiment: Experiment, top1: float) -> str | None:
    """How the result compares with what the experiment's file expects; None where it expects nothing."""
    band = experiment.expected
    if band is None:
        return None
    return "BELOW" if top1 < band.low else "inside" if top1 <= band.high else "above"
