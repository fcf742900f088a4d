"""One more table of a run, from training to the page: a row class, a watcher, a section and its template; nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bitwright

ROW = '''

class Norm(Table):
    """A row per epoch and parameter: its norm."""

    file = "norms.csv"
    stage: Count
    epoch: Count
    name: Text = ""
    norm: Number = None
'''
WATCHER = """
from bitwright.runs.tables import Norm
from bitwright.training.watch.watcher import Watcher


class NormWatcher(Watcher):
    table = Norm

    def rows(self, ended):
        found = ended.job.net.named_parameters()
        return [{**ended.at, "name": name, "norm": float(p.detach().norm())} for name, p in found]

    def scalars(self, row):
        yield f"norm/{row['name']}", row["norm"]

    def lessons(self, past):
        yield "norm", f"the norms of epoch {past.epoch} are {len(past.now(Norm))}"

    def words(self, rows):
        return f"  {len(rows)} norms"
"""
SECTION = """
from bitwright.reporting.sections.section import Gap, Section, epochs_json
from bitwright.runs.tables import Norm


class Norms(Section):
    name, title, place, tables = "norms", "Norms", 85, (Norm,)

    def view(self, run):
        return {"norm_rows": run.rows(Norm)}

    def json(self, run):
        return {"norms": epochs_json(run.rows(Norm), Norm)}

    def gaps(self, run):
        if not run.rows(Norm):
            yield "norms", Gap("Norms are not recorded.", "bitwright train {experiment} --out {run}-again")
"""
TEMPLATE = """<section id="norms"><h2>How large are the parameters?</h2>
{% for row in norm_rows %}<p>{{ row.name }}: {{ row.norm|general }}</p>{% else %}{{ m.gap(gaps.norms) }}{% endfor %}
</section>
"""
USE = '''
import sys
from pathlib import Path
from bitwright import experiment, reporting
from bitwright.runs import Run, file_list
from bitwright.runs.tables import Norm
from bitwright.training import train

out, lines = Path(sys.argv[1]), []
e = experiment.parse("""[data]
name = "digits"
limit = 64
limit_test = 32
[model]
name = "mlp"
hidden = 8
depth = 1
[[stage]]
epochs = 2
[log]
tensorboard = false
histograms_every = 0
""")
done = train(e, out, echo=lines.append)
run = Run(out)
rows = run.read(Norm)
assert {(r.stage, r.epoch) for r in rows} == {(0, 0), (0, 1)} and all(r.norm > 0 for r in rows)
assert run.read_text("norms.csv").startswith("stage,epoch,name,norm\\n0,0,")
assert any(f"  {len(rows) // 2} norms" in line for line in lines)
assert any("the norms of epoch 0 are" in text for text in done.warnings)
page = reporting.report(out, out / "report.html").read_text()
assert '<a href="#norms">Norms</a>' in page and f"<p>{rows[0].name}: " in page and '"norms":{"columns":' in page
run.file("norms.csv").unlink()
assert "Norms are not recorded." in reporting.report(out, out / "report.html").read_text()
run.write(Norm, [])
assert file_list.FILES["norms.csv"] == "a row per epoch and parameter: its norm"
file_list.clear(out)
assert not run.has("norms.csv")
'''


@pytest.mark.slow
def test_a_table_is_a_row_class_a_watcher_and_a_section(tmp_path: Path) -> None:
    package = tmp_path / "bitwright"
    shutil.copytree(Path(bitwright.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "nets"))
    new = {
        "training/watch/norms.py": WATCHER,
        "reporting/sections/norms.py": SECTION,
        "reporting/templates/norms.html.j2": TEMPLATE,
    }
    for name, text in new.items():
        assert not (package / name).exists()
        (package / name).write_text(text, encoding="utf-8")
    with (package / "runs/tables.py").open("a", encoding="utf-8") as tables:
        tables.write(ROW)
    there = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "run")],
        cwd=tmp_path,
        env=there,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
