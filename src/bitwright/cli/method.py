"""What `prune`, `quantize` and `compress` share: a procedure of bw.procedures on a trained net, its options as words."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.cli.output import Output
from bitwright.cli.target import at_root, open_run, quoted, trained_net
from bitwright.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from bitwright.data import Images
    from bitwright.procedures import Procedure
    from bitwright.runs import Run

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # the options of the procedure
ZOO = "zoo:"


@dataclass
class Subject:
    """A trained net, its images, and where the changed net goes."""

    net: nn.Module
    train: Images
    test: Images
    normalize: bool
    batch: int
    seed: int
    output: Path
    run: Run | None = None


def run_method(
    out: Output,
    verb: str,
    target: str,
    method: str,
    words: list[str],
    batches: int,
    output: Path | None,
    data_root: str | None,
    test: int,
) -> None:
    """One procedure on one net: progress, rows, accuracy before and after, a file."""
    options = options_of(verb, words)
    from bitwright import procedures

    found = procedures.get(method)
    if verb != "compress" and found.verb != verb:
        raise InputError(
            f"{verb}: {method} is run by bitwright {found.verb}; possible here: {', '.join(procedures.names(verb))}",
            code="procedure-verb",
            given=method,
            possible=", ".join(procedures.names(verb)),
        )
    found.check(options)
    subject = (
        _zoo_net(target, verb, output, data_root)
        if target.startswith(ZOO)
        else _run_net(out, target, verb, output, data_root)
    )
    from bitwright.engine.files import save
    from bitwright.training.procedures import follow, record
    from bitwright.transforms import Recipe

    size = min(subject.batch, len(subject.train))
    out.detail(f"{verb} {target}: {found.name}, {batches} batches of {size} training images")
    before = _accuracy(subject, test)
    result = _call(out, found, subject, batches, options)
    if isinstance(result, Recipe):
        follow(subject.net, result, next(iter(subject.train.limit(2).batches(2, normalize=subject.normalize)))[0])
        out.result(result.to_toml())
    else:
        head, *cells = result.cells()
        out.table(head, cells, right=range(1, len(head)))
    save(subject.net, subject.output)
    said: dict[str, Any] = {} if isinstance(result, Recipe) else result.to_dict()
    if before is not None:
        after = _accuracy(subject, test)
        assert after is not None
        from bitwright.numbers import percent

        images = min(test, len(subject.test))
        out.result(f"top-1 of {images:,} test images: {percent(before)} % before, {percent(after)} % after")
        said |= {"before": before, "after": after, "images": images}
    if verb == "prune":
        out.result(result.speed if isinstance(result, procedures.ShrinkReport) else SPEED)
    if subject.run is not None:
        record(subject.run, found.name, result, subject.net, None)
    out.data[verb] = {"run": target, "procedure": found.name, "file": str(subject.output), **said}
    out.verdict(f"done  {subject.output}")
    if subject.run is not None:
        out.next(f"bitwright eval {quoted(target)} --weights {quoted(subject.output)}", "its accuracy")


SPEED = (
    "Pruned weights are zeros in the file, with a mask of 1 bit a weight; a plain CPU does not skip single zeros, so the net "
    "is not faster until its weights are on few bits too (bitwright quantize) and packed (bitwright convert). Filters that are 0 as a "
    "whole can be taken out, and then it is faster: the procedure shrink, in Python or as the next stage of an experiment."
)


def options_of(verb: str, words: list[str]) -> dict[str, Any]:
    """`--keep .5 --rounds=2` as options; `--keep conv1=.8,*=.5` as a mapping by layer.

    >>> options_of("prune", ["--keep", ".5", "--act-order=true"])
    {'keep': 0.5, 'act_order': True}
    >>> options_of("prune", ["--keep", "*=.5,fc=.8"])
    {'keep': {'*': 0.5, 'fc': 0.8}}
    """
    from bitwright.experiment.override import value_of

    found: dict[str, Any] = {}
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not name.startswith("--") or not (equals or left):
            raise InputError(
                f"{verb}: {name!r}; possible: options of the procedure as --name value",
                code="usage",
                given=name,
                possible="--name value",
            )
        text = value if equals else left.pop(0)
        pairs = [pair.partition("=") for pair in text.split(",")]
        whole = value_of(text)
        if isinstance(whole, str) and all(sign for _, sign, _ in pairs):
            whole = {glob: value_of(one) for glob, _, one in pairs}
        found[name[2:].replace("-", "_")] = whole
    return found


def _call(out: Output, found: Procedure, subject: Subject, batches: int, options: dict[str, Any]) -> Any:
    """Runs it and shows progress. Finished layers are kept beside the output until the end, so a killed command can go on."""
    from itertools import islice

    from bitwright.training.display import Screen
    from bitwright.training.procedures import showing

    own = "journal" in found.options.model_fields and "journal" not in options
    folder = subject.output.with_name(f"{subject.output.name}.journal")

    def call() -> Any:
        feed: Iterable[Any] = islice(
            subject.train.batches(
                min(subject.batch, len(subject.train)), shuffle=True, seed=subject.seed, normalize=subject.normalize
            ),
            batches,
        )
        with showing(Screen(note=out.note, live=out.live), found.name):
            return found(subject.net, feed, **({"journal": folder} if own else {}), **options)

    out.settle()
    try:
        return call()
    except InputError as error:
        if error.code != "journal" or not own:
            raise
        shutil.rmtree(folder)  # of another command that was stopped
        return call()


def _accuracy(subject: Subject, test: int) -> float | None:
    if not test:
        return None
    from bitwright.training.evaluate import evaluate

    return evaluate(subject.net.eval(), subject.test.limit(test), normalize=subject.normalize).top1


def _run_net(out: Output, target: str, verb: str, output: Path | None, data_root: str | None) -> Subject:
    opened = open_run(out, target, verb)
    from bitwright.runs import dataset
    from bitwright.runs.build import normalized

    experiment = at_root(opened.experiment, data_root)
    test = dataset(experiment, "test")
    net, train = trained_net(opened, test), dataset(experiment, "train")
    path = output or opened.file("compressed.safetensors")
    return Subject(net, train, test, normalized(experiment), experiment.data.batch, experiment.seed, path, opened)


def _zoo_net(target: str, verb: str, output: Path | None, data_root: str | None) -> Subject:
    from bitwright import zoo

    card = zoo.card(target)
    net = zoo.load(card.name, form="float")
    path = output or Path(f"{card.name}-{verb}d.safetensors")
    images = zoo.data(card, "train", data_root), zoo.data(card, "test", data_root)
    return Subject(net, *images, card.normalize, 128, 0, path)
