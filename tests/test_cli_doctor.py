"""`bitwright doctor`: what it says is so, and it notices what is broken."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.cli import doctor
from bitwright.cli.run import run
from bitwright.engine import native
from bitwright.measure import machine

needs_native = pytest.mark.skipif(not native.available(), reason=native.notice())


def ask(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(exit code, whole answer, check name -> check)."""
    capsys.readouterr()
    code = run(["doctor", "--json"])
    answer = json.loads(capsys.readouterr().out)
    return code, answer, {c["name"]: c for c in answer["checks"] if c["name"]}


@needs_native
def test_all_is_well(capsys: pytest.CaptureFixture[str]):
    before = native.isa()
    code, answer, checks = ask(capsys)
    assert code == 0 and answer["status"] == "PASS"
    assert f"{before} in use" in checks["kernels"]["text"]
    assert all(name in checks["proof"]["text"] for name in native.isas())
    assert f"torch uses {torch.get_num_threads()}" in checks["threads"]["text"]
    assert native.isa() == before
    assert run(["doctor"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1].startswith("PASS ") and len(shown.out.splitlines()) <= 40


@needs_native
def test_the_kernels_in_use_stay_in_use():
    before = native.isa()
    try:
        native.force_isa("portable")
        assert [check.state for check in doctor.proof()] == ["ok"] and native.isa() == "portable"
    finally:
        native.force_isa(before)


@needs_native
def test_kernels_that_differ_are_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    real = doctor._packed

    class Off(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + (1e-6 if native.isa() == "portable" else 0)

    def packed(net: torch.nn.Module, x: torch.Tensor, backend: str) -> torch.nn.Module:
        return Off(real(net, x, backend)) if backend == "native" else real(net, x, backend)

    monkeypatch.setattr(doctor, "_packed", packed)
    before = native.isa()
    code, answer, checks = ask(capsys)
    assert code == 1 and answer["status"] == "FAIL" and native.isa() == before
    assert checks["proof"]["state"] == "FAIL" and checks["proof"]["text"].startswith("portable differ")
    assert checks["proof"]["remedy"] in answer["next"]


def test_a_core_that_should_be_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "notice", lambda: "native core not found (here); built without a C++ compiler")
    monkeypatch.delenv("BITWRIGHT_LIBRARY", raising=False)
    monkeypatch.setattr(doctor, "_compiler", lambda: "")
    code, _, checks = ask(capsys)
    assert code == 0 and checks["native core"]["state"] == "no" and "proof" not in checks
    monkeypatch.setattr(doctor, "_compiler", lambda: "g++ 12")
    code, _, checks = ask(capsys)
    assert code == 1 and checks["native core"]["state"] == "FAIL"


def test_missing_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: None if name in ("jinja2", "pillow") else real(name))
    code, _, checks = ask(capsys)
    assert code == 1 and checks["packages"]["remedy"] == "pip install jinja2"
    assert checks["extra data"]["state"] == "no" and "pip install 'bitwright[data]'" in checks["extra data"]["text"]


def test_unused_kernels_say_why(monkeypatch: pytest.MonkeyPatch):
    every = {flag for flags in doctor.FLAGS.values() for flag in flags}
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: every - {"avx512_vnni"})
    found = dict(doctor._unused(["portable", "avx2"]))
    assert found["avx512"] == "this CPU has no avx512_vnni"
    assert found["amx"].startswith("the CPU has it, but")
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: None)  # another system: nothing is claimed
    assert not list(doctor._unused(["portable"]))


def test_data_found_and_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BITWRIGHT_DATA", str(tmp_path))
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "x").write_text("")
    texts = [check.text for check in doctor.data()]
    assert f"{tmp_path}: mnist" in texts[0] and "cifar10" in texts[1] and "bitwright data get" in texts[1]


def test_the_lists_are_those_of_pyproject():
    file = Path(__file__).parent.parent / "pyproject.toml"
    if not file.is_file():
        pytest.skip("no pyproject.toml beside the tests")
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]

    def names(listed: list[str]) -> set[str]:
        return {line.split(">")[0].split("[")[0].strip() for line in listed}

    assert set(doctor.NEEDED) == names(project["dependencies"])
    extras = {k: names(v) for k, v in project["optional-dependencies"].items() if k not in ("test", "all")}
    assert {k: set(v) for k, v in doctor.EXTRAS.items()} == extras
