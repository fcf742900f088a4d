"""`bitwright import`: a checkpoint of one of the research codes -> our model with its weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.importers import Imported


def import_(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(help="The old checkpoint, .pth or .pth.tar.")],
    source: Annotated[
        str,
        typer.Option("--from", help="The code that wrote it: xnor-net, network-compression, pca-hybrid, dnn-gating."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Which net it is: lenet5, nin, alexnet; or how it is quantized: bwn, bwn-f, dorefa-1 to dorefa-8, ttq, "
            "float; or which convs have 2 bits: hybrid, hybrid:12,13,22-24, binary; or gated: fbs-0.5, cg, cg-shuffle, "
            "pg-w8a3p2. [default: told from the keys]"
        ),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="[default: FILE's name, .safetensors]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Read an old checkpoint as data (nothing in it is run) and write its weights for our model.

    Every key of the file is listed with the place it went to; a key that is missing, left over or of another
    shape is an error.
    """
    out: Output = ctx.obj
    target = Path(output) if output else Path(_stem(file) + ".safetensors")
    if target.exists() and not overwrite:
        raise InputError(
            f"import: {target} exists. Give another -o, or --overwrite", code="file-exists", given=str(target)
        )
    if not target.parent.is_dir():
        raise InputError(f"import: no folder {target.parent}", code="file-folder", given=str(target.parent))
    import bitwright as bw
    from bitwright.importers import import_checkpoint
    from bitwright.numbers import kb

    done = import_checkpoint(file, source, model)
    size = bw.save(done.model, target, source=source, net=done.spec, options=dict(done.options), **_facts(done))
    _show(out, done)
    out.data["import"] = {
        "model": done.name,
        "spec": done.spec,
        "options": dict(done.options),
        "weights": done.weights,
        "facts": dict(done.facts),
        "recipe": done.recipe.to_toml(),
        "rows": [{"old": r.old, "new": r.new, "shape": list(r.shape), "note": r.note} for r in done.rows],
        "file": {"path": str(target), "bytes": size},
    }
    out.verdict(f"done  {target}  {kb(size)} kB")
    _next(out, done, target)


def _show(out: Output, done: Imported) -> None:
    from bitwright.tabular import columns

    # whole names, whatever the width: they are what one searches for
    rows = [(r.old, r.new or "-", "x".join(map(str, r.shape)) or "1", r.note) for r in done.rows]
    out.lines(columns(("old key", "new key", "shape", "changed"), rows))
    facts = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in done.facts.items()
    )
    held = "float weights" if done.weights == "float" else f"low-bit layers held {done.weights}"
    out.result(f"{done.name}: {len(done.rows)} keys, all used; {held}")
    if facts:
        out.result(f"the file says: {facts} (not measured here)")
    if done.weights not in ("latents", "float"):
        out.warn(
            "import: the file holds binarized weights, without the latents behind them: good for convert and eval; "
            "training on would start from their signs"
        )


def _facts(done: Imported) -> dict[str, Any]:
    return {"facts": dict(done.facts)} if done.facts else {}


def _next(out: Output, done: Imported, target: Path) -> None:
    """The command that packs it, where there is something to pack and the model can be built by name."""
    classes = done.options.get("num_classes", 10)
    own = ":" in done.spec  # a function that is called without arguments
    if "clip = false" in done.recipe.to_toml():
        out.prose("2-bit inputs of this code have no ends, so the net is for eval and training, not for convert", 6)
        return
    specs = [rule.slots.get("gate") for rule in done.recipe.rules]
    refused = any(
        isinstance(s, dict) and (s.get("compat") or s.get("scale") == "batch_max") for s in specs
    )  # by convert
    own_classes = own and classes != _classes(done.spec)
    if refused or done.weights == "float" or done.options.get("width", 1) != 1 or own_classes:
        return
    words = ["bitwright", "convert", shlex.quote(str(target)), "--model", done.spec]
    if own:
        words += ["--input", ",".join(map(str, done.shape))]
    elif classes != 10:
        words += ["--classes", str(classes)]
    out.next(" ".join(words), "pack and verify it")


def _classes(spec: str) -> int:
    """Outputs of the model that this function gives when it is called without arguments."""
    return 100 if ".pca_nets:" in spec else 10


def _stem(file: str) -> str:
    """The path without `.pth.tar`, `.pth`, `.pt`.

    >>> _stem("models/nin.best.pth.tar")
    'models/nin.best'
    """
    for suffix in (".pth.tar", ".pth", ".pt", ".tar"):
        if file.endswith(suffix):
            return file.removesuffix(suffix)
    return file
