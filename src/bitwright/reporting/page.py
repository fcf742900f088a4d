"""`report`: the sections through the templates into one file."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.atomic import replacing
from bitwright.errors import InputError
from bitwright.reporting import data, filters
from bitwright.reporting.gaps import gaps
from bitwright.reporting.load import load_run
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections import SECTIONS
from bitwright.reporting.verdict import findings, verdict
from bitwright.runs.result_tables import Components, Export, Sweeps
from bitwright.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


def report(run_or_objects: Any, path: str | os.PathLike[str], *, interactive: bool = False) -> Path:
    """Writes the HTML page and returns its path; an existing file is replaced.

    run_or_objects   a run directory (any of its files may be missing), or a Converted, BenchTable, CostTable,
                     or a list or dict of these (a dict's first key names the page)
    interactive      two zoomable scatters and histograms by plotly inside the page: about 5 MB instead of 0.1

    Errors: `InputError` for a folder that is not a run, a damaged file (named with its row), or other objects.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"report: no folder {target.parent}", code="file-folder", given=str(target.parent))
    return write(target, html(load(run_or_objects), interactive=interactive))


def load(run_or_objects: Any) -> RunData:
    """The sections of a run directory or of result objects."""
    if isinstance(run_or_objects, (str, os.PathLike)):
        return load_run(run_or_objects)
    if isinstance(run_or_objects, RunData):
        return run_or_objects
    from bitwright.reporting.objects import load_objects

    return load_objects(run_or_objects)


def html(run: RunData, *, interactive: bool = False) -> str:
    """The page's text."""
    figures: dict[str, Any] = {}
    plotly = ""
    if interactive:
        from bitwright.reporting.interactive import figures_of, script

        figures, plotly = figures_of(run), script()
    return render("page.html.j2", {**view(run), "figures": data.block(figures) if figures else ""}, plotly)


def view(run: RunData) -> dict[str, Any]:
    """What the templates read."""
    shown = [section for section in SECTIONS if section.shown(run)]
    found: dict[str, Any] = {
        "run": run, "sections": shown, "verdict": verdict(run), "findings": findings(run), "gaps": gaps(run),
        "commands": commands(run), "data": data.block(data.as_dict(run)),
    }  # fmt: skip
    for section in shown:
        found |= section.view(run)
    return found


FORMS = {"onnx": "onnx", "qonnx": "qonnx.onnx", "c": "c", "circuit": "v"}  # of export, and how the file's name ends


def commands(run: RunData) -> list[str]:
    """The commands that make such a run again, beside this one; only steps whose results are here."""
    lines = [f"# with bitwright {__version__}; versions of the rest are below"]
    if run.origin.command:
        lines.append(f"# this run was made by: {' '.join(run.origin.command.split())}")
    if run.origin.path is not None:
        experiment, path = (shlex.quote(run.origin.path + end) for end in ("/experiment.toml", "-again"))
        lines.append(f"bitwright train {experiment} --out {path}")
        found = run.one(Components)
        lines += [f"bitwright analyze pca {path} --images {found.images}"] if found and found.images else []
        lines += [f"bitwright analyze sweep {path}"] if run.one(Sweeps) else []
        lines += [f"bitwright convert {path}"] if run.conversion else []
        written = {name for name, *_ in run.origin.files}
        forms = {row.form for row in run.rows(Export)}
        lines += [
            f"bitwright export {f} {path}" for f, end in FORMS.items() if f in forms or f"packed.{end}" in written
        ]
        if run.speed:
            threads, batch = run.speed.machine.get("threads", 1), run.speed.batch
            lines.append(f"bitwright bench {path} --threads {threads}" + (f" --batch {batch}" if batch != 1 else ""))
        lines.append(f"bitwright report {path}")
    return lines


@cache
def environment() -> Environment:
    """Everything that comes from a run is escaped: names of layers, classes and experiments are other people's text."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.PackageLoader("bitwright.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(filters.FILTERS)
    return env


def render(template: str, values: Mapping[str, Any], plotly: str = "") -> str:
    """Fills a page; its scripts are named by hash in the policy, so that no other one can run in it."""
    env = environment()
    script = env.get_template("script.js.j2").render()
    hashes = " ".join(f"'sha256-{_hash(text)}'" for text in (script, plotly) if text)
    # script_hashes stand between quotation marks of an attribute and hold nothing that needs escaping
    from markupsafe import Markup

    page = env.get_template(template).render(
        **values, script=script, plotly=plotly, script_hashes=Markup(hashes), version=__version__
    )
    return filters.unbroken(page)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def write(target: Path, text: str) -> Path:
    """Whole or not at all: a reader never sees half a page."""
    with replacing(target) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")
    return target
