"""Packed networks inside ONNX Runtime: the native core as its operators.

A file of the domain `bitwright` runs in any onnxruntime, because it carries the meaning of each operator; with the core
registered, the packed kernels run instead, with the same results. onnxruntime is imported at first use.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError
from bitwright.fn.library import open_core
from bitwright.quiet import without_telemetry

if TYPE_CHECKING:
    import onnxruntime

MOST_THREADS = 1024
OLDEST = (1, 17)  # the first onnxruntime that has all that the operators use

_registered: weakref.WeakSet[Any] = weakref.WeakSet()  # one registration per options object is allowed
_lock = threading.Lock()


def _runtime() -> Any:
    without_telemetry()
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"bw.ort: onnxruntime cannot be imported ({error}); pip install onnxruntime",
            code="onnxruntime-missing",
            remedy="pip install onnxruntime",
        ) from None
    return onnxruntime


def _library(runtime: Any) -> tuple[str, str]:
    """(path of the library with the operators, "") or ("", why it cannot be used)."""
    version = tuple(int(n) for n in re.findall(r"\d+", runtime.__version__)[:2])
    if version < OLDEST:
        return "", f"onnxruntime {runtime.__version__} is installed, the operators need 1.17 or newer"
    core, reason = open_core({"RegisterCustomOps": (None, [])})
    return ("", reason) if core is None else (core._name, "")


def library() -> str:
    """The path of the library with the operators: one file, to be shipped beside a model. It needs neither Python nor torch.

    Errors: `InputError` where it was not built or onnxruntime is missing or older than 1.17.
    """
    path, reason = _library(_runtime())
    if not path:
        raise InputError(f"bw.ort.library: {reason}", code="native-missing")
    return path


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Adds the operators of the domain `bitwright` to the options of a session; a second time does nothing.

    Errors: `InputError` where the native core was not built or onnxruntime is missing or older than 1.17.

        options = onnxruntime.SessionOptions()
        bw.ort.register(options)
        session = onnxruntime.InferenceSession("net.onnx", options)
    """
    runtime = _runtime()
    if not isinstance(session_options, runtime.SessionOptions):
        given = type(session_options).__name__
        raise InputError(f"bw.ort.register: got {given}; possible: onnxruntime.SessionOptions", given=given)
    path, reason = _library(runtime)
    if not path:
        raise InputError(f"bw.ort.register: {reason}", code="native-missing")
    _add(session_options, path)


def _add(session_options: onnxruntime.SessionOptions, path: str) -> None:
    with _lock:
        if session_options not in _registered:
            session_options.register_custom_ops_library(path)
            _registered.add(session_options)


def session(path: str | os.PathLike[str] | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """An `onnxruntime.InferenceSession` on the CPU with the packed kernels.

    path      the file, or its content as bytes
    threads   of one run; 0 takes one per core

    Where the native core was not built the session runs the functions in the file: the same results, more slowly.
    Errors: `InputError` where there is no such file, onnxruntime does not take it, or onnxruntime is missing.

        session = bw.ort.session("net.onnx", threads=2)
        (y,) = session.run(None, {"x": x})
    """
    runtime = _runtime()
    if not isinstance(path, (bytes, str, os.PathLike)):
        given = type(path).__name__
        raise InputError(
            f"bw.ort.session: got {given}; possible: a path, or the content of a file as bytes", given=given
        )
    if not isinstance(path, bytes):
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise InputError(f"bw.ort.session: there is no file {path}", code="file-missing", given=str(path))
    if type(threads) is not int or not 0 <= threads <= MOST_THREADS:
        raise InputError(f"bw.ort.session: threads={threads!r}; possible: 0 to {MOST_THREADS}", given=str(threads))
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    library, _ = _library(runtime)
    if library:
        _add(options, library)
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = "these bytes" if isinstance(path, bytes) else path
        text = f"bw.ort.session: onnxruntime does not take {name}: {str(error).strip().splitlines()[0][:300]}"
        raise InputError(text, code="file-damaged") from error
