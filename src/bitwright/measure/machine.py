"""What a number was measured on. A time without these columns means nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bitwright.version import __version__

# In order of what decides speed here; the last one present names the machine's level.
_FLAGS = (
    "popcnt", "avx2", "avx512bw", "avx512_vnni", "avx512_vpopcntdq", "avx512_bf16", "amx_int8", "neon", "asimd",
)  # fmt: skip


def machine(threads: int) -> dict[str, Any]:
    """CPU, instruction sets, thread count, versions, load and date, as flat columns of a CSV."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "isa": " ".join(cpu_flags()),
        "kernels": kernels(),
        "threads": threads,
        "load": load(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("bitwright", "torch", "onnxruntime", "openvino")},
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86 with tiles, ARM


def computes_bf16() -> bool:
    """Whether this CPU has instructions for bf16. Where it has none, torch computes each number in turn, many times as slowly as fp32."""
    if flags := (_cpuinfo("flags") or _cpuinfo("Features")).split():
        return not _BF16.isdisjoint(flags)
    import torch  # a system that does not tell: what torch has found

    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX", "SVE"))


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def cpu_name() -> str:
    """The model name; the architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown CPU"


def cpu_flags() -> list[str]:
    """The instruction sets of this CPU that matter here."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [flag for flag in _FLAGS if flag in flags]


def kernels() -> str:
    """The instruction set our own kernels run with here; `torch` where the library was not built."""
    try:
        from bitwright.engine import native

        return str(native.isa())
    except Exception:  # no library, or a broken one: measuring goes on without it
        return "torch"


def version(package: str) -> str | None:
    """Installed version, None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package != "bitwright":
            return None
    return __version__  # a checkout on PYTHONPATH


def load() -> float | None:
    """Jobs wanting a core in the last minute, before the measurement adds itself."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None
