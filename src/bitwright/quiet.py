"""Silence around other programs: exporters and quantizers that warn, log and print; a runtime that reports usage."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


def without_telemetry() -> None:
    """Before onnxruntime is imported: newer ones send usage data and write to ~/.cache unless this is set.

    A value that the user has set is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters and quantizers warn, log and print; none of it is about the user's work. All is put back after."""
    root, level = logging.getLogger(), logging.root.manager.disable
    handlers = list(root.handlers)
    sink = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers  # logging.warning() installs one where there was none
