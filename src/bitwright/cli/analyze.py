"""`bitwright analyze`: what a trained net says about itself: where bits are needed, or what its weights may be worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.complete import complete_model, complete_recipe, complete_run
from bitwright.errors import InputError

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
Target = Annotated[str, typer.Argument(help="A trained run directory.", autocompletion=complete_run)]
DataRoot = Annotated[str | None, typer.Option("--data-root", help="Where the run's data set lies here.")]


@app.callback()
def analyze() -> None:
    """Look at a trained net: how many dimensions each layer uses, or what its 0/1 weights do."""


@app.command(short_help="Where bits are needed; writes a recipe.")
def pca(
    ctx: typer.Context,
    run: Target,
    output: Annotated[
        str | None, typer.Option("--output", "-o", "--out", help="The recipe. [default: RUN/hybrid.toml]")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Share of the variance that counted components hold.")] = 0.99,
    delta: Annotated[float, typer.Option(help="Least rise in components over the layer before.")] = 2,
    relative: Annotated[float | None, typer.Option(help="Instead of delta: rise of components / channels.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Instead of delta: the largest rises, up to this share of the weights.")
    ] = None,
    count: Annotated[
        str, typer.Option(help="Components: below the threshold, as published, or needed, one more.")
    ] = "below",
    residual: Annotated[
        str, typer.Option(help="Where adds give a layer several inputs: the latest layer, or the largest count.")
    ] = "latest",
    always: Annotated[
        list[str] | None, typer.Option(help="Layers to choose, whatever their count; may be repeated.")
    ] = None,
    never: Annotated[list[str] | None, typer.Option(help="Layers to leave out, whatever their count.")] = None,
    bits: Annotated[str, typer.Option(help="Bits of the chosen layers: weights, inputs.")] = "2,2",
    shortcut: Annotated[str, typer.Option(help="1x1 shortcut convs: fp, kbit or binary.")] = "fp",
    target: Annotated[
        str | None,
        typer.Option("--for", help="The model to be trained, if it is another one.", autocompletion=complete_model),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Recipe of the binary layers. [default: as trained]", autocompletion=complete_recipe),
    ] = None,
    weight_scale: Annotated[str, typer.Option(help="Of kbit weights: none, max, std or lsq.")] = "std",
    faithful: Annotated[
        bool, typer.Option("--faithful", help="kbit as in the public code: unbounded inputs; cannot be packed.")
    ] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images. [default: 1,000, more where layers are wide]")
    ] = None,
    random: Annotated[int, typer.Option(min=0, help="Random choices to compare with.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choices.")] = 0,
    baselines: Annotated[
        str | None, typer.Option(help="Folder for the recipes of all choices that it is compared with.")
    ] = None,
    energy: Annotated[str, typer.Option(help="Energy table of the comparison.")] = "hybrid45",
    data_root: DataRoot = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing recipes.")] = False,
) -> None:
    """Where bits are needed: k bits for the layers in which the number of dimensions rises.

    Writes a recipe to read, edit and train with, and pca.json into the run for its report. Beside it stand other choices:
    no layer, all layers, and, with as many extra bits, random layers or those of one end of the net.
    """
    from bitwright.cli.analyze_pca import Wanted, analyze_pca

    wanted = Wanted(
        bits=_bits(bits), shortcut=shortcut, target=target, base=base, random=random, seed=seed, energy=energy,
        weight_scale="none" if faithful else weight_scale, clip=not faithful, compat="seed" if faithful else None,
        recipe=Path(output) if output else Path(run) / "hybrid.toml", folder=Path(baselines) if baselines else None,
        overwrite=overwrite, replace=output is None,
    )  # fmt: skip
    analyze_pca(
        ctx.obj, run, wanted, images, data_root, threshold, delta, count=count, relative=relative, budget=budget,
        residual=residual, always=always or (), never=never or (),
    )  # fmt: skip


@app.command(short_help="Accuracy over the value of 0/1 weights.")
def sweep(
    ctx: typer.Context,
    run: Target,
    on: Annotated[str, typer.Option(help="Weight values, numbers and FROM:TO:STEP.")] = "0:4:0.1,5,10,100",
    norm: Annotated[
        str, typer.Option(help="Statistics of norms: running, recalibrate, batch, or all of them.")
    ] = "all",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at a time. [default: as in training's evaluation]")
    ] = None,
    test_images: Annotated[
        int | None, typer.Option("--test-images", min=1, help="First test images only. [default: all]")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Training images for statistics. [default: 2,000]")] = None,
    data_root: DataRoot = None,
) -> None:
    """Accuracy of a net of 0/1 weights while they take one value after another.

    Ranked also by what the last layer computes, and compared with the circuit at large weights; sweep.json goes into the run.
    """
    from bitwright.cli.analyze_sweep import analyze_sweep

    analyze_sweep(ctx.obj, run, on, norm, batch, images, test_images, data_root)


@app.command()
def connections(ctx: typer.Context, run: Target, data_root: DataRoot = None) -> None:
    """Which 0/1 weights are on, and which neurons they keep alive."""
    from bitwright.cli.analyze_sweep import analyze_connections

    analyze_connections(ctx.obj, run, data_root)


def _bits(text: str) -> tuple[int, int]:
    """
    >>> _bits("2,3"), _bits("2")
    ((2, 3), (2, 2))
    """
    pieces = text.split(",")
    if len(pieces) > 2 or not all(p.strip() in "12345678" and p.strip() for p in pieces):
        raise InputError(
            f"analyze pca: --bits {text!r}; possible: weights,inputs, each 1 to 8, e.g. --bits 2,2",
            code="option",
            given=text,
            possible="weights,inputs, each 1 to 8",
        )
    return int(pieces[0]), int(pieces[-1])
