"""What `bitwright export` writes a file of: a run, a packed file or a net of the zoo; and where the file goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.cli.output import Output
from bitwright.cli.target import looks_like_run, open_run, quoted
from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.engine.packed import PackedModel
    from bitwright.runs import Run
    from bitwright.zoo import Card

RANDOM = 16  # random inputs, where no images are at hand


@dataclass(frozen=True)
class ExportTarget:
    """A packed net in graph form; its run or card where it has one; the path of its file, without a suffix."""

    net: PackedModel
    stem: Path
    run: Run | None = None
    card: Card | None = None

    def place(self, output: str | None, suffix: str) -> Path:
        return placed(self.stem, output, suffix)


def placed(stem: Path, output: str | None, suffix: str) -> Path:
    """The path of the file that is asked for. Errors: it is a folder, or lies in none."""
    path = stem.with_name(stem.name + suffix) if output is None else Path(output)
    if path.is_dir() or not path.parent.is_dir():
        text = f"{path} is a folder" if path.is_dir() else f"no folder {path.parent}"
        raise InputError(f"export: {text}; give -o FILE{suffix}", code="file-write", given=str(path))
    return path


def export_target(out: Output, target: str) -> ExportTarget:
    import bitwright as bw

    if target.startswith("zoo:"):
        card = bw.zoo.card(target)
        return ExportTarget(_packed(bw.zoo.load(card.name), target), Path(card.name), card=card)
    if looks_like_run(target):
        run = open_run(out, target, "export")
        if not run.has("packed.safetensors"):
            raise InputError(
                f"export {target}: no packed net yet. Run: bitwright convert {quoted(target)}", code="run-unpacked"
            )
        file = run.file("packed.safetensors")
        return ExportTarget(_load(file, target), file.with_name("packed"), run=run)
    file = Path(target)
    if not file.is_file():
        raise InputError(f"export: no file {target}", code="file-missing", given=target)
    name = file.name.removesuffix(".safetensors").removesuffix(".packed")
    return ExportTarget(_load(file, target), file.with_name(name))


def _load(path: Path, target: str) -> PackedModel:
    """The net of a packed file. Errors: what to type for a file of another kind."""
    import bitwright as bw
    from bitwright.tensors import read_tensors

    try:
        return _packed(bw.load(path), target)
    except InputError as error:
        if error.code != "load-model":
            raise
        command = f"bitwright convert {quoted(target) if looks_like_run(target) else 'FILE --model MODEL'}"
        if read_tensors(path)[1].get("bitwright") != "layers":
            text = f"trained, not packed. Pack it: bitwright convert {quoted(target)} --model MODEL"
        else:
            text = f"packed in layer form, which runs with your code; a file takes a graph. Pack it anew: {command} --form graph"
        raise error.reworded(f"export {target}: {text}") from None


def _packed(net: object, target: str) -> PackedModel:
    from bitwright.engine.packed import PackedModel

    if not isinstance(net, PackedModel):
        raise InputError(f"export {target}: not a packed net; pack it first: bitwright convert", code="export-form")
    return net
