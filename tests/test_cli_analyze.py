"""`bitwright analyze`: from a trained binary run to a recipe that trains, and what the report shows of it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import bitwright as bw
from bitwright import experiment
from bitwright.reporting import page
from bitwright.reporting.load import load_run
from bitwright.runs import Run

EXPERIMENT = """
[data]
name = "digits"
limit = 400
limit_test = 64
batch = 100
[model]
name = "resnet20_plain"
width = 0.25
[[stage]]
epochs = 1
recipe = "xnor"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("analyze")
    (folder / "plain.toml").write_text(EXPERIMENT)
    bw.train(experiment.load(folder / "plain.toml"), folder / "plain", echo=lambda text: None)
    return Run(folder / "plain")


@pytest.mark.slow
def test_recipe_table_and_json(trained: Run, tmp_path: Path, call: Any) -> None:
    recipe, folder = tmp_path / "hybrid.toml", tmp_path / "base"
    words = [
        "analyze",
        "pca",
        str(trained.path),
        "-o",
        str(recipe),
        "--delta",
        "1",
        "--random",
        "2",
        "--baselines",
        str(folder),
    ]
    code, text, note = call(*words)
    assert code == 0, note
    rows = text.splitlines()
    assert rows[0].split() == ["layer", "channels", "rows", "components", "halves", "rise", "choice"]
    assert [r.split()[0] for r in rows[1:19]] == [
        f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)
    ]
    assert "computed, not measured; energy: hybrid45" in text and text.splitlines()[-1].startswith(f"done  {recipe}")
    assert "next:   bitwright train" in note
    names = ["binary", "first-heavy", "kbit", "last-heavy", "pca", "random-0", "random-1"]
    assert sorted(p.stem for p in folder.glob("*.toml")) == names
    assert (folder / "pca.toml").read_text() == recipe.read_text()

    kept = trained.read_json("pca.json")
    chosen = set(kept["significant"])
    assert 0 < len(chosen) < 18 and kept["images"] == 400 and len(kept["layers"]) == 18
    table = bw.plan(bw.models.create("resnet20_plain", in_channels=1, width=0.25), str(recipe), _x())
    assert {r.name for r in table.rows if r.bits == "2/2"} == chosen

    code, text, note = call(*words, "--overwrite", "--json")
    assert code == 0, note
    found = json.loads(text)["analyze"]
    assert found["pca"]["significant"] == kept["significant"] and found["pca"]["layers"] == kept["layers"]
    by_name = {r["choice"]: r for r in found["compared"]}
    assert by_name["binary"]["extra_bits"] == 0 and by_name["pca"]["extra_bits"] > 0
    assert (
        by_name["binary"]["energy_efficiency"]
        > by_name["pca"]["energy_efficiency"]
        > by_name["kbit"]["energy_efficiency"]
    )
    assert set(by_name["pca"]["layers"]) == chosen


def _x() -> Any:
    import torch

    return torch.zeros(2, 1, 8, 8)


@pytest.mark.slow
def test_the_command_it_ends_with_trains_the_hybrid_net(
    trained: Run, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, note = call("analyze", "pca", str(trained.path), "-o", "hybrid.toml", "--delta", "1")
    line = next(line for line in note.splitlines() if line.startswith("next:   bitwright train"))
    words = shlex.split(line.removeprefix("next:   bitwright ").split("        ")[0])
    assert code == 0 and call(*words)[0] == 0
    made = Run(words[words.index("--out") + 1])
    code, text, _ = call("cost", str(made.path), "--energy", "hybrid45")
    assert (
        code == 0 and "2/2" in text and "float / this net: energy" in text and "1 bit in all its low-bit layers" in text
    )
    code, text, note = call("convert", str(made.path))
    assert code in (0, 1) and "2/2" in text  # narrow: it may be refused for its speed, never for its bits


@pytest.mark.slow
def test_another_model(trained: Run, tmp_path: Path, call: Any) -> None:
    recipe = tmp_path / "hybrid.toml"
    words = ["analyze", "pca", str(trained.path), "-o", str(recipe), "--for", "bireal_resnet20", "--base", "bireal"]
    code, _, note = call(*words, "--bits", "2,3", "--shortcut", "kbit", "--delta", "1")
    assert code == 0, note
    text = recipe.read_text()
    assert (
        'w = "bireal"' in text and 'x = { part = "kbit", bits = 3 }' in text and 'match = "layer2.0.shortcut.1"' in text
    )
    assert "next:   bitwright plan bireal_resnet20" in note
    code, _, note = call(*words, "--overwrite", "--for", "vgg_small")
    assert code == 2 and "neither names nor positions fit" in note


@pytest.mark.slow
def test_faithful_cannot_be_packed_and_says_unknown(trained: Run, tmp_path: Path, call: Any) -> None:
    recipe = tmp_path / "hybrid.toml"
    assert call("analyze", "pca", str(trained.path), "-o", str(recipe), "--faithful", "--delta", "1")[0] == 0
    assert "clip = false" in recipe.read_text() and 'compat = "seed"' in recipe.read_text()
    net = bw.apply(bw.models.create("resnet20_plain", in_channels=1, width=0.25), str(recipe), _x())
    assert bw.cost(net, _x()).totals["unknown"] == trained.read_json("pca.json")["significant"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bits", "2,2,2"], "--bits '2,2,2'; possible: weights,inputs"),
        (["--bits", "0"], "--bits '0'; possible"),
        (["--images", "1"], "pca: layer"),
        (["--energy", "horowitz"], "Nearest: horowitz45"),
        (["-o", "missing/hybrid.toml"], "analyze: no folder missing"),
        (["--threshold", "1"], "threshold=1.0; possible: between 0 and 1"),
        (["--shortcut", "float"], "possible: fp, kbit, binary"),
    ],
)
def test_one_line_for_each_mistake(trained: Run, call: Any, words: list[str], said: str) -> None:
    code, _, note = call("analyze", "pca", str(trained.path), *words)
    assert code == 2 and said in note and note.count("\n") == 1


@pytest.mark.slow
def test_layers_that_one_knows_better(trained: Run, tmp_path: Path, call: Any) -> None:
    words = ["analyze", "pca", str(trained.path), "-o", str(tmp_path / "h.toml"), "--delta", "100", "--random", "0"]
    code, _, note = call(*words, "--always", "layer3.*.conv1", "--always", "layer1.0.conv1", "--never", "layer2.*")
    assert code == 0, note
    kept = trained.read_json("pca.json")
    assert kept["significant"] == ["layer1.0.conv1", *(f"layer3.{i}.conv1" for i in range(3))]
    least = {row["name"]: row["components"] for row in kept["layers"]}
    code, _, note = call(
        *words, "--overwrite", "--count", "needed", "--residual", "largest", "--always", "layer1.0.conv1"
    )
    assert code == 0, note
    more = {row["name"]: row["components"] for row in trained.read_json("pca.json")["layers"]}
    assert all(more[name] == n + 1 for name, n in least.items())


@pytest.mark.slow
def test_nothing_is_replaced_by_accident(trained: Run, tmp_path: Path, call: Any) -> None:
    own = tmp_path / "mine.toml"
    own.write_text("# by hand\n")
    code, _, note = call("analyze", "pca", str(trained.path), "-o", str(own))
    assert code == 2 and f"{own} exists" in note and own.read_text() == "# by hand\n"
    assert (
        call("analyze", "pca", str(trained.path))[0] == call("analyze", "pca", str(trained.path))[0] == 0
    )  # the run's own file
    assert trained.has("hybrid.toml")


def test_no_rise_is_said(trained: Run, tmp_path: Path, call: Any) -> None:
    code, text, note = call("analyze", "pca", str(trained.path), "-o", str(tmp_path / "h.toml"), "--delta", "99")
    assert code == 0 and "no layer's count rises so far" in note and "0 of 18 inner layers" in text


def test_the_report_shows_what_pca_json_holds(trained: Run, tmp_path: Path, call: Any) -> None:
    assert call("analyze", "pca", str(trained.path), "--delta", "1")[0] == 0
    data = load_run(trained.path)
    kept = trained.read_json("pca.json")
    assert data["bits"] is not None and data["bits"].delta == 1 and data["bits"].bits == "2/2"
    assert [d.components for d in data["bits"].layers] == [row["components"] for row in kept["layers"]]
    assert [d.rise for d in data["bits"].layers] == [row["rise"] for row in kept["layers"]]
    text = page.html(data)
    section = text.split('<section id="bits">')[1].split("</section>")[0]
    assert '<a href="#bits">' in text and "99\xa0% of the variance" in section and "count before + 1" in section
    for row in kept["layers"]:
        assert f"{row['name']}\n{row['components']} of {row['channels']} components" in section
    assert section.count('<rect class="f-ours"') == len(kept["significant"])
    assert section.count('class="line s-') >= 18 and "random-2" in section
    trained.file("pca.json").rename(tmp_path / "away.json")
    assert 'id="bits"' not in page.html(load_run(trained.path))
    (tmp_path / "away.json").rename(trained.file("pca.json"))


def test_a_damaged_pca_json_is_one_line(trained: Run, call: Any) -> None:
    kept = trained.read_text("pca.json")
    try:
        trained.write_text("pca.json", kept.replace('"components": ', '"components": "x', 1).replace(",", '",', 1))
        code, _, note = call("report", str(trained.path))
        assert code == 2 and "pca.json" in note and note.count("\n") == 1
    finally:
        trained.write_text("pca.json", kept)
