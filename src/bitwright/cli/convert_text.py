"""What `convert` shows and writes: table, proof, verdict, file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from bitwright.cli.output import Output
from bitwright.numbers import kb

if TYPE_CHECKING:
    from bitwright.engine.convert import Converted
    from bitwright.engine.packed import PackedModel
    from bitwright.engine.report import ConvertReport


def show(
    out: Output, converted: Converted, target: Path, what: str, *, limit: int | None = 2, details: bool = False
) -> None:
    """Rows and verdict; writes the file unless the verdict is REFUSE, which is exit code 1.

    what      what was compared: "inputs", "test images"
    limit     like layers shown before `...  n more`
    details   every image whose class differs, not the first few
    """
    report = converted.report
    out.status = report.status
    out.lines(report.table(out.width, limit))
    for line in report.proof(out.width, what, None if details else 3):
        out.result(line)
    if report.form == "graph" and converted.model is not None and report.backend == "native":
        for line in thresholds(cast("PackedModel", converted.model)):
            out.prose(f"        {line}", 8)
    out.data["report"] = report.to_dict()
    if converted.model is None:
        out.exit_code = 1
        out.verdict(f"REFUSE  {refusal(report)}")
        return
    size = converted.save(target)
    out.data["file"] = {"path": str(target), "bytes": size}
    if report.noisy:
        out.warn(f"convert: the times are {report.noisy}")
    place = f"{target}  {kb(size)} kB"
    out.verdict(f"PASS  {place}" if report.status == "PASS" else f"WARN  {warning(report)}; file written: {place}")


def warning(report: ConvertReport) -> str:
    """The verdict, and where the images that differ went wrong."""
    ties = report.near_ties
    if not report.disagreements:
        return report.verdict
    head = next((r.layer for r in reversed(report.rows) if r.runs_as == "float"), "")
    where = f" at float layer {head}" if head else ""
    more = f"{ties} near-tie{'s' if ties != 1 else ''}{where}, see --details" if ties else "see --details"
    return f"{report.verdict} ({more})"


def refusal(report: ConvertReport) -> str:
    """The verdict, and whether --force would help."""
    if report.gated:
        return report.verdict
    if all(r.runs_as in ("float", "your code") for r in report.rows):
        return f"{report.verdict}; or --force for a file that runs without the model's code, no smaller and no faster"
    return f"{report.verdict}. --force does not help: a wrong answer is never written"


def thresholds(packed: PackedModel) -> list[str]:
    """How many layers compare integers, and how those thresholds were found."""
    from bitwright.engine.fuse import integer_range
    from bitwright.engine.thresholds import ENUMERATE

    graph = packed.runtime
    found = [node for node in graph.nodes if node.key("int_thresholds")]
    if not found:
        return []
    ranges = [integer_range(graph, node) for node in found]
    every = all(int((high - low).max()) < ENUMERATE for low, high in ranges)
    how = "every reachable integer checked" if every else "found by bisection over the reachable integers"
    layers = "1 layer" if len(found) == 1 else f"{len(found)} layers"
    return [f"norm and quantizer behind {layers} became integer thresholds: {how}"]
