"""The command line: exit codes, one-line errors, one JSON object, no torch where none is needed, no escape codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import bitwright as bw
from bitwright.cli import bench as bench_command
from bitwright.cli import model_argument, output, registry
from bitwright.cli import run as run_module
from bitwright.cli.output import Output
from bitwright.errors import InputError

NO_TORCH = [
    ["--version"], ["methods"], ["methods", "bwn"], ["recipes"], ["recipes", "xnor"], ["nonsense"],
]  # fmt: skip


def child(*argv: str, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it, its output piped."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "bitwright"]
    return subprocess.run(
        [*command, *argv], capture_output=True, text=True, env={**os.environ, **env}, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file, its "trained" weights, and files that are none."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "mynet.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Hardtanh(),\n"
        "        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Hardtanh(), nn.AdaptiveAvgPool2d(1),\n"
        "        nn.Flatten(), nn.Linear(32, 10))\n"
        "def number():\n    return 3\n"
        "def broken():\n    raise RuntimeError('no luck')\n"
    )
    (folder / "bad.py").write_text("import not_there_at_all\n")
    torch.manual_seed(0)
    net, _ = model_argument.make_model(f"{folder / 'mynet.py'}:small", "test", (3, 8, 8))
    rules = [{"match": "3", "w": "bwn", "x": "sign"}]
    bw.apply(net, rules, torch.zeros(1, 3, 8, 8))
    bw.save(net, folder / "w.safetensors")
    whole = (folder / "w.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "text.safetensors").write_text("hello")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "huge.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    save_file({"a": torch.zeros(1)}, folder / "foreign.safetensors")
    save_file(
        {"a": torch.zeros(1)}, folder / "hostile.safetensors", {"bitwright": "packed", "format": "1", "graph": "[[]"}
    )
    return folder


# ---- without torch ----


@pytest.mark.parametrize("argv", NO_TORCH, ids=" ".join)
def test_answers_without_importing_torch(argv: list[str]):
    code = (
        "import sys; from bitwright.cli.run import run; code = run(sys.argv[1:]); "
        "print('TORCH' if 'torch' in sys.modules else 'FREE', code, file=sys.stderr)"
    )
    done = child(*argv, code=code)
    assert done.stderr.splitlines()[-1] == ("FREE 2" if argv == ["nonsense"] else "FREE 0"), done.stderr


def test_help_of_every_command_imports_no_torch():
    """One child for all of them: the commands are those of `bitwright --help`, so a new one is asked too."""
    code = (
        "import sys, io, contextlib\n"
        "from bitwright.cli.run import run\n"
        "from bitwright.cli.app import command\n"
        "top = command()\n"
        "calls = [[]] + [[name] for name in top.commands]\n"
        "calls += [[n, m] for n, c in top.commands.items() for m in getattr(c, 'commands', ())]\n"
        "for call in calls:\n"
        "    text = io.StringIO()\n"
        "    with contextlib.redirect_stdout(text):\n"
        "        code = run([*call, '--help'])\n"
        "    heavy = [m for m in ('torch', 'lightning', 'numpy', 'sklearn', 'jinja2') if m in sys.modules]\n"
        "    print(' '.join(call), code, 'Usage:' in text.getvalue(), text.getvalue().isascii(), heavy)\n"
    )
    lines = child(code=code).stdout.splitlines()
    assert len(lines) > 7 and all(line.endswith(" 0 True True []") for line in lines), lines


def test_registry_file_is_what_the_code_says():
    builtin = {n: i for n, i in registry.current().items() if bw.parts()[n] and _shipped(n)}
    assert registry.stored() == builtin, "run: python -m bitwright.cli.registry"


def _shipped(name: str) -> bool:
    """Other tests may have entered parts of their own."""
    from bitwright.parts.registry import part_class

    return part_class(name).__module__.startswith("bitwright.")


def test_recipes_command_lists_what_the_library_lists(call: Any):
    _, out, _ = call("recipes", "--json")
    assert [r["name"] for r in json.loads(out)["recipes"]] == list(bw.recipes())


def test_version_and_help_name_the_exit_codes():
    done = child("--help")
    assert done.returncode == 0 and "130 stopped" in " ".join(done.stdout.split())
    assert child().stdout == done.stdout
    assert child("--version").stdout == f"bitwright {bw.__version__}\n"


# ---- errors ----

PLAN = ["plan", "resnet20", "xnor"]
ERRORS: dict[str, tuple[list[str], str]] = {
    "recipe": (["plan", "resnet20", "xnorr"], "recipe xnorr: no such recipe or file. Nearest: xnor."),
    "recipe text": (["recipes", "xnorr"], "Nearest: xnor."),
    "model": (["plan", "resnet21", "xnor"], "unknown model 'resnet21'. Nearest: resnet"),
    "part": (["methods", "xnorr"], "unknown part 'xnorr'. Nearest: xnor."),
    "slot": (["methods", "--slot", "q"], "Slots: b, g, gate, w, x"),
    "command": (["plam"], "No such command 'plam'"),
    "option": ([*PLAN, "--al"], "No such option: --al"),
    "argument": (["plan", "resnet20"], "a model needs a recipe, e.g. bitwright plan resnet20 xnor"),
    "no argument": (["plan"], "Missing argument 'model'"),
    "convert without a model": (["convert", __file__], "--model resnet20 or --model file.py:fn"),
    "no run": (["convert", "."], "convert .: no experiment.toml in it, so it is not a run"),
    "input": ([*PLAN, "--input", "3,x,32"], "Give positive sizes without the batch"),
    "input zero": ([*PLAN, "--input", "3,0,32"], "Give positive sizes"),
    "input empty": ([*PLAN, "--input", ""], "Give positive sizes"),
    "input negative": ([*PLAN, "--input=-3,32,32"], "Give positive sizes"),
    "input huge": ([*PLAN, "--input", "3,99999,99999"], "at most"),
    "input flat": ([*PLAN, "--input", "768"], "not a square image"),
    "classes": ([*PLAN, "--classes", "0"], "--classes"),
    "batch": (["bench", "conv:32x4", "--batch", "0"], "--batch"),
    "conv": (["bench", "conv:32"], "Give conv:CHANNELSxSIDE"),
    "conv even": (["bench", "conv:32x8x2"], "possible: an odd number"),
    "energy": (["cost", "lenet5", "--energy", "nope"], "nope"),
    "no file": (["convert", "none.safetensors", "--model", "lenet5"], "convert: no file none.safetensors"),
    "no packed file": (["bench", "none.safetensors"], "none.safetensors"),
    "no python file": (["plan", "none.py:f", "xnor", "--input", "3,8,8"], "no file none.py"),
    "no such file, no callable": (["plan", "mynet.py", "xnor"], "plan: no file mynet.py"),
    "no module": (["plan", "not_there_at_all:f", "xnor", "--input", "1,8,8"], "importing not_there_at_all failed"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_use_is_one_line_and_exit_2(name: str, call: Any):
    argv, text = ERRORS[name]
    code, out, err = call(*argv)
    assert code == 2 and out == "" and text in err, err
    assert err.count("\n") == 1 and err.startswith("error: ")
    code, out, err = call(*argv, "--json")
    answer = json.loads(out)
    assert out.count("\n") == 1 and err == "" and answer["exit_code"] == code == 2 and answer["status"] == "error"
    assert set(answer["error"]) >= {"code", "message", "layer", "given", "possible", "try"}
    assert text in answer["error"]["message"] + str(answer["error"]["possible"])


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("mynet.py:smal", "has no 'smal'. Nearest: small."),
        ("mynet.py:number", "gave int, not a torch module"),
        ("mynet.py:broken", "calling broken() failed: RuntimeError: no luck"),
        ("bad.py:x", "importing"),
        ("mynet.py:small", "the model does not take input 4,8,8"),
    ],
)
def test_own_models(target: str, text: str, trained: Path, call: Any):
    code, _, err = call("plan", f"{trained}/{target}", "w1a1", "--input", "4,8,8")
    assert code == 2 and text in err and err.count("\n") == 1


def test_own_model_without_a_shape(trained: Path, call: Any):
    code, _, err = call("cost", f"{trained}/mynet.py:small")
    assert code == 2 and "--input 3,32,32" in err


@pytest.mark.parametrize("name", ["cut", "text", "empty", "huge", "foreign", "hostile"])
@pytest.mark.parametrize("command", ["convert", "bench"])
def test_damaged_and_hostile_files(name: str, command: str, trained: Path, call: Any):
    file = str(trained / f"{name}.safetensors")
    more = ["--model", f"{trained}/mynet.py:small", "--input", "3,8,8"] if command == "convert" else []
    code, out, err = call(command, file, *more)
    assert code == 2 and err.splitlines()[-1].startswith("error: "), err
    assert "Traceback" not in out + err and not (trained / f"{name}.packed.safetensors").exists()


def test_missing_data_set(trained: Path, call: Any, tmp_path: Path):
    argv = [
        "convert",
        str(trained / "w.safetensors"),
        "--model",
        "lenet5",
        "--data",
        "cifar10",
        "--data-root",
        str(tmp_path),
    ]
    code, _, err = call(*argv, "-o", str(tmp_path / "x.safetensors"))
    assert code == 2 and "cifar10" in err and str(tmp_path) in err and err.count("\n") == 1
    code, _, err = call(*argv[:-3], "cifar11", "-o", str(tmp_path / "x.safetensors"))
    assert code == 2 and "cifar11" in err


def test_weights_of_another_model(trained: Path, call: Any, tmp_path: Path):
    code, _, err = call(
        "convert", str(trained / "w.safetensors"), "--model", "lenet5", "-o", str(tmp_path / "x.safetensors")
    )
    assert code == 2 and err.count("error: ") == 1


def test_internal_errors_leave_details_and_no_traceback(call: Any, monkeypatch: pytest.MonkeyPatch):
    def broken(argv: list[str], out: Output) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(run_module, "_dispatch", broken)
    code, out, err = call("plan", "--json")
    answer = json.loads(out)
    assert code == 3 and err == "" and answer["error"]["code"] == "internal"
    details = Path(answer["error"]["details"])
    assert "ZeroDivisionError" in details.read_text() and details.name == "error.txt"
    code, out, err = call("plan")
    assert err.startswith("error: internal error in plan (please report): ZeroDivisionError: first; details: ")
    assert "Traceback" in call("plan", "--debug")[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (bw.InputError("no"), 2), (PermissionError(13, "Permission denied", "f"), 2)],
)
def test_exit_codes_of_exceptions(error: BaseException, code: int, call: Any, monkeypatch: pytest.MonkeyPatch):
    def fail(argv: list[str], out: Output) -> None:
        raise error

    monkeypatch.setattr(run_module, "_dispatch", fail)
    assert call("plan")[0] == code


def test_negative_is_exit_1(call: Any, monkeypatch: pytest.MonkeyPatch):
    from bitwright.errors import Negative

    def no(argv: list[str], out: Output) -> None:
        raise Negative("demo: loss became nan")

    monkeypatch.setattr(run_module, "_dispatch", no)
    assert call("demo")[0] == 1


# ---- commands ----


def test_methods(call: Any):
    code, out, err = call("methods", "--slot", "w")
    assert code == 0 and "bwn" in out and "dorefa_a" not in out and err.startswith("next:   bitwright methods ")
    assert all(len(line) <= 110 for line in out.splitlines())
    code, out, _ = call("methods", "ttq")
    assert code == 0 and 'w = "ttq"' in out and "threshold=0.05" in out


def test_recipe_text_can_be_pasted(call: Any):
    code, out, _ = call("recipes", "xnor")
    assert code == 0 and bw.Recipe.from_toml(out).rules == bw.Recipe.load("xnor").rules


def test_plan(call: Any):
    code, out, err = call(*PLAN)
    assert code == 0 and "18 binary, 2 float" in out and "--all" in out and err.startswith("next:   bitwright ")
    assert len(call(*PLAN, "--all")[1].splitlines()) > len(out.splitlines())
    answer = json.loads(call(*PLAN, "--json", "--input", "1,28,28")[1])
    assert answer["plan"]["input"] == [1, 28, 28] and len(answer["plan"]["rows"]) == 20


def test_plan_ends_as_apply_would(call: Any, tmp_path: Path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[[rule]]\nmatch = "layer*"\nw = "xnor"\nx = "sign"\n')
    code, out, err = call("plan", "resnet20", str(recipe))
    assert code == 2 and out.startswith("layer ") and err.startswith("error: plan resnet20: layer1.0.conv1 and ")
    found = json.loads(call("plan", "resnet20", str(recipe), "--json")[1])
    assert found["error"]["code"] == "sign-after-relu" and found["plan"]["rows"]


def test_cost(call: Any):
    code, out, _ = call("cost", "lenet5", "w1a1")
    assert code == 0 and "total" in out
    assert json.loads(call("cost", "lenet5", "--json")[1])["cost"]["totals"]["macs"] > 0


def test_bench_of_a_convolution(call: Any):
    code, out, _ = call("bench", "conv:32x4", "--rounds", "1", "--against", "torch-fp32")
    assert code == 0 and "in one line: " in out and "input 32x4x4" in out
    answer = json.loads(call("bench", "conv:32x4x1", "--rounds", "1", "--against", "torch-fp32", "--json")[1])
    assert answer["bench"]["rows"][1]["latency_ms"] > 0


@pytest.mark.slow
def test_convert_then_bench(trained: Path, call: Any, tmp_path: Path):
    model, packed = f"{trained}/mynet.py:small", tmp_path / "p.safetensors"
    argv = ["convert", str(trained / "w.safetensors"), "--model", model, "--input", "3,8,8", "-o", str(packed)]
    code, out, err = call(*argv)
    assert code == 0 and packed.is_file(), out + err
    assert out.splitlines()[-1].split()[0] in ("PASS", "WARN") and str(packed) in out.splitlines()[-1]
    assert err.splitlines()[-1].startswith(f"next:   bitwright bench {packed} --model ")
    code, out, err = call(*argv)
    assert code == 2 and "--overwrite" in err
    code, out, err = call(*argv, "--overwrite", "--quiet")
    assert code == 0 and out.count("\n") == 1 and err == ""
    answer = json.loads(call(*argv, "--overwrite", "--json")[1])
    assert answer["status"] in ("PASS", "WARN") and answer["file"]["bytes"] == packed.stat().st_size
    code, out, err = call("bench", str(packed), "--rounds", "1", "--against", "torch-fp32")
    assert code == 0 and "torch-fp32 not measured" in out and "--model" in err
    code, out, _ = call(
        "bench", str(packed), "--model", model, "--rounds", "1", "--against", "torch-fp32", "--batch", "2"
    )
    assert code == 0 and "best fp32" in out
    code, _, err = call("bench", str(packed), "--input", "3,9,9")
    assert code == 2 and "converted for" in err


def test_convert_refuses_with_exit_1_and_writes_nothing(trained: Path, call: Any, tmp_path: Path):
    bw.save(model_argument.make_model(f"{trained}/mynet.py:small", "t", (3, 8, 8))[0], tmp_path / "f.safetensors")
    argv = ["convert", str(tmp_path / "f.safetensors"), "--model", f"{trained}/mynet.py:small", "--input", "3,8,8"]
    code, out, _ = call(*argv)
    assert code == 1 and out.splitlines()[-1].startswith("REFUSE ")
    answer = json.loads(call(*argv, "--json")[1])
    assert answer["status"] == "REFUSE" and answer["exit_code"] == 1 and "file" not in answer
    assert not list(tmp_path.glob("*.packed.*"))


@pytest.mark.slow
def test_bench_of_a_model_with_a_recipe(trained: Path, call: Any, tmp_path: Path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "3"\nw = "bwn"\nx = "sign"\n')
    argv = ["bench", f"{trained}/mynet.py:small", "--input", "3,8,8", "--rounds", "1", "--against", "torch-fp32"]
    code, out, err = call(*argv, "--recipe", str(recipe))
    assert code == 0 and "bitwright" in out and "1 bit" in out and "random weights" in err
    assert call(*argv)[0] == 0


# ---- streams and colors ----


BENCH = ["bench", "conv:32x4", "--rounds", "1", "--against", "torch-fp32"]


@pytest.mark.few("methods", "plam")  # the other two load torch
@pytest.mark.parametrize("argv", [["methods"], PLAN, BENCH, ["plam"]], ids=lambda argv: argv[0])
def test_piped_output_has_no_escape_codes(argv: list[str]):
    done = child(*argv)
    assert "\x1b" not in done.stdout + done.stderr


class Terminal:
    def isatty(self) -> bool:
        return True


def test_who_decides_on_color(monkeypatch: pytest.MonkeyPatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    terminal: Any = Terminal()
    assert Output().colored(terminal) and not Output(color=False).colored(terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert not Output().colored(terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Output().colored(sys.stdout)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output().colored(terminal)


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m bitwright methods --no-color | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_flags_work_anywhere_but_after_two_dashes(call: Any):
    assert json.loads(call("--json", "methods", "bwn")[1])["part"]["name"] == "bwn"
    code, out, err = call("methods", "--quiet")
    assert (code, out, err) == (0, "", "")
    code, out, err = call("methods", "--", "--quiet")
    assert code == 2 and out == "" and "unknown part '--quiet'" in err


@pytest.mark.parametrize("argv", [["--help"], ["plan", "--help"], ["--version"], ["plam"], ["plan"], ["methods", "x"]])
def test_json_is_exactly_one_object(argv: list[str], call: Any):
    code, out, err = call(*argv, "--json")
    answer = json.loads(out)
    assert out.count("\n") == 1 and err == "" and answer["exit_code"] == code
    assert ("error" in answer) == (code != 0) and ("text" in answer) == (code == 0)


def test_what_an_own_model_prints_is_not_in_the_json(call: Any, tmp_path: Path):
    (tmp_path / "loud.py").write_text(
        "from torch import nn\ndef net():\n    print('hello')\n    return nn.Linear(4, 2)\n"
    )
    code, out, err = call("cost", f"{tmp_path}/loud.py:net", "--input", "4", "--json")
    assert code == 0 and json.loads(out)["cost"] and err == "hello\n"


def test_narrow_terminals_lose_columns_in_the_stated_order(call: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = call(*PLAN)[1].splitlines()
    assert all(len(line) <= 60 for line in lines) and "shape" not in lines[0] and "bits" in lines[0]
    assert call(*PLAN, "--plain")[1].splitlines()[0].split()[:3] == ["layer", "kind", "shape"]


def test_ascii_where_the_terminal_knows_no_more():
    done = child("methods", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and done.stdout.isascii() and "bwn" in done.stdout
    assert output.in_ascii("1 \u00b1 2 \u00d7 \u20ac") == "1 +- 2 x ?"


def test_plain_is_what_a_pipe_gets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    out = Output(plain=True)
    assert not out.colored(sys.stdout) and not out.live and out.width == output.PIPE
    assert Output().colored(sys.stdout)


def test_internal_errors_of_a_run_leave_their_details_in_it(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def broken(argv: list[str], out: Output) -> None:
        out.folder = tmp_path
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(run_module, "_dispatch", broken)
    code, _, err = call("convert", "x")
    assert code == 3 and err.endswith(f"details: {tmp_path / 'error.txt'}\n")
    assert "ZeroDivisionError" in (tmp_path / "error.txt").read_text()
    monkeypatch.setattr(run_module, "_dispatch", lambda argv, out: (_ for _ in ()).throw(ZeroDivisionError("oh")))
    assert str(tmp_path) not in call("convert", "x")[2]


# ---- small pieces ----


def test_shapes():
    assert (
        model_argument.parse_shape("1x28x28", "plan") == (1, 28, 28)
        and model_argument.parse_shape(None, "plan") is None
    )
    for text in ("3,,3", "a", "3.5,2", "-1,2", "3,32,32,", "٣,x"):
        with pytest.raises(InputError):
            model_argument.parse_shape(text, "plan")


def test_conv_shapes():
    assert bench_command._conv_shape("conv:64x56") == (64, 56, 3)
    assert bench_command._conv_shape("conv:64x7x1") == (64, 7, 1)


def test_importing_a_model_leaves_the_search_path(trained: Path):
    before = list(sys.path)
    model_argument.make_model(f"{trained}/mynet.py:small", "test", (3, 8, 8))
    assert [p for p in sys.path if p not in before] in ([], [str(trained)])


def test_example_is_the_same_each_time_and_leaves_the_generator():
    state = torch.get_rng_state()
    assert torch.equal(model_argument.example((2, 3)), model_argument.example((2, 3)))
    assert torch.equal(state, torch.get_rng_state())


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]):
    out = Output(as_json=True)
    out.data["x"] = [float("nan"), float("inf"), 1.5, None, True, Path("a")]
    assert out.finish() == 0
    assert json.loads(capsys.readouterr().out)["x"] == [None, None, 1.5, None, True, "a"]


def test_shortening():
    assert output.clip("one two three", 9) == "one..." and len(output.shorten("a" * 30, 11)) == 11
