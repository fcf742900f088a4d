"""1-bit layers beside other programs for 1-bit nets: Larq Compute Engine and bnn-lab, each in an environment of its own.

    python bench/binary_peers.py [--envs DIR] [--python python3.11] [--rounds 15]

Makes DIR/NAME with `python -m venv` and pip where it is not there yet (about 2 GB in all), runs the scripts of `bench/peers/` in them,
and asks them and our packed nets in turn for slices of about 6 ms, one thread, CPU time. Larq's wheels are for CPython 3.10 and 3.11.
A program that cannot be installed or cannot run a case is a row that says why. Rows go to docs/results/binary_peers.csv.

A convolution's case is a chain of four layers (sign, 3x3, BatchNorm), floats in and out, in one call of each program; its row has the time
of one layer. Ours pads with exact zeros, Larq's with +1. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitwright as bw
from bitwright.measure.machine import machine
from bitwright.timing import Timing, summarize
from methods import ROOT, write

OUT = ROOT / "docs" / "results" / "binary_peers.csv"
SCRIPTS = Path(__file__).resolve().parent / "peers"
REQUIREMENTS = {
    "larq_engine": [
        "larq-compute-engine==0.16.0",
        "larq==0.14.0",
        "tensorflow-cpu==2.16.2",
        "tf_keras==2.16.0",
        "numpy<2",
    ],
    "bnn_lab": ["bnn-lab==1.0.0"],
}
SETTINGS = {"OMP_NUM_THREADS": "1", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
LAYERS = 4
SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7)]
MATRICES = [(9216, 4096, 1), (4096, 4096, 1), (4096, 4096, 64)]
CASES: dict[str, dict[str, Any]] = {
    f"conv {c}x{s}x{s}": {"kind": "convolutions", "channels": c, "size": s, "batch": 1, "layers": LAYERS} for c, s in SHAPES
} | {
    f"linear {i}x{o} batch {n}": {"kind": "linear", "inputs": i, "outputs": o, "batch": n} for i, o, n in MATRICES
}  # fmt: skip
Slice = Callable[[int], float]  # calls -> seconds per call; 0 -> how many calls fill a slice


def environment(name: str, folder: Path, python: str) -> tuple[Path | None, str]:
    """The interpreter of an environment, made where it is missing; or why there is none."""
    home = folder / name
    interpreter, ready = home / "bin" / "python", home / "ready"
    if not ready.is_file():
        shutil.rmtree(home, ignore_errors=True)
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]]
        for command in ([python, "-m", "venv", str(home)], pip):
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except OSError as error:
                return None, f"{command[0]}: {error.strerror}"
            if done.returncode:
                last = next(iter(reversed(done.stderr.strip().splitlines())), "no output")
                return None, f"{' '.join(command[1:])}: {last[:200]}"
        ready.touch()
    return interpreter, ""


class Program:
    """Another program, asked through its standard input and output."""

    def __init__(self, name: str, interpreter: Path, log: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "BITWRIGHT"))}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(interpreter), str(SCRIPTS / f"{name}.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True, env={**kept, **SETTINGS},
            )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return {"error": "it ended; its own words are in the log beside its environment"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "it ended; its own words are in the log beside its environment"}

    def slice(self, variant: str) -> Slice:
        return lambda calls: self.ask(slice=variant, calls=calls)

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def ours(case: dict[str, Any]) -> Slice:
    """The same layers packed: W1A1, in the layout that each program prefers."""
    torch.manual_seed(0)
    if case["kind"] == "linear":
        net: nn.Module = nn.Sequential(bw.nn.Linear(case["inputs"], case["outputs"], bias=False, w="bwn", x="sign"))
        x = torch.randn(case["batch"], case["inputs"])
    else:
        c = case["channels"]
        layers = [
            m
            for _ in range(case["layers"])
            for m in (bw.nn.Conv2d(c, c, 3, padding=1, bias=False, w="bwn", x="sign"), nn.BatchNorm2d(c))
        ]
        net = nn.Sequential(*layers)
        x = torch.randn(case["batch"], c, case["size"], case["size"]).contiguous(memory_format=torch.channels_last)
    packed = bw.convert(net.eval(), x, threads=1, verify=False).model
    assert packed is not None

    def run(calls: int, seconds: float = 0.006) -> float:
        packed(x)
        start = time.process_time()
        if calls:
            for _ in range(calls):
                packed(x)
            return (time.process_time() - start) / calls
        while time.process_time() - start < seconds:
            packed(x)
            calls += 1
        return calls

    return run


def timed(slices: dict[str, Slice], rounds: int) -> dict[str, Timing]:
    calls = {name: max(1, int(run(0))) for name, run in slices.items()}
    samples: dict[str, list[float]] = {name: [] for name in slices}
    for _ in range(rounds):
        for name, run in slices.items():
            samples[name].append(run(calls[name]))
    return {name: summarize(found, rounds * calls[name]) for name, found in samples.items()}


def rows(case: str, programs: dict[str, Program | str], rounds: int) -> list[dict[str, Any]]:
    spec, missing = CASES[case], {name: why for name, why in programs.items() if isinstance(why, str)}
    slices = {"bitwright": ours(spec)}
    for name, program in programs.items():
        if isinstance(program, str):
            continue
        found = program.ask(case=spec)
        if isinstance(found, dict):
            missing[name] = found["error"]
        else:
            slices |= {f"{name}, {variant}": program.slice(variant) for variant in found}
    with torch.inference_mode():
        timings = timed(slices, rounds)
    share = 1e6 / spec.get("layers", 1)
    mine = timings["bitwright"].median
    made = [
        {"case": case, "program": name, "us": f"{t.median * share:.2f}", "us_q1": f"{t.q1 * share:.2f}",
         "us_q3": f"{t.q3 * share:.2f}", "us_p95": f"{t.p95 * share:.2f}", "runs": t.runs, "ratio": f"{t.median / mine:.3g}", "note": ""}
        for name, t in timings.items()
    ]  # fmt: skip
    return made + [{"case": case, "program": name, "note": f"unavailable: {why}"} for name, why in missing.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "bitwright" / "peers")
    parser.add_argument("--python", default=shutil.which("python3.11") or sys.executable, help="makes the environments")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.envs.mkdir(parents=True, exist_ok=True)
    facts = {k: v for k, v in machine(1).items() if k not in ("onnxruntime", "openvino")} | {
        "rounds": args.rounds,
        "clock": "cpu",
    }
    programs: dict[str, Program | str] = {}
    for name in REQUIREMENTS:
        interpreter, why = environment(name, args.envs, args.python)
        programs[name] = why if interpreter is None else Program(name, interpreter, args.envs / f"{name}.log")
    for name, program in programs.items():
        found = {} if isinstance(program, str) else program.ask(versions=1)
        if "error" in found:
            programs[name] = found["error"]
        else:
            facts |= {f"{name}_{package}": version for package, version in found.items()}
    records: list[dict[str, Any]] = []
    for case in CASES:
        made = rows(case, programs, args.rounds)
        records += [{**row, **facts} for row in made]
        for row in made:
            print(
                f"{case:28} {row['program']:20} {row.get('us', '-'):>10} us {row.get('ratio', ''):>6}  {row['note']}",
                flush=True,
            )
    write(args.out, records)
    for program in programs.values():
        if not isinstance(program, str):
            program.end()


if __name__ == "__main__":
    main()
