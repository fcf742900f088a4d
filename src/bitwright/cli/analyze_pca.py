"""The work of `bitwright analyze pca RUN`."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.atomic import replacing
from bitwright.cli.counted_batches import CountedBatches
from bitwright.cli.output import Output
from bitwright.cli.target import at_root, experiment_of, open_run, quoted, trained_net
from bitwright.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitwright.analysis.pca_result import Pca
    from bitwright.data import Images
    from bitwright.experiment import Experiment
    from bitwright.runs import Run
    from bitwright.transforms import Recipe

IMAGES, BATCH = 1000, 100


@dataclass(frozen=True)
class Wanted:
    """What the recipes shall be, and where they go. replace: the recipe is the run's own file, and may be replaced."""

    bits: tuple[int, int]
    shortcut: str
    target: str | None
    base: str | None
    random: int
    seed: int
    energy: str
    weight_scale: str
    clip: bool
    compat: str | None
    recipe: Path
    folder: Path | None
    overwrite: bool
    replace: bool


def analyze_pca(
    out: Output, target: str, wanted: Wanted, images: int | None, data_root: str | None, threshold: float,
    delta: float, **rule: Any,
) -> None:  # fmt: skip
    run = open_run(out, target, "analyze")
    if not run.has("model.safetensors"):
        run.model()
    _check_places(wanted)
    from bitwright.analysis.analyze import pca
    from bitwright.runs import dataset, example_of
    from bitwright.runs.build import normalized

    experiment = at_root(run.experiment, data_root)
    train = dataset(experiment, "train")
    net = trained_net(run, train)
    x = example_of(experiment, train, 2)
    taken = min(len(train), images or enough(net, x))
    batches = train.limit(taken).batches(BATCH, normalize=normalized(experiment))
    out.detail(f"analyze {target}: {taken:,} training images of {train.name}, not augmented")
    found = pca(net, CountedBatches(out, "PCA", batches), threshold, delta, **rule)
    goal, x_goal = _target(experiment, train, wanted, x)
    fitted = found.fitted(goal, x_goal)
    moved = [(a, b) for a, b in zip(found.components, fitted.components, strict=True) if a != b]
    options = {
        "base": wanted.base, "clip": wanted.clip, "weight_scale": wanted.weight_scale, "compat": wanted.compat,
    }  # fmt: skip
    recipes = fitted.baselines(wanted.bits, wanted.shortcut, random=wanted.random, seed=wanted.seed, **options)
    rows = compared(fitted, recipes, goal, x_goal, wanted)
    files = _write(fitted, recipes, wanted)
    facts = {"images": taken, "bits": list(wanted.bits), "shortcut": wanted.shortcut, "compared": rows}
    run.write_json("pca.json", {**found.to_dict(), **facts})
    out.data["analyze"] = {
        "run": target, "judge": "pca", **facts, "pca": found.to_dict(), "renamed": dict(moved), "files": files,
    }  # fmt: skip
    _show(out, found, rows, wanted, taken)
    if moved:
        out.prose(
            f"layers of {wanted.target} are named otherwise and were matched by position: {moved[0][0]} is {moved[0][1]}",
            6,
        )
    _verdict(out, found, wanted)
    _next(out, run, experiment, wanted)


def enough(net: nn.Module, x: Tensor) -> int:
    """Images: 1,000, or so many that each half of them has 10 rows per channel in every layer."""
    from bitwright.analysis.pca import ROWS_PER_CHANNEL
    from bitwright.transforms import walk

    most = IMAGES
    for info in walk(net, x)[1:-1]:
        if len(info.y_shape) > 1:
            channels = info.y_shape[1] if len(info.y_shape) > 2 else info.y_shape[-1]
            pixels = math.prod(info.y_shape[2:]) * max(1, info.calls)
            most = max(most, math.ceil(2 * ROWS_PER_CHANNEL * channels / pixels))
    return most


def compared(
    fitted: Pca, recipes: dict[str, Recipe], goal: nn.Module, x: Tensor, wanted: Wanted
) -> list[dict[str, Any]]:
    """A row per choice of layers: how many, their share of the weights, what the net costs."""
    from bitwright.analysis import cost
    from bitwright.transforms import apply
    from bitwright.transforms.copying import copy_model

    weights = {row.name: row.weights for row in fitted.layers}
    sets = fitted.sets(wanted.random, wanted.seed)
    rows = []
    for name, recipe in recipes.items():
        totals = cost(apply(copy_model(goal), recipe, x), x, wanted.energy).totals
        held = sum(weights[n] for n in sets[name])
        rows.append({
            "choice": name, "layers": list(sets[name]), "weights": held, "share": held / max(1, sum(weights.values())),
            "extra_bits": held * (wanted.bits[0] - 1), "storage_bytes": totals["storage_bytes"],
            "compression": totals["compression"], "energy_efficiency": totals["energy_efficiency"],
            "bops": totals["bops"],
        })  # fmt: skip
    return rows


def _target(experiment: Experiment, images: Images, wanted: Wanted, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The float net that the recipe is for, and an input."""
    from bitwright.cli.model_argument import make_model
    from bitwright.runs import build_model, example_of

    if wanted.target is None:
        return build_model(experiment, images, weights=False).eval(), x
    other = experiment_of(wanted.target)
    if other is not None:
        return build_model(other, images, weights=False).eval(), example_of(other, images, 2)
    return make_model(wanted.target, "analyze", images.shape, len(images.classes))[0].eval(), x


def _check_places(wanted: Wanted) -> None:
    """Before the work: nothing is replaced by accident."""
    taken = [wanted.recipe] if wanted.recipe.exists() and not wanted.replace else []
    if wanted.folder is not None and wanted.folder.exists():
        taken += sorted(wanted.folder.glob("*.toml"))
    if taken and not wanted.overwrite:
        raise InputError(
            f"analyze: {taken[0]} exists. Give another place, or --overwrite", code="file-exists", given=str(taken[0])
        )
    if not wanted.recipe.parent.is_dir():
        raise InputError(
            f"analyze: no folder {wanted.recipe.parent}", code="file-folder", given=str(wanted.recipe.parent)
        )


def _write(fitted: Pca, recipes: dict[str, Recipe], wanted: Wanted) -> list[str]:
    places = {wanted.recipe: recipes["pca"]}
    if wanted.folder is not None:
        wanted.folder.mkdir(parents=True, exist_ok=True)
        places |= {wanted.folder / f"{name}.toml": recipe for name, recipe in recipes.items()}
    for path, recipe in places.items():
        with replacing(path) as beside:
            beside.write_text(fitted.recipe_text(recipe), encoding="utf-8", newline="\n")
    return [str(path) for path in places]


def _show(out: Output, found: Pca, rows: list[dict[str, Any]], wanted: Wanted, images: int) -> None:
    from bitwright.numbers import kb, percent

    head, *cells = found.cells()
    out.table(head, cells, right=range(1, 6), drop=("rows", "halves"))
    out.prose(
        f"{images:,} training images; components at {found.threshold:g} of the variance ({found.count}); "
        f"first ({found.first}) and last layer ({found.last}) stay out",
        6,
    )
    out.result()
    w, x = wanted.bits
    names = {"pca": "PCA", "kbit": f"all {w}/{x} bits", "binary": "all binary"}
    out.table(
        ("choice", "k-bit layers", "weights %", "storage kB", "float / it", "energy: float / it"),
        [
            (
                names.get(r["choice"], r["choice"]), str(len(r["layers"])), percent(r["share"]), kb(r["storage_bytes"]),
                f"{r['compression']:.1f}x", f"{r['energy_efficiency']:.1f}x",
            )
            for r in rows
        ],
        right=range(1, 6),
    )  # fmt: skip
    out.prose(f"computed, not measured; energy: {wanted.energy}; accuracy is known after training", 6)


def _verdict(out: Output, found: Pca, wanted: Wanted) -> None:
    n, w, x = len(found.significant), *wanted.bits
    if found.stable is False:
        out.warn(f"analyze: {found.unstable()} (--images)")
    elif found.stable is None:
        out.warn("analyze: too few rows to compare two halves of the images. Give more with --images")
    if not n:
        out.warn(
            "analyze: no layer's count rises so far; the recipe is all binary. try: a smaller --delta, or --budget 0.2"
        )
    word = "chosen by both halves of the images" if found.stable else "see the warning"
    chosen = f", {word}" if found.stable is not None and n else ""
    out.verdict(f"done  {wanted.recipe}  {n} of {len(found.layers)} inner layers at {w}/{x} bits{chosen}")


def _next(out: Output, run: Run, experiment: Experiment, wanted: Wanted) -> None:
    """Training with the recipe: the shipped hybrid experiment of this net where there is one."""
    from bitwright import experiment as experiments

    model = wanted.target or experiment.model.name.replace("resnet20_plain", "bireal_resnet20")
    name = f"{experiment.data.name}-{model}-hybrid"
    recipe = shlex.quote(f"stage.0.recipe={wanted.recipe}")
    if name in experiments.names():
        out.next(f"bitwright train {name} {recipe}", "trains it")
    elif wanted.target is None:
        last = len(experiment.stage) - 1
        again = shlex.quote(f"stage.{last}.recipe={wanted.recipe}")
        place = f"{quoted(run.file('experiment.toml'))} {again} --out {quoted(str(run.path) + '-hybrid')}"
        out.next(f"bitwright train {place}", "trains it")
    else:
        out.next(f"bitwright plan {quoted(wanted.target)} {quoted(wanted.recipe)}", "what it does, layer by layer")
    out.next(f"bitwright report {quoted(run.path)}", "curves of all layers")
