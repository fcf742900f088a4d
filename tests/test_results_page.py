"""docs/results/README.md: sections and sentences from rows whose answers are known."""

from __future__ import annotations

import csv
import doctest
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"
MACHINE = {"cpu": "a CPU", "threads": "1", "torch": "2", "bitwright": "0", "date": "now"}


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes rows as the CSV file of a bench script, where the sections look for it."""
    monkeypatch.syspath_prepend(str(BENCH))
    import results_tables  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(results_tables, "FOLDER", tmp_path)

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        with (tmp_path / name).open("w", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return write


def hybrid_row(name: str, accuracy: float, storage: int, layers: str = "", **more: Any) -> dict[str, Any]:
    facts = {"row": name, "model": "bireal_resnet20", "seed": 0, "epochs": 8, "images": "all", "layers": layers, "accuracy": accuracy,
             "bytes": storage, "storage_bytes": storage, "compression": 1e6 / storage, "energy_efficiency": 2e6 / storage, "ms": 0.25, "ms_q1": 0.24, "ms_q3": 0.26,
             "runs_as": "18 bits", "verdict": "PASS", "same": "2000 of 2000", "seconds": 800, "epoch_seconds": 100, "kernels": "amx",
             "bops": 800_000_000 if name.startswith("hybrid") else 900_000_000}  # fmt: skip
    return facts | MACHINE | more


def stranger_row(name: str, form: str = "graph", **more: Any) -> dict[str, Any]:
    blank = dict.fromkeys(("slot_layers", "bits", "int8", "on_disk", "float", "why_float", "largest_difference", "ms", "ms_q1",
                           "ms_q3", "int8_peer", "int8_ms", "int8_ms_q1", "int8_ms_q3", "ratio", "note"), "")  # fmt: skip
    measured = {"slot_layers": 9, "bits": 6, "int8": 0, "on_disk": 1, "float": 2, "why_float": "ConvTranspose2d has no bit kernel",
                "largest_difference": 2.5e-7, "ms": 0.2, "ms_q1": 0.19, "ms_q3": 0.21, "int8_peer": "ort-int8", "int8_ms": 0.3,
                "int8_ms_q1": 0.29, "int8_ms_q3": 0.31, "ratio": 1.5} if form else {}  # fmt: skip
    return {"architecture": name, "recipe": "w1a1", "form": form} | blank | measured | MACHINE | more


def test_few_levels(put: Any) -> None:
    from results_l_dnq import l_dnq, sentences  # pyright: ignore[reportMissingImports]

    assert l_dnq() == ""
    facts = {
        "options": "",
        "images": 500,
        "seed": 0,
        "seconds": 3,
        "worst_layer": "",
        "test_images": 10000,
        "file_bytes": 90_000,
        "verdict": "WARN",
    }
    shares = {"float": 0.9097, "ternary rounded": 0.1393, "ternary without H": 0.8, "ternary": 0.8714, "pow2:7": 0.9}
    put("l_dnq.csv", [{"row": name, "accuracy": share} | facts | MACHINE for name, share in shares.items()])
    text = l_dnq()
    assert "| ternary | - | 87.14 | - | 90.0 | WARN | 3 |" in text
    assert (
        "- ternary: 3.8 points below the float net; 73.2 points above ternary rounded; 7.1 points above ternary without H."
        in text
    )
    assert "- pow2:7: 1.0 points below the float net." in text
    assert sentences([]) == []


def test_strangers(put: Any) -> None:
    from results_strangers import strangers  # pyright: ignore[reportMissingImports]

    assert strangers() == ""
    put("strangers.csv", [stranger_row("unet"), stranger_row("swin", "layers", int8_ms="", ratio="", note="ort-int8 unavailable"),
                          stranger_row("crnn", "", note="convert: refused")])  # fmt: skip
    text = strangers()
    assert "- 2 of 3 rows convert: 1 in graph form (50 %), 1 in layer form." in text
    assert "- Of 18 layers with parts 14 are packed, 4 stay float with their reasons." in text
    assert "- Not converted: crnn." in text
    assert (
        "| unet | `w1a1` | graph | 9 | 6 | 0 | 1 | 2: ConvTranspose2d has no bit kernel | 2e-07 | 0.2 (0.19-0.21) "
        "| 0.3 (0.29-0.31) ort-int8 | 1.50 | - |" in text
    )
    assert "| swin | `w1a1` | layers | 9 | 6 | 0 | 1 |" in text and "| - | - | ort-int8 unavailable |" in text
    assert "| crnn | `w1a1` | - |" in text and "convert: refused |" in text


def test_metaquant(put: Any) -> None:
    from results_metaquant import metaquant  # pyright: ignore[reportMissingImports]

    assert metaquant() == ""
    facts = {"epochs": 2, "images": 12800, "lr": 0.001, "test_images": 10000, "seconds": 300} | MACHINE
    factor = {"STE": "", "FC-Grad": 25.5}
    values = {
        ("STE", "sgd"): (0.5, 0.52),
        ("FC-Grad", "sgd"): (0.7, 0.74),
        ("STE", "adam"): (0.8,),
        ("FC-Grad", "adam"): (0.79,),
    }
    put("metaquant.csv", [{"gradient": g, "optimizer": o, "seed": i, "accuracy": v, "factor": factor[g], **facts}
                          for (g, o), each in values.items() for i, v in enumerate(each)])  # fmt: skip
    text = metaquant()
    assert (
        "| sgd | FC-Grad | 70.00 | 74.00 | 72.00 | 2.83 | 25.5, 25.5 | 300 |" in text
        and "| adam | STE | 80.00 | - | 80.00 | - | - | 300 |" in text
    )
    assert (
        "- SGD: FC-Grad is 21.00 points above the straight-through estimator (+20.00 to +22.00 over 2 seeds)." in text
    )
    assert "- Adam: FC-Grad is 1.00 points below the straight-through estimator (-1.00 to -1.00 over 1 seed)." in text
    assert "2 epochs on 12,800 images of CIFAR-10" in text


def test_hybrid(put: Any) -> None:
    from results_hybrid import hybrid  # pyright: ignore[reportMissingImports]

    assert hybrid() == ""
    rows = [
        hybrid_row("plain 1/1", 0.30, 10_000, model="resnet20_plain"), hybrid_row("1/1", 0.40, 20_000),
        hybrid_row("2/2", 0.50, 40_000), hybrid_row("hybrid 2/2", 0.46, 25_000, "layer2.0.conv1 layer3.0.conv1"),
        hybrid_row("random-0", 0.43, 25_000, "layer1.0.conv1"), hybrid_row("random-1", 0.44, 25_000, "layer1.1.conv1"),
    ]  # fmt: skip
    put("hybrid.csv", rows)
    text = hybrid()
    assert (
        "two bits are 10.00 points above all at one. The PCA choice recovers 60 % of that with 25 % of the extra bits"
        in text
    )
    assert "have 43.00 / 44.00 %, the PCA choice 46.00 %: 2.00 points above the best of them." in text
    assert (
        "800 M bit operations for the PCA choice, 900 to 900 M for the random ones. The packed nets take 1.00 to 1.00 times"
        in text
    )
    assert (
        "bench/hybrid.py --data DIR --epochs 8" in text and "cpu a CPU" in text and "random-1: `layer1.1.conv1`" in text
    )
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert (
        cells["1/1"][7] == cells["1/1"][9] == "1.00" and cells["hybrid 2/2"][7] == "0.80" and cells["2/2"][9] == "0.50"
    )
    assert cells["1/1"][10] == "0.25 (0.24-0.26)"
    assert cells["plain 1/1"][7] == cells["plain 1/1"][9] == "-"  # another topology: no ratio to 1/1


def test_selfprune(put: Any, tmp_path: Path) -> None:
    from results_selfprune import selfprune  # pyright: ignore[reportMissingImports]

    assert selfprune() == ""
    blank = dict.fromkeys(("accuracy_recalibrated", "weights", "on_share", "live_units", "hidden_units", "verdict"), "")
    shared = {"seed": 0, "epochs": 15, "images": "all", "seconds": 100, **MACHINE}
    net = {"accuracy_recalibrated": 0.91, "weights": 35_000_000, "on_share": 0.005, "live_units": 9000, "hidden_units": 12_000,
           "verdict": "PASS"}  # fmt: skip
    put("selfprune.csv", [
        {"row": "mnist", "experiment": "a", "accuracy": 0.87, "file_bytes": 4_500_000, **shared, **net},
        {"row": "mnist float", "experiment": "b", "accuracy": 0.98, "file_bytes": 140_000_000, **shared, **blank, "epochs": 4},
    ])  # fmt: skip
    put("selfprune_epochs.csv", [
        {"row": row, "epoch": n, "accuracy": 0.5 + n / 10, "on_share": 0.01 / n if row == "mnist" else ""}
        for row in ("mnist", "mnist float") for n in (1, 2)
    ])  # fmt: skip
    put("selfprune_sweep.csv", [
        {"row": "mnist", "norm": norm, "on": on, "accuracy": 0.9 - on / 200, "preactivation": 0.8, "agreement": 0.7, "digital": 1.0}
        for norm in ("running", "recalibrate", "batch") for on in (0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 10.0, 100.0)
    ])  # fmt: skip
    text = selfprune()
    assert (
        "mnist, 15 epochs: 87.00 % with running, 91.00 % with estimated statistics, 99.50 % of the weights off" in text
    )
    assert "(88 % with over 99 % off were asked: not met with running statistics)" in text
    assert (
        "11.00 points below the float MLP on the same pixels after 4 epochs." in text
        and "running 88.0 to 89.8 %" in text
    )
    assert "| 2 | 70.0 (0.50) | 70.0 |" in text
    epochs, sweep = (tmp_path / f"selfprune-{kind}-mnist.svg" for kind in ("epochs", "sweep"))
    assert f"({epochs.name})" in text and f"({sweep.name})" in text
    assert ">1.00</text>" in epochs.read_text() and ">4</text>" in sweep.read_text()
    drawn = [line for line in sweep.read_text().splitlines() if line.startswith("<polyline")]
    # 0 % at 208, 100 % at 14: 90 % is 33.4, 88 % is 37.3
    assert len(drawn) == 3 and 'points="44.0,33.4 ' in drawn[0] and ' 626.0,37.3"' in drawn[0]


def test_sparsity(put: Any) -> None:
    from results_selfprune import selfprune  # pyright: ignore[reportMissingImports]

    times = {"float": 6.0, "csr": 0.5, "bits": 0.25, "weights": 6.5}
    put("sparsity.csv", [
        {"layer": "784 -> 4000", "on_share": share, "batch": 1, **MACHINE}
        | {f"{k}_{q}ms": v * (scale if k == "csr" else 1) for k, v in times.items() for q in ("", "q1_", "q3_")}
        for share, scale in ((0.001, 1), (0.02, 2))
    ])  # fmt: skip
    text = selfprune()
    assert "sparse CSR, 6.00 to 12.00 times as fast as dense float32" in text
    assert "1-bit weights with float inputs, 0.92 to 0.92 times as fast as dense float32" in text
    assert "(CSR) take 2.00 to 4.00 times as long as bits do" in text


def test_gates(put: Any) -> None:
    from findings import gating  # pyright: ignore[reportMissingImports]

    def row(name: str, accuracy: float, macs: float = 40e6, bops: float = 1e9, fewer: float = 1) -> dict[str, str]:
        facts = {"row": name, "seed": 0, "accuracy": accuracy, "macs": int(macs), "bops": int(bops)}
        return {k: str(v) for k, v in facts.items()} | {"mac_reduction": str(fewer), "bops_reduction": str(fewer)}

    text = " ".join(gating([
        row("dense", 0.85), row("FBS keep 0.5", 0.83, 16e6, fewer=2.5), row("CG original", 0.84, 32e6, fewer=1.25),
        row("static of CG original", 0.845, 31e6), row("PACT 2", 0.80, bops=1e9), row("PACT 3", 0.84, bops=2e9),
        row("PG 3/2", 0.83, bops=1.5e9, fewer=1.3), row("uniform 3", 0.835, bops=1.4e9),
    ]))  # fmt: skip
    assert "FBS keep 0.5: 2.50 times fewer MACs, 2.00 points below the dense net" in text
    assert "1.00 points below its dense net, 0.50 points below a narrower net of 31.00 M MACs (it has 32.00 M)" in text
    assert "1.00 points below PACT 3, 0.50 points below uniform 3, which has 1,400 M" in text
    assert "would have 82.00 %, and it is 1.00 points above that" in text


def test_examples_of_the_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import findings  # pyright: ignore[reportMissingImports]
    import results_chart  # pyright: ignore[reportMissingImports]
    import results_claims  # pyright: ignore[reportMissingImports]
    import results_page  # pyright: ignore[reportMissingImports]
    import results_selfprune  # pyright: ignore[reportMissingImports]
    import results_skip  # pyright: ignore[reportMissingImports]
    import results_strangers  # pyright: ignore[reportMissingImports]

    for module in (results_chart, results_claims, results_skip):
        assert doctest.testmod(module).attempted > 0 and doctest.testmod(module).failed == 0
    assert doctest.testmod(findings).attempted > 5 and doctest.testmod(findings).failed == 0
    assert doctest.testmod(results_selfprune).attempted > 0 and doctest.testmod(results_selfprune).failed == 0
    assert doctest.testmod(results_strangers).attempted > 0 and doctest.testmod(results_strangers).failed == 0
    assert doctest.testmod(results_page).attempted > 0 and doctest.testmod(results_page).failed == 0
    assert sys.modules["findings"].__file__ == str(BENCH / "findings.py")


def gating_row(name: str, accuracy: float, **more: Any) -> dict[str, Any]:
    facts = {"row": name, "model": "resnet20", "width": 1, "gate": "", "epochs": 6, "images": "all", "seed": 0, "accuracy": accuracy,
             "counted_images": 10_000, "macs": 40e6, "dense_macs": 40e6, "mac_reduction": 1, "macs_p5": 40e6, "macs_p50": 40e6,
             "macs_p95": 40e6, "bops": 4e9, "bops_reduction": 1, "gates_on": "", "seconds": 1200}  # fmt: skip
    return facts | MACHINE | more


def test_gating_says_how_each_kind_of_row_was_trained(put: Any) -> None:
    from results_page import gating  # pyright: ignore[reportMissingImports]

    put("gating.csv", [gating_row("float", 0.8), gating_row("dense", 0.85, seconds=900)])
    text = " ".join(gating().split())
    assert "Every row trains" not in text
    for said in (
        '"float" rows are nets trained from scratch with 6 epochs of SGD.',
        "trained like a float row, then for as many epochs again like all other rows.",
        "An epoch of the float net takes 200 s here, more than 60. So 6 epochs were run instead of 10.",
        '"CG post-activated" has 4 splits like "CG original"; its public script has 2.',
        "a point on the straight line between the PACT rows around it, not a trained net.",
    ):
        assert said in text
    put("gating.csv", [gating_row("float", 0.8, seconds=300)])
    assert "An epoch of the float net takes" not in gating()


# -- sentences of README and guides ---------------------------------------------------------------------------------------
ROOT = Path(__file__).parent.parent


def results(name: str) -> list[dict[str, str]]:
    with (ROOT / "docs" / "results" / name).open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def text_of(*parts: str) -> str:
    return " ".join(ROOT.joinpath(*parts).read_text(encoding="utf-8").split())


def test_self_pruning_is_told_as_measured() -> None:
    rows = {r["row"]: r for r in results("selfprune.csv") if r["seed"] == "0"}
    mnist, fashion = (
        (f"{100 * float(rows[n]['accuracy']):.1f} %", f"{100 * float(rows[n]['on_share']):.2f} %")
        for n in ("mnist", "fashion")
    )
    assert rows["mnist"]["epochs"] == rows["fashion"]["epochs"] == "15"
    assert (
        f"{mnist[0]} on MNIST with {mnist[1]} of the weights on, {fashion[0]} on Fashion-MNIST with {fashion[1]}."
        in text_of("README.md")
    )
    guide = text_of("docs", "guides", "self-pruning.md")
    assert (
        f"ends at {mnist[0]} with {mnist[1]} of its weights on, the one on Fashion-MNIST at {fashion[0]} with {fashion[1]}"
        in guide
    )
    for name, (top, on) in {"mnist": mnist, "fashion-mnist": fashion}.items():
        shipped = text_of("src", "bitwright", "experiment", "shipped", f"{name}-selfprune_mlp-selfprune.toml")
        assert f"known: {top} after 15 epochs with {on} of the weights on, one seed" in shipped

    short = {
        "mnist float": "with epochs = 3",
        "fashion float": "with epochs = 3",
        "mnist published": "after 3 of the 60 epochs",
    }
    for row, known in short.items():
        r = rows[row]
        shipped = text_of("src", "bitwright", "experiment", "shipped", f"{r['experiment']}.toml")
        assert r["epochs"] == "3" and f"known: {100 * float(r['accuracy']):.1f} % {known}, one seed" in shipped

    swept = results("selfprune_sweep.csv")

    def at(name: str, norm: str, low: float, high: float) -> list[float]:
        return [
            100 * float(r["accuracy"])
            for r in swept
            if (r["row"], r["norm"]) == (name, norm) and low <= float(r["on"]) <= high
        ]

    spans = [at(name, "recalibrate", 0.5, 4) for name in ("mnist", "fashion")]
    assert (
        "{:.1f} to {:.1f} % on MNIST, {:.1f} to {:.1f} % on Fashion-MNIST".format(
            *(f(s) for s in spans for f in (min, max))
        )
        in guide
    )
    circuit = [at(name, "recalibrate", 100, 100)[0] for name in ("mnist", "fashion")]
    assert "At 100, where all that is left is counting, {:.1f} and {:.1f} %".format(*circuit) in guide
    lost = [at(name, "running", 1, 1)[0] - at(name, "running", 0.5, 0.5)[0] for name in ("mnist", "fashion")]
    assert [round(x) for x in lost] == [4, 9] and "half the value costs four and nine points" in guide


def test_what_pca_won_is_told_as_measured() -> None:
    rows = {r["row"]: r for r in results("hybrid.csv") if r["seed"] == "0"}
    top = {name: 100 * float(r["accuracy"]) for name, r in rows.items()}
    random = [name for name in rows if name.startswith("random")]
    low, chosen, high = (float(rows[n]["storage_bytes"]) for n in ("1/1", "hybrid 2/2", "2/2"))
    gap, won = top["2/2"] - top["1/1"], top["hybrid 2/2"] - top["1/1"]
    guide = text_of("docs", "guides", "mixed-bits.md")
    assert f"two bits everywhere are {gap:.1f} points above one" in guide
    assert (
        f"recover {100 * won / gap:.0f} % of that with {100 * (chosen - low) / (high - low):.0f} % of the extra storage"
        in guide
    )
    ahead = [top[n] - top["hybrid 2/2"] for n in random]
    work = [100 * (int(rows[n]["bops"]) / int(rows["hybrid 2/2"]["bops"]) - 1) for n in random]
    assert (
        f"by {min(ahead):.1f} to {max(ahead):.1f} points, with {min(work):.0f} to {max(work):.0f} % more bit operations"
        in guide
    )
    slower = [100 * (float(rows[n]["ms"]) / float(rows["hybrid 2/2"]["ms"]) - 1) for n in random]
    assert f"operations and {min(slower):.0f} to {max(slower):.0f} % more time" in guide
    assert f"The net that was analyzed had {top['plain 1/1']:.1f} %" in guide
    assert (
        len(random) == 3
        and min(ahead) > 0
        and "less accurate than three random choices with equally many weight bits" in text_of("README.md")
    )
    assert {rows[n]["storage_bytes"] for n in random} == {rows["hybrid 2/2"]["storage_bytes"]}
    assert {r["epochs"] for r in rows.values()} == {"8"}


def test_the_page_and_its_pictures_are_what_the_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import results_page  # pyright: ignore[reportMissingImports]

    folder = ROOT / "docs" / "results"
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
    drawn: dict[str, str] = {}

    def keep(path: Path, text: str, **options: Any) -> int:
        drawn[path.name] = text
        return len(text)

    with monkeypatch.context() as inside:
        inside.setattr(Path, "write_text", keep)
        text = results_page.page()
    assert text == (folder / "README.md").read_text(encoding="utf-8")
    assert drawn == before, "python bench/results_page.py"


def test_readme_says_what_the_index_of_claims_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from results_claims import claims  # pyright: ignore[reportMissingImports]

    found = claims()
    assert len(found) > 25
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    page = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    for claim in found:
        missing = [n for n in claim.number.replace(" against ", ", ").split(", ") if n not in said]
        assert not missing, (claim.what, missing)
        assert f"\n## {claim.section}\n" in page or f"\n### {claim.section}\n" in page
        assert (BENCH / claim.command.split()[0]).is_file()


def test_docs_ask_nothing_of_the_network() -> None:
    """The theme fetches a script where a page has a mermaid chart: so there is none, and none is set up."""
    texts = [ROOT / "mkdocs.yml", *(ROOT / "docs").rglob("*.md"), *BENCH.glob("*.py"), ROOT / "README.md"]
    assert [path.name for path in texts if "mermaid" in path.read_text(encoding="utf-8")] == []
