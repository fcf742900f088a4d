"""The report's laws: equal numbers everywhere, no invented ones, no way for a name to become markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import sys
import zlib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitwright import numbers, reporting
from bitwright.cli.run import run as command
from bitwright.errors import InputError
from bitwright.reporting import images, page
from bitwright.reporting.gaps import gaps
from bitwright.reporting.load import HASHED, load_run
from bitwright.reporting.page import commands, html
from bitwright.reporting.svg.scales import linear_ticks, log_ticks
from bitwright.reporting.verdict import findings, verdict
from bitwright.runs.folder import Run
from reporting_example import CLASSES, HOSTILE, bench_dict, example_run

FILES = [
    "metrics.csv", "health.csv", "state.json", "predictions.csv", "worst.safetensors", "classes.json", "convert.json",
    "layers.csv", "bench.json", "results.csv", "machine.json", "command.txt", "model.safetensors", "packed.safetensors",
]  # fmt: skip


class Page(HTMLParser):
    """Text by element id, the elements themselves, and what a browser would load or run."""

    VOID = {"meta", "img", "br", "circle", "path", "rect"}

    def __init__(self, text: str) -> None:
        super().__init__()
        text = text.replace("\xa0", " ")  # between a number and its unit
        self.text, self.tags, self.by_id, self._open = text, [], {}, []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1][0] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            if name:
                self.by_id[name] = self.by_id.get(name, "") + " " + data.strip()

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.by_id["data"])


def page_of(run: Run, **options: Any) -> Page:
    return Page(page.html(load_run(run.path), **options))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return example_run(tmp_path_factory.mktemp("report") / "mynet")


def test_tiles_table_csv_and_json_say_the_same(full: Run) -> None:
    found, rows = page_of(full), full.read_csv("layers.csv")
    head, totals, columns = found.data["head"], found.data["layer_totals"], found.data["layers"]["columns"]
    for key, write in (
        ("bytes_after", numbers.kb),
        ("bytes_before", numbers.kb),
        ("ms_after", numbers.ms),
        ("ms_before", numbers.ms),
    ):
        total = sum(float(row[key]) for row in rows)
        assert totals[key] == pytest.approx(total, rel=1e-12)
        assert sum(row[columns.index(key)] for row in found.data["layers"]["rows"]) == pytest.approx(total)
        assert f" {write(total)}" in found.by_id["total-layers"]
    results = {row["net"]: row for row in full.read_csv("results.csv")}
    assert head["accuracy"] == float(results["bitwright"]["accuracy"]) == full.read_json("convert.json")["accuracy"]
    assert f"{numbers.percent(head['accuracy'])} %" in found.by_id["tile-accuracy"]
    assert head["file_bytes"] == full.read_json("convert.json")["file_bytes"]
    assert head["latency_ms"] == full.read_json("bench.json")["rows"][0]["latency_ms"]
    for tile, text in (("tile-size", numbers.kb(head["file_bytes"])), ("tile-time", numbers.ms(head["latency_ms"]))):
        assert f" {text} " in found.by_id[tile]
        assert f" {text}" in found.by_id["total-net"]
    assert numbers.kb(totals["bytes_after"]) in found.by_id["tile-size"]
    assert numbers.ratio(head["float_bytes"] / head["file_bytes"]) in found.by_id["tile-size"]
    assert "9,996 of 9,999" in found.by_id["tile-same"]


def test_strips_sum_to_all_and_lead_to_rows(full: Run) -> None:
    text = page_of(full).text
    strips = re.findall(r'<div class="strip(?: many)?">(.*?)</div>', text, re.S)
    assert len(strips) == 3
    for strip in strips:
        shares = [float(value) for value in re.findall(r"flex:([\d.]+)", strip)]
        assert len(shares) == 8 and sum(shares) == pytest.approx(100, abs=0.01)
        assert all(f'id="{name}"' in text for name in re.findall(r'href="#([^"]+)"', strip))


def test_confusions_equal_the_predictions(full: Run) -> None:
    found, rows = page_of(full).data["errors"], full.read_csv("predictions.csv")
    assert found["right"] == sum(row["true"] == row["said"] for row in rows)
    assert sum(n for *_, n in found["counts"]) == found["images"] == len(rows)


def test_hostile_names_stay_text(full: Run) -> None:
    found = page_of(full)
    assert HOSTILE in CLASSES and HOSTILE in found.by_id["layers"] and HOSTILE in found.by_id["errors"]
    assert "<script>alert" not in found.text
    scripts = [attrs for tag, attrs in found.tags if tag == "script"]
    assert [s.get("type") for s in scripts] == ["application/json", None]
    assert not [a for _, attrs in found.tags for a in attrs if a.startswith("on")]
    names = found.data["layers"]["rows"]
    assert HOSTILE in [row[0] for row in names]


def test_nothing_comes_from_outside_and_only_our_script_may_run(full: Run) -> None:
    found = page_of(full)
    assert "://" not in found.text and "http" not in found.text.replace("http-equiv", "")
    assert all(attrs["src"].startswith("data:image/png;base64,") for _, attrs in found.tags if attrs.get("src"))
    beside = set(HASHED)  # files of the run, in the same folder
    assert all(attrs["href"].startswith("#") or attrs["href"] in beside for _, attrs in found.tags if attrs.get("href"))
    assert not [tag for tag, _ in found.tags if tag in ("link", "iframe", "object", "base", "form")]
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv"))
    script = found.text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_exported_files_are_linked_with_their_sizes(full: Run) -> None:
    for name in ("packed.onnx", "packed.c", "packed.h", "packed.v"):
        full.file(name).write_bytes(b"x" * 1234)
    try:
        text = page_of(full).text
    finally:
        for name in ("packed.onnx", "packed.c", "packed.h", "packed.v"):
            full.file(name).unlink()
    for name in ("packed.onnx", "packed.c", "packed.h", "packed.v"):
        assert re.search(rf'<a href="{name}">{name}</a></dt><dd>1.234 bytes', text)
    assert f"bitwright export c {full.path}-again" in text and f"bitwright export circuit {full.path}-again" in text


def test_files_exported_elsewhere_are_linked_too(full: Run, tmp_path: Path) -> None:
    from bitwright.reporting.sections.exports import digest
    from bitwright.runs.result_tables import Export

    outside, gone = full.path.parent / "net file.onnx", "packed.c"
    outside.write_bytes(b"x" * 4321)
    now = {"source": "experiment.toml", "digest": digest(full.file("experiment.toml"))}
    full.write(
        Export,
        [
            {
                "form": "qonnx",
                "path": "../net file.onnx",
                "bytes": 4321,
                "check": "16 samples: equal to the bit",
                **now,
            },
            {"form": "c", "path": gone, "bytes": 9, "check": "8 samples", **now, "digest": "0" * 16},
        ],
    )
    try:
        found = page_of(full)
    finally:
        full.file("exports.csv").unlink()
        outside.unlink()
    text = re.sub(r"\s", " ", found.text)
    assert '<a href="../net%20file.onnx">../net file.onnx</a></th><td>qonnx</td><td>4' in text
    assert "16 samples: equal to the bit</td>" in text and "gone</td><td>8 samples; of an earlier net" in text
    assert f"bitwright export qonnx {full.path}-again" in text
    assert "Not exported to another program." in page_of(full).text


def test_accessible_without_script_or_color(full: Run) -> None:
    found = page_of(full)
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert all(attrs.get("scope") for tag, attrs in found.tags if tag == "th")
    assert all(attrs.get("alt") for tag, attrs in found.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in found.tags if attrs.get("role") == "img")
    links = {a["href"] for t, a in found.tags if t == "a"} - set(HASHED)
    assert all(f'id="{str(link)[1:]}"' in found.text for link in links)
    assert len(re.findall(r"<svg viewBox=\"0 0 400", found.text)) == 4
    assert found.text.count(" as a table</summary>") == 6


@pytest.mark.parametrize("name", FILES)
def test_each_file_may_be_missing(tmp_path: Path, full: Run, name: str) -> None:
    import shutil

    run = Run(shutil.copytree(full.path, tmp_path / "run"))
    run.file(name).unlink()
    found = page_of(run)
    visible = re.sub(r"<script.*?</script>|<style.*?</style>", "", found.text, flags=re.S)
    assert not re.search(r">\s*(None|nan|inf)\b", visible)
    for gap in gaps(load_run(run.path)).values():
        assert gap.why in found.text and page.environment().from_string("{{ c }}").render(c=gap.command) in found.text


def test_an_empty_run_has_no_number_and_says_what_to_type(tmp_path: Path) -> None:
    run = Run(tmp_path / "my run")
    run.path.mkdir()
    run.write_text("experiment.toml", "seed = 0\n")
    found = page_of(run)
    assert "NOT CONVERTED" in found.text and "<svg" not in found.by_id.get("worth", "")
    for name in ("worth", "speed", "layers", "training", "weights", "errors"):
        assert f"{tmp_path.as_posix()}/my run" in found.by_id[name] and "bitwright " in found.by_id[name]
    assert "bitwright convert '" in found.by_id["layers"]
    assert not re.search(r"\d", found.by_id["tile-accuracy"] + found.by_id["tile-size"] + found.by_id["tile-time"])


@pytest.mark.parametrize(("layers", "classes"), [(0, 10), (1, 10), (200, 10), (8, 100)])
def test_any_size_fits(tmp_path: Path, layers: int, classes: int) -> None:
    run = example_run(tmp_path / "run", layers, classes=[f"class {i}" for i in range(classes)])
    found = page_of(run)
    assert len(found.text.encode()) < 500_000
    assert found.text.count('id="layer-') == layers + (layers > 0)  # and the table's own id
    assert ('class="cm"' in found.text) == (classes == 10)
    if classes == 100:
        assert "The most confused pairs of 100 classes" in found.by_id["errors"]


@pytest.mark.parametrize(
    ("status", "ours", "shift", "expected"),
    [
        (
            "PASS",
            0.888,
            0.0,
            "is 37.3x smaller and 3.8x faster than the fastest program here, ort-int8, for 2.2 points of accuracy",
        ),
        ("WARN", 6.0, 0.0, "is 37.3x smaller but slower than the fastest program here, ort-int8 (0.6x)"),
        ("PASS", 3.33, 0.0, "as fast as the fastest program here, ort-int8 (1.0x)"),
        ("PASS", 0.888, 0.0218, ", at the same accuracy"),
        ("PASS", 0.888, 0.0228, ", with 0.1 points more accuracy"),
        ("REFUSE", 0.888, 0.0, "was not packed: 20.0x smaller"),
    ],
)
def test_the_headline_follows_the_numbers(
    tmp_path: Path, status: str, ours: float, shift: float, expected: str
) -> None:
    run = example_run(tmp_path / "mynet", status=status, shift=shift)
    run.write_json("bench.json", bench_dict(ours))
    said = verdict(load_run(run.path))
    assert said.word == status and expected in said.sentence


def test_without_an_int8_peer_the_claim_says_so(tmp_path: Path) -> None:
    run = example_run(tmp_path / "mynet")
    table = bench_dict()
    run.write_json("bench.json", table | {"rows": [r for r in table["rows"] if r["precision"] != "int8"]})
    said = verdict(load_run(run.path)).sentence
    assert "6.2x faster than the fastest program here, torch-bf16" in said and said.endswith(
        "no int8 program was measured"
    )
    run.write_json("bench.json", table | {"rows": table["rows"][:1]})
    assert "no other program was measured beside it" in verdict(load_run(run.path)).sentence


def test_no_accuracy_is_compared_with_a_float_net_that_guesses(tmp_path: Path) -> None:
    run = example_run(tmp_path / "mynet")
    rows = run.read_csv("results.csv")
    run.write_csv("results.csv", [r | {"accuracy": "0.101"} if r["net"] == "float" else r for r in rows])
    found = load_run(run.path)
    assert found.float_guesses and "its float net only guesses" in verdict(found).sentence
    page = Page(html(found)).text
    assert "float 10.1 %, which only guesses" in page and "points of accuracy" not in verdict(found).sentence


def test_a_number_and_its_unit_stay_on_one_line(full: Run) -> None:
    text = re.sub(r"(?s)<(script|style|pre|code)\b.*?</\1>", "", html(load_run(full.path)))
    assert "\xa0ms" in text and "\xa0kB" in text and "\xa0%" in text and "\xa0M" in text
    assert re.findall(r"\d(?:</b>)? (?:ms|kB|%|M\b|points)", text) == []


def test_what_is_missing_is_named_once_and_the_runtime_of_our_row_too(tmp_path: Path) -> None:
    run = example_run(tmp_path / "mynet")
    table = run.read_json("bench.json")
    lost = [
        {"name": f"openvino-{p}", "precision": p, "note": "unavailable: pip install openvino"} for p in ("int8", "fp32")
    ]
    ours = table["rows"][0] | {"note": "onnxruntime; torch 0.999"}
    run.write_json("bench.json", table | {"rows": [ours, *table["rows"][1:], *lost]})
    found = Page(html(load_run(run.path)))
    assert "openvino-int8, openvino-fp32 not measured: pip install openvino." in found.text
    assert found.text.count("pip install openvino.") == 1
    assert "in onnxruntime" in found.by_id["tile-time"] and "Ours ran in onnxruntime, the faster of two." in found.text


def test_procedures_have_a_table_with_the_columns_of_their_report(tmp_path: Path) -> None:
    run = example_run(tmp_path / "mynet")
    assert 'id="procedures"' not in html(load_run(run.path))
    rows = [{"layer": HOSTILE, "kept": 0.12345, "rounds": [3, 4], "values": 1200}]
    done = {"stage": 1, "procedure": "mine", "samples": 640, "rows": rows, "recipe": "[[rule]]"}
    only = {"stage": None, "procedure": "hybrid", "recipe": ""}
    run.write_json("procedures.json", {"procedures": [done, only]})
    found = Page(html(load_run(run.path)))
    text = found.by_id["procedures"]
    assert text.count("It left no rows about single layers.") == 1
    assert "mine, before stage 1" in text and "hybrid, by compress" in text and "640 training images" in text
    assert "0.123" in text and "3, 4" in text and "1,200" in text and HOSTILE not in found.text
    assert json.loads(found.by_id["data"])["procedures"][0]["rows"] == rows


def test_reproduce_begins_with_the_experiment_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = example_run(Path("my net"))
    given = commands(load_run(run.path))
    assert given[1].startswith("# this run was made by: bitwright train digits-resnet20-bwn")
    assert given[2] == "bitwright train 'my net/experiment.toml' --out 'my net-again'"
    assert all("'my net-again'" in line for line in given[3:]) and given[3:]


def test_every_damage_of_a_runs_files_is_one_line(tmp_path: Path) -> None:
    """A few of many thousand mutants: what they have in common is what went wrong once."""
    damage = {
        "predictions.csv": ["index,true,said,confidence\n0,30000000,1,0.5\n", "index,true\n0\n", "a,b\n1,2,3\n"],
        "convert.json": ['{"images": 1' + "0" * 400 + "}", "[" * 100_000, "[1]", '{"file_bytes": ' + "1" * 5000 + "}"],
        "machine.json": ['{"threads": ' + "1" * 5000 + "}"],
        "experiment.toml": ["seed = " + "1" * 5000, "a = " + "[" * 5000, "seed ="],
        "results.csv": ["net,bytes\nfloat,x\n", 'net\n"'],
    }
    run = example_run(tmp_path / "run")
    for name, texts in damage.items():
        whole = run.file(name).read_bytes()
        for text in texts:
            run.file(name).write_text(text)
            with pytest.raises(InputError) as error:
                html(load_run(run.path))
            assert "\n" not in str(error.value) and name.partition(".")[0] in str(error.value), (name, text[:40])
        run.file(name).write_bytes(whole)
    for cells in ("bitwright,w1,0.5,10,1e308,1,1e308", "bitwright,w1,0.5,10,1" + "0" * 400 + ",1,-1e308"):
        run.write_text("results.csv", f"net,precision,accuracy,images,bytes,batch,latency_ms\n{cells}\n")
        html(load_run(run.path))
    run.file("bench.json").unlink()
    assert "speed against others is not measured" in verdict(load_run(run.path)).sentence


def test_findings_come_from_rules(tmp_path: Path, full: Run) -> None:
    use, gain, watch = findings(load_run(full.path))
    assert "9,996 of 9,999 answers equal" in str(use) and "no program measured here is faster" in str(use)
    assert gain.name == "stem" and "25.9 % of the layers' time" in gain.after
    assert "3 of 9,999 answers changed" in str(watch)
    run = example_run(tmp_path / "run")
    run.write_json("convert.json", run.read_json("convert.json") | {"same": 9999, "disagreements": []})
    watch = findings(load_run(run.path))[-1]
    assert len(watch.name) == 60 and "still flipped" in watch.after
    run.file("health.csv").unlink()
    run.write_json("state.json", {})
    assert [f.label for f in findings(load_run(run.path))] == ["Use it", "Next gain"]


def test_the_first_image_of_a_png_comes_back(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    data = images.png(image)
    size = struct.unpack(">I", data[33:37])[0]
    assert data[37:41] == b"IDAT" and struct.unpack(">II", data[16:24]) == (7, 5)
    raw = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(5, 1 + 7 * 3)
    assert not raw[:, 0].any() and np.array_equal(raw[:, 1:].reshape(5, 7, 3), image.transpose(1, 2, 0))
    assert images.shrunk(np.zeros((1, 200, 130), np.uint8)).shape == (1, 50, 32)


def test_ticks_are_round_and_within() -> None:
    rng = np.random.default_rng(0)
    for low, span in zip(rng.uniform(0, 100, 200), rng.uniform(0.01, 50, 200), strict=True):
        ticks = linear_ticks(low, low + span)
        assert 1 <= len(ticks) <= 6 and all(low - 1e-6 <= t <= low + span + 1e-6 for t in ticks)
        assert len(log_ticks(0.01 + low, (0.01 + low) * (1 + span))) >= 2


def test_what_convert_says_of_form_outputs_and_doubts_is_on_the_page(tmp_path: Path) -> None:
    run = example_run(tmp_path / "run")
    plain = page_of(run).by_id["layers"]
    assert "output by output" not in plain and "Look closer" not in plain, "an older run does not say"
    proof = {
        "name": "[1]",
        "kind": "values",
        "images": 9999,
        "same": 9990,
        "largest": 2e-3,
        "bound": 5e-6,
        "answers": {},
    }
    more = {
        "form": "layers", "form_why": "forward branches on a value", "lost": 3, "classes": 1, "untimed": "it takes two inputs",
        "blind": "the trained net gives one class for all 9,999 images", "outputs": [proof, {"name": "[0]", "kind": "classes",
        "images": 9999, "same": 9999, "largest": 0.0, "bound": 0.0, "answers": {"3": 9000, "4": 999}}],
        "beyond": [{"where": "input of fc", "difference": 0.25, "bound": 1e-6, "image": 17}],
    }  # fmt: skip
    run.write_json("convert.json", run.read_json("convert.json") | more)
    found = page_of(run)
    text = " ".join(found.by_id["layers"].split())
    for said in (
        "The packed layers stand in the model's own code, which is needed to run it: forward branches on a value. At most 3 "
        "fusions are lost by that.",
        "The trained net gives one class for the 9,999 images that were compared.",
        "Layers were not timed: it takes two inputs.",
        "Equal answers prove little here: the trained net gives one class for all 9,999 images.",
        "input of fc, image 17: off by 0.25, and rounding explains 1e-06.",
        "[1] values 9,990 9,999 2e-03 5e-06 -",
        "[0] classes 9,999 9,999 0 0 2",
    ):
        assert said in text, said
    assert found.data["conversion"]["outputs"][0]["bound"] == 5e-6 and found.data["conversion"]["lost"] == 3
    run.write_json("convert.json", run.read_json("convert.json") | {"form": "graph", "classes": 10, "blind": ""})
    text = page_of(run).by_id["layers"]
    assert "The packed net is one graph" in text and "gives 10 different classes" in text and "prove little" not in text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.csv", "stage,epoch,loss\n0,0,abc\n", "metrics.csv row 1: loss is 'abc'"),
        ("predictions.csv", "index,true,said\n0,,1\n", "predictions.csv row 1: true is missing"),
        ("convert.json", '{"disagreements": [3]}', "disagreements is not a list of objects"),
        ("model.safetensors", "no tensors", "cannot be read"),
        ("experiment.toml", "seed = ", "experiment.toml is damaged"),
    ],
)
def test_damage_is_one_line_with_its_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    run = example_run(tmp_path / "run", 3)
    run.file(name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(said)) as error:
        load_run(run.path)
    assert "\n" not in str(error.value)


def test_objects_give_the_same_page(tmp_path: Path) -> None:
    import torch

    import bitwright as bw
    from bitwright.measure.bench import measure

    net = torch.nn.Sequential(bw.nn.Linear(64, 64, w="bwn", x="sign"), torch.nn.Linear(64, 10)).eval()
    x = torch.randn(4, 64)
    converted = bw.convert(net, x)
    table = measure(lambda: net(x), [], shape=(4, 64), rounds=1)
    written = reporting.report({"my <b>net": converted, "speed": table, "cost": bw.cost(net, x)}, tmp_path / "a.html")
    found = Page(written.read_text(encoding="utf-8"))
    assert "my &lt;b&gt;net" in found.text and found.data["layer_totals"]["macs"] == 64 * 64 + 64 * 10
    assert found.data["layer_totals"]["bytes_after"] == converted.report.bytes_after
    assert "bitwright train digits" in found.by_id["training"]
    assert "counted, not packed" in reporting.report(bw.cost(net, x), tmp_path / "b.html").read_text(encoding="utf-8")
    for wrong, said in (([table, table], "two BenchTables"), (3, "got int"), ([], "got nothing")):
        with pytest.raises(InputError, match=said):
            reporting.report(wrong, tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()


def test_images_without_predictions_of_them_are_left_out(tmp_path: Path) -> None:
    run = example_run(tmp_path / "run", 3)
    save_file({"images": np.zeros((1, 1, 4, 4), np.uint8), "index": np.array([10**6])}, run.file("worst.safetensors"))
    found = load_run(run.path)["errors"]
    assert found is not None and found.mistakes == ()


def test_the_command_writes_into_the_run_and_spares_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example_run(tmp_path / "runs/mynet")
    for _ in range(2):  # the report of a run may be written again
        assert command(["report", "runs/mynet"]) == 0
    said = capsys.readouterr()
    assert "report: runs/mynet/report.html  (" in said.out and "PASS  mynet is 37.3x smaller" in said.out
    other = tmp_path / "mine.html"
    other.write_text("mine", encoding="utf-8")
    assert command(["report", "runs/mynet", "-o", "mine.html"]) == 2
    assert "--overwrite" in capsys.readouterr().err and other.read_text(encoding="utf-8") == "mine"
    assert command(["report", "runs/mynet", "-o", "mine.html", "--overwrite"]) == 0
    assert other.read_text(encoding="utf-8").startswith("<!doctype html>")
    (tmp_path / "runs/mynet/bench.json").unlink()
    assert command(["report", "runs/mynet", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["next"] == ["bitwright bench runs/mynet"]
    for wrong in (["nowhere"], ["runs/mynet", "--format", "pdf"], ["runs/mynet", "runs/mynet"], ["runs"]):
        assert command(["report", *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_plotly_is_asked_for_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = example_run(tmp_path / "mynet", 3)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert command(["report", str(run.path), "--interactive"]) == 2
    assert "pip install 'bitwright[interactive]'" in capsys.readouterr().err
    assert not run.has("report.html")


def test_interactive_pages_carry_their_figures(full: Run) -> None:
    pytest.importorskip("plotly")
    text = page.html(load_run(full.path), interactive=True)
    assert 3e6 < len(text.encode()) < 6e6
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert list(figures) == ["plot-size", "plot-time", "plot-weights"]
    assert all(f'id="{name}"' in text for name in figures)
    policy = re.search(r"script-src ([^;]+);", text)
    assert policy and policy[1].count("sha256-") == 2


@pytest.mark.slow
def test_a_real_run_from_training_to_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "real")
    short = ["stage.0.epochs=1", "stage.1.epochs=1", "data.limit=300"]
    assert command(["train", "digits-mlp-dorefa-w2a2", *short, "--out", folder]) == 0
    assert command(["convert", folder]) in (0, 1)
    assert command(["bench", folder, "--rounds", "2", "--against", "torch-fp32"]) in (0, 1)
    assert command(["report", folder]) == 0
    capsys.readouterr()
    run = Run(folder)
    found = Page(run.read_text("report.html"))
    results = {row["net"]: row for row in run.read_csv("results.csv")}
    assert found.data["head"]["float_accuracy"] == float(results["float"]["accuracy"])
    assert found.data["head"]["trained_accuracy"] == float(results["trained"]["accuracy"])
    errors = found.data["errors"]
    assert errors["right"] / errors["images"] == pytest.approx(found.data["head"]["trained_accuracy"])
    rows = run.read_csv("layers.csv")
    assert len(found.data["layers"]["rows"]) == len(rows) > 1
    assert found.data["layer_totals"]["bytes_after"] == sum(float(row["bytes_after"]) for row in rows)
    assert {row["layer"] for row in run.read_csv("health.csv")} == set(found.data["training"]["health"]["layers"])
