"""Trains the nets of the zoo, row by row, and keeps them with their cards.

    python bench/zoo.py status                  what is done, what runs, what is left
    python bench/zoo.py next                    the row that `run` would take
    python bench/zoo.py run   [--rows NAME ...] rows until none is left; several processes take different rows
    python bench/zoo.py measure                 times of the kept packed nets beside their peers: on a quiet machine only

The rows are data: bench/zoo.toml. A row is an ordinary run directory below --runs, trained by `bw.train` and resumed where the
process or the machine stopped; its result is a row of docs/results/zoo.csv, and the net with its card goes into the package or into
zoo/. Rows with a parent begin with the parent's weights. A row in the CSV is never trained again; if a run directory is lost, only
that row is trained again. Accuracy is that of the last epoch; of a packed net, of its file, on all test images.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

import bitwright as bw
from bitwright import zoo
from bitwright.cli.recipes import comment_of
from bitwright.experiment import Experiment
from bitwright.experiment.read import FOLDER
from bitwright.measure.machine import cpu_name, machine
from bitwright.runs import Run, dataset
from bitwright.runs.build import normalized
from bitwright.training.evaluate import evaluate
from bitwright.zoo.find import CHECKOUT, NETS
from methods import ROOT, read, write

RESULTS = ROOT / "docs" / "results"
CSV = RESULTS / "zoo.csv"
VERIFY = 250  # images of a verified batch


class Published(BaseModel):
    """A figure of the literature, in %."""

    model_config = ConfigDict(extra="forbid")

    top1: float
    epochs: str
    source: str


class Row(BaseModel):
    """One [[row]] of bench/zoo.toml; its keys are explained there."""

    model_config = ConfigDict(extra="forbid")

    name: str
    experiment: str = ""
    set: list[str] = []
    seeds: list[int] = [0]
    parent: str = ""
    keep: str = "nothing"
    published: Published | None = None
    asked: float | None = None
    stretch: float | None = None
    script: list[str] = []
    csv: str = ""
    rows: int = 0

    @property
    def ready(self) -> bool:
        """Whether its parent is trained."""
        return not self.parent or self.parent in zoo.list()

    def done(self) -> list[int]:
        """Seeds that are in the results; of a script, its rows."""
        if self.script:
            return list(range(len(read(RESULTS / self.csv))))
        return [int(r["seed"]) for r in read(CSV) if r["row"] == self.name]

    def left(self) -> list[int]:
        """Seeds to train; of a script, [0] until its table is whole."""
        if self.script:
            return [] if len(self.done()) >= self.rows else [0]
        done = self.done()
        return [s for s in self.seeds if s not in done]

    def of_seed(self, seed: int) -> Experiment:
        """The experiment as it is trained: one thread, and the parent in the place of its float stages."""
        common = [f"seed={seed}", "train.threads=1", "log.histograms_every=0"]
        found = bw.experiment.load(self.experiment, [*self.set, *common])
        if not self.parent:
            return found
        data = found.model_dump(exclude_unset=True)
        while not (data["stage"][0].get("recipe") or data["stage"][0].get("rule")):
            data["stage"].pop(0)
        first = data["stage"][0]
        if (first.get("teacher") or {}).get("source", "previous") == "previous" and first.get("teacher"):
            first["teacher"] = {**first["teacher"], "source": zoo.PREFIX + self.parent}
        data["model"]["weights"] = zoo.PREFIX + self.parent
        return Experiment.model_validate(data)


def rows() -> list[Row]:
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    return [Row.model_validate(r) for r in tomllib.loads(text)["row"]]


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process may work on a row; the system releases the claim when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.claim", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def run_of(args: argparse.Namespace, row: Row, seed: int) -> Run:
    return Run(Path(args.runs) / (row.name if seed == row.seeds[0] else f"{row.name}-{seed}"))


def train(args: argparse.Namespace, row: Row, seed: int) -> None:
    """One training to its end, its net kept, its row written."""
    run = run_of(args, row, seed)
    if row.script:
        out = ["--out", str(RESULTS / row.csv), "--runs", str(Path(args.runs) / row.csv.removesuffix(".csv"))]
        subprocess.run([sys.executable, str(ROOT / "bench" / row.script[0]), *row.script[1:], *out], check=True)
        return
    experiment = row.of_seed(seed)
    print(f"== {row.name}, seed {seed}", flush=True)
    if not run.has("model.safetensors") or run.read_json("state.json").get("status") != "done":
        bw.train(experiment, run.path, resume=run.has("experiment.toml"), echo=lambda t: print(t, flush=True))
    record = kept(row, run, seed)
    write(CSV, sorted([*read(CSV), record], key=lambda r: ([x.name for x in rows()].index(r["row"]), str(r["seed"]))))
    print(f"done: {row.name}, seed {seed}: {100 * float(record['accuracy']):.2f} %", flush=True)


def kept(row: Row, run: Run, seed: int) -> dict[str, Any]:
    """The results of a finished run; the first seed's net goes into its place."""
    torch.set_num_threads(1)
    experiment = run.experiment
    test, feed = dataset(experiment, "test"), normalized(experiment)
    net = run.model()
    trained = evaluate(net, test, normalize=feed, channels_last=True)
    for value in net.parameters():  # as the float nets of the zoo lie in their files: sizes are compared
        value.data = value.data.contiguous()
    packed = any(stage.recipe or stage.rule for stage in experiment.stage)
    right, status, size = round(trained.top1 * trained.images), "", run.file("model.safetensors").stat().st_size
    float_bytes = None
    if packed and row.keep != "nothing":
        batches = test.batches(VERIFY, normalize=feed)
        converted = bw.convert(net, next(iter(batches))[0][:1], verify=batches, threads=1)
        status = converted.report.status
        if converted.model is None:
            raise SystemExit(f"{row.name}: {converted.report.verdict}")
        size, float_bytes = converted.save(run.file("packed.safetensors")), converted.report.float_bytes
        right = round(evaluate(bw.load(run.file("packed.safetensors")), test, normalize=feed).top1 * len(test))
    if row.keep != "nothing" and seed == row.seeds[0]:
        keep(row, run, seed, right, trained.top1 if packed else None, float_bytes)
    facts = machine(1)
    return {
        "row": row.name, "seed": seed, "experiment": row.experiment, "parent": row.parent, "epochs": epochs(row, experiment),
        "accuracy": right / len(test), "trained": trained.top1, "images": len(test), "bytes": size, "verdict": status,
        "seconds": round(sum(float(r["seconds"]) for r in run.read_csv("metrics.csv"))),
        **{key: facts[key] for key in ("cpu", "threads", "torch", "bitwright", "date")},
    }  # fmt: skip


def epochs(row: Row, experiment: Experiment) -> str:
    """`40+20`: those of the parent, then those of each stage."""
    before = [zoo.card(row.parent).epochs] if row.parent else []
    return "+".join([*before, *(str(stage.epochs) for stage in experiment.stage)])


def keep(row: Row, run: Run, seed: int, right: int, trained: float | None, float_bytes: int | None) -> None:
    """Writes the net into its folder and its card into the package."""
    experiment = run.experiment
    form = "float" if trained is None else "packed"
    source = run.file("packed.safetensors" if form == "packed" else "model.safetensors")
    target = (NETS if row.keep == "package" else CHECKOUT) / f"{row.name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    test = dataset(experiment, "test")
    comment = comment_of((FOLDER / f"{row.experiment}.toml").read_text(encoding="utf-8"))
    whole = bw.experiment.load(row.experiment, row.set)
    card = zoo.Card(
        name=row.name,
        form=form,
        summary=comment[0].rstrip("."),
        data=experiment.data.name,
        binarize=experiment.data.binarize,
        normalize=normalized(experiment),
        input=test.shape,
        classes=len(test.classes),
        model={"name": experiment.model.name, **experiment.model.arguments},
        recipe="" if form == "float" else ", ".join(s.recipe or "rules" for s in whole.stage if s.recipe or s.rule),
        epochs=epochs(row, experiment),
        seed=seed,
        parent=row.parent or None,
        right=right,
        images=len(test),
        trained=trained,
        bytes=target.stat().st_size,
        sha256=hashlib.sha256(target.read_bytes()).hexdigest(),
        float_bytes=float_bytes,
        made_on=f"{cpu_name()}, torch {torch.__version__}",
        date=str(machine(1)["date"]),
        commit=subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        command=f"python bench/zoo.py run --rows {row.name}",
        source="; ".join(
            c.removeprefix("source: ").split("; see also")[0] for c in comment if c.startswith("source: ")
        ),
    )
    (NETS / f"{row.name}.json").write_text(card.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    zoo.find.cards.cache_clear()


def run(args: argparse.Namespace) -> None:
    """Takes the first row that is ready and free, until there is none."""
    while True:
        for row, seed in waiting(args):
            with claimed(Path(args.runs), f"{row.name}-{seed}") as mine:
                if mine and seed in row.left():
                    train(args, row, seed)
                    break
        else:
            return


def waiting(args: argparse.Namespace) -> Iterator[tuple[Row, int]]:
    """What can be trained now: rows whose parent is there."""
    for row in rows():
        if row.ready and (not args.rows or row.name in args.rows):
            yield from ((row, seed) for seed in row.left())


def status(args: argparse.Namespace) -> None:
    results = {(r["row"], int(r["seed"])): r for r in read(CSV)}
    for row in rows():
        if row.script:
            print(f"{row.name:42} {len(row.done())} of {row.rows} rows of docs/results/{row.csv}")
            continue
        for seed in row.seeds:
            goal = f"asked {row.asked:.1f}" if row.asked else ""
            found = results.get((row.name, seed))
            if found is not None:
                words = f"{100 * float(found['accuracy']):.2f} %, {found['epochs']} epochs"
            else:
                words = progress(run_of(args, row, seed)) or ("to do" if row.ready else f"waits for {row.parent}")
            print(f"{row.name:42} seed {seed}  {words:42} {goal}".rstrip())


def progress(found: Run) -> str:
    """How far a run directory has got; empty without one."""
    if not found.has("state.json"):
        return ""
    done, stages = len(found.read_csv("metrics.csv")), found.experiment.stage
    return f"epoch {done} of {sum(stage.epochs for stage in stages)}"


def measure(args: argparse.Namespace) -> None:
    """ms of each packed net and of its float twin's peers, in one run, into the cards."""
    torch.set_num_threads(1)
    for row in rows():
        name = row.name
        if (args.rows and name not in args.rows) or name not in zoo.list("packed"):
            continue
        card = zoo.card(name)
        twin = bw.models.create(
            card.model["name"], card.classes, **{"in_channels": card.input[0], "size": card.input[-1]},
            **{k: v for k, v in card.model.items() if k != "name"},
        ).eval()  # fmt: skip
        table = bw.bench(zoo.load(name), torch.rand(1, *card.input), threads=1, baseline=twin)
        times = {r.name: r.median_ms for r in table.rows if r.median_ms is not None}
        card = card.model_copy(
            update={
                "latency_ms": round(times.pop("bitwright"), 4),
                "peers": {peer: round(t, 4) for peer, t in times.items()},
                "measured_on": f"{cpu_name()}, 1 thread, one image, {machine(1)['date'][:10]}",
            }
        )
        (NETS / f"{name}.json").write_text(card.model_dump_json(indent=1, exclude_defaults=True) + "\n")
        print(f"{name}: {card.latency_ms} ms; {card.peers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("command", choices=["run", "next", "status", "measure"])
    parser.add_argument("--rows", nargs="*", default=None)
    parser.add_argument("--data", default=None, help="where the data sets lie (default: BITWRIGHT_DATA)")
    parser.add_argument("--runs", default=str(ROOT / "runs" / "zoo"), help="run directories")
    args = parser.parse_args()
    if args.data:
        os.environ["BITWRIGHT_DATA"] = args.data
    if args.command == "next":
        row, seed = next(waiting(args), (None, 0))
        print(f"{row.name}, seed {seed}" if row else "nothing is left that can run")
        return
    {"run": run, "status": status, "measure": measure}[args.command](args)


if __name__ == "__main__":
    main()
