"""`bitwright doctor`: what works here, what does not and why, on one screen."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bitwright.cli.output import Output

if TYPE_CHECKING:
    from torch import Tensor, nn

NEEDED = (
    "torch", "numpy", "safetensors", "pydantic", "pooch", "typer", "rich", "scikit-learn", "lightning", "torchmetrics",
    "tensorboard", "jinja2", "scipy", "onnx", "onnxscript", "onnxruntime",
)  # fmt: skip
EXTRAS = {
    "data": ("pillow", "lmdb"),
    "interactive": ("plotly",),
    "openvino": ("openvino",),
    "qonnx": ("qonnx",),
    "shrink": ("torch-pruning",),
    "cross": ("ziglang",),
    "docs": ("mkdocs", "mkdocs-material"),
}
# what each kernel set asks of the CPU, as /proc/cpuinfo spells it
FLAGS = {
    "avx2": ("avx2", "fma", "popcnt"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_vpopcntdq"),
    "amx": ("amx_tile", "amx_int8", "avx512_bitalg"),
}
LEAST_FREE = 1e9  # bytes; the largest download needs a third of it


@dataclass(frozen=True)
class Check:
    """One line. state: "ok", "no" (is missing, and is optional), "FAIL" (should work and does not)."""

    name: str
    state: str
    text: str
    remedy: str | None = None


def doctor(ctx: typer.Context) -> None:
    """Say what works here: versions, CPU, kernels, compiler, extras, data, threads, noise, disk; and prove one layer.

    Exit code 1 where something that should work does not.
    """
    out: Output = ctx.obj
    out.head("doctor: looking")
    checks = [check for look in LOOKS for check in look()]
    out.data["checks"] = [asdict(check) for check in checks]
    out.table(("what", "state", "found"), [(c.name, c.state, c.text) for c in checks])
    failed = [c for c in checks if c.state == "FAIL"]
    if failed:
        out.status, out.exit_code = "FAIL", 1
        out.verdict(f"FAIL  {', '.join(c.name for c in failed)}: should work here and does not")
    else:
        out.status = "PASS"
        out.verdict("PASS  everything that should work here works")
    for check in failed:
        if check.remedy:
            out.next(check.remedy, check.name)


def versions() -> Iterator[Check]:
    import platform

    from bitwright.measure.machine import version

    found = {name: version(name) for name in NEEDED}
    missing = [name for name, v in found.items() if v is None]
    text = f"bitwright {version('bitwright')}, python {platform.python_version()}, torch {found['torch']}, "
    text += f"lightning {found['lightning']}, numpy {found['numpy']}"
    yield Check("versions", "ok", text)
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        yield Check("packages", "FAIL", f"not installed: {', '.join(missing)}. {remedy}", remedy)


def cpu() -> Iterator[Check]:
    from bitwright.measure.machine import cpu_name

    yield Check("cpu", "ok", f"{cpu_name()}, {os.cpu_count()} cores")


def core() -> Iterator[Check]:
    """The compiler, the native core, and its instruction sets."""
    from bitwright.engine import native
    from bitwright.engine.native_library import library

    compiler = _compiler()
    yield Check("compiler", "ok" if compiler else "no", compiler or "none; only needed to build the native core")
    if not native.available():
        forced = "BITWRIGHT_LIBRARY" in os.environ
        remedy = "unset BITWRIGHT_LIBRARY" if forced else "pip install --force-reinstall --no-deps bitwright"
        should = bool(compiler) or "cannot be used" in native.notice() or forced
        text = f"{native.notice()}; packed nets run in plain torch, correct but slow"
        yield Check("native core", "FAIL" if should else "no", text, remedy)
        return
    yield Check("native core", "ok", _short(library()._name))
    forced = os.environ.get("BITWRIGHT_ISA")
    used, here = native.isa(), native.isas()
    text = f"{used} in use" + (f" (BITWRIGHT_ISA={forced})" if forced else "")
    others = [name for name in here if name != used]
    text += f"; also run here: {', '.join(others)}" if others else ""
    yield Check("kernels", "ok", text)
    for name, why in _unused(here):
        yield Check("", "no", f"{name}: {why}")


def _unused(here: list[str]) -> Iterator[tuple[str, str]]:
    """Kernel sets that do not run on this machine, and why."""
    flags = _cpu_flags()
    if flags is None or "portable" not in here:
        return
    for name, needed in FLAGS.items():
        if name in here:
            continue
        lacking = [flag for flag in needed if flag not in flags]
        yield (
            name,
            (
                f"this CPU has no {', '.join(lacking)}"
                if lacking
                else "the CPU has it, but this build or the operating system does not allow it"
            ),
        )


def _cpu_flags() -> set[str] | None:
    """What the CPU can do; None where the system does not tell, or is not an x86."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.partition(":")[2] for line in lines if line.startswith("flags")), None)
    return None if found is None else set(found.split())


def _compiler() -> str:
    """The C++ compiler that a build would take, with its version; "" where there is none."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        if path:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
            return next(iter(done.stdout.splitlines()), path)
    return ""


def _short(path: str) -> str:
    """A path as a person writes it."""
    home = str(Path.home())
    return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path


def extras() -> Iterator[Check]:
    from bitwright.measure.machine import version

    for extra, packages in EXTRAS.items():
        found = {name: version(name) for name in packages}
        missing = [name for name, v in found.items() if v is None]
        have = ", ".join(f"{name} {v}" for name, v in found.items() if v)
        need = f"not installed: {', '.join(missing)}. pip install 'bitwright[{extra}]'" if missing else ""
        yield Check(f"extra {extra}", "no" if missing else "ok", ". ".join(filter(None, (have, need))))


def data() -> Iterator[Check]:
    from bitwright import data
    from bitwright.data.known_files import LAYOUTS, find, roots
    from bitwright.errors import InputError

    places: dict[str, list[str]] = {}
    missing = []
    for name, layout in LAYOUTS.items():
        try:
            root = str(find(name, None)).removesuffix(layout.folder).rstrip("/")
            places.setdefault(_short(root), []).append(name)
        except InputError:
            missing.append(name)
    text = "; ".join(["digits (embedded)", *(f"{root}: {', '.join(names)}" for root, names in places.items())])
    yield Check("data", "ok", f"{len(data.names()) - len(missing)} of {len(data.names())} sets: {text}")
    if missing:
        looked = ", ".join(_short(str(root)) for root in roots(None))
        yield Check("", "no", f"{', '.join(missing)}: not in {looked}. bitwright data get {missing[0]}")


def machine() -> Iterator[Check]:
    """Threads, noise, disk."""
    import torch

    from bitwright.measure.machine import load
    from bitwright.timing import interleave

    cores, omp = os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS")
    yield Check("threads", "ok", f"torch uses {torch.get_num_threads()}" + (f" (OMP_NUM_THREADS={omp})" if omp else ""))
    block = torch.ones(1 << 14)
    spread = interleave({"add": lambda: block.add_(1)}, rounds=15, slice_seconds=0.004)["add"].spread
    busy = load()
    quiet = spread < 0.1 and (busy is None or busy < 0.7 * cores)
    text = (
        f"quartiles of a small loop are {100 * spread:.0f} % apart, load {'unknown' if busy is None else f'{busy:.1f}'}"
    )
    yield Check("noise", "ok", text + f" of {cores} cores" + ("" if quiet else ": busy, times measured now will vary"))
    free = shutil.disk_usage(".").free
    small = f"; less than {LEAST_FREE / 1e9:.0f} GB is little for data and runs" if free < LEAST_FREE else ""
    yield Check("disk", "no" if small else "ok", f"{free / 1e9:,.1f} GB free in the current folder{small}")


def proof() -> Iterator[Check]:
    """One small binary layer on every kernel set of this machine, against the slow reference: equal bit for bit."""
    import torch

    import bitwright as bw
    from bitwright.engine import native

    if not native.available():
        return
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 6, 6, generator=random)
    net = torch.nn.Sequential(bw.nn.Conv2d(40, 24, 3, padding=1, w="bwn", x="sign"))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=random))
        expected = _packed(net.eval(), x, "reference")(x)
        wrong = []
        with _kernels():
            for name in native.isas():
                native.force_isa(name)
                if not torch.equal(_packed(net, x, "native")(x), expected):
                    wrong.append(name)
    tried = ", ".join(native.isas())
    if wrong:
        remedy = f"BITWRIGHT_ISA={next((n for n in native.isas() if n not in wrong), 'portable')} bitwright doctor"
        yield Check("proof", "FAIL", f"{', '.join(wrong)} differ from the reference on a 40>24 3x3 layer", remedy)
    else:
        yield Check("proof", "ok", f"a 40>24 3x3 binary layer equals the slow reference bit for bit on {tried}")


def _packed(net: nn.Module, x: Tensor, backend: str) -> nn.Module:
    import bitwright as bw

    found = bw.convert(net, x, backend=backend, verify=False).model
    assert found is not None  # one binary layer always packs
    return found


@contextmanager
def _kernels() -> Iterator[None]:
    """The instruction set in use is the same again afterwards."""
    from bitwright.engine import native

    before = native.isa()
    try:
        yield
    finally:
        native.force_isa(before)


LOOKS: tuple[Callable[[], Iterator[Check]], ...] = (versions, cpu, core, extras, data, machine, proof)
