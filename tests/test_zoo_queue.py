"""bench/zoo.py: rows as data, run in order of dependency, nothing twice."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from bitwright import zoo

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def queue() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        import zoo as module
    finally:
        sys.path.remove(str(BENCH))
    return module


def arguments(folder: Path, rows: list[str] | None = None) -> argparse.Namespace:
    return argparse.Namespace(runs=str(folder), rows=rows)


def test_every_row_can_be_made(queue: Any) -> None:
    """Experiments exist, parents are rows, and a row with a parent has no float stage left."""
    found = {row.name: row for row in queue.rows()}
    assert len(found) == len(queue.rows())
    for row in found.values():
        assert not row.parent or row.parent in found
        if row.script:
            assert (BENCH / row.script[0]).is_file() and row.csv and row.rows
            continue
        experiment = row.of_seed(7)
        assert experiment.seed == 7 and experiment.train.threads == 1
        if row.parent:
            assert experiment.model.weights == f"zoo:{row.parent}"
            assert all(stage.recipe or stage.rule for stage in experiment.stage)
            sources = [stage.teacher.source for stage in experiment.stage if stage.teacher]
            assert "previous" not in sources[:1]


def test_a_row_waits_for_its_parent(queue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "CSV", tmp_path / "zoo.csv")
    monkeypatch.setattr(zoo, "list", lambda form=None: [])
    can = [row.name for row, _ in queue.waiting(arguments(tmp_path))]
    assert "cifar10-resnet20-float" in can and "cifar10-resnet20-bwn" not in can
    monkeypatch.setattr(zoo, "list", lambda form=None: ["cifar10-resnet20-float"])
    assert "cifar10-resnet20-bwn" in [row.name for row, _ in queue.waiting(arguments(tmp_path))]


def test_nothing_is_done_twice(queue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in the table are left alone, a row that another process holds is passed over, and the loop ends."""
    monkeypatch.setattr(queue, "CSV", tmp_path / "zoo.csv")
    row = next(r for r in queue.rows() if r.name == "digits-mlp-zero_one")
    queue.write(queue.CSV, [{"row": row.name, "seed": 1, "accuracy": 0.9}])
    assert row.left() == [0, 2]
    taken: list[tuple[str, int]] = []

    def train(args: Any, row: Any, seed: int) -> None:
        taken.append((row.name, seed))
        queue.write(queue.CSV, [*queue.read(queue.CSV), {"row": row.name, "seed": seed, "accuracy": 0.9}])

    monkeypatch.setattr(queue, "train", train)
    with queue.claimed(tmp_path, f"{row.name}-0") as mine:
        assert mine
        queue.run(arguments(tmp_path, [row.name]))
    assert taken == [(row.name, 2)]
    queue.run(arguments(tmp_path, [row.name]))
    assert taken == [(row.name, 2), (row.name, 0)]


def test_a_row_from_run_to_card(queue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short training ends as a row of the table, a file and a card that tell the same."""
    nets = tmp_path / "nets"
    nets.mkdir()
    monkeypatch.setattr(queue, "CSV", tmp_path / "zoo.csv")
    monkeypatch.setattr(queue, "NETS", nets)
    monkeypatch.setattr(zoo.find, "NETS", nets)
    zoo.find.cards.cache_clear()
    try:
        short = ["stage.0.epochs=1", "data.limit=200", "data.limit_test=50", "log.tensorboard=false"]
        row = queue.Row(name="digits-mlp-zero_one", experiment="digits-mlp-zero_one", set=short, keep="package")
        queue.train(arguments(tmp_path / "runs"), row, 0)
        record, card = queue.read(queue.CSV)[0], zoo.card(row.name)
        assert float(record["accuracy"]) == card.accuracy and record["verdict"] in ("PASS", "WARN")
        assert card.images == 50 and card.bytes == (nets / card.file).stat().st_size and card.epochs == "1"
        assert zoo.load(row.name) is not None
    finally:
        zoo.find.cards.cache_clear()
