"""Silence around other people's programs: exporters and quantizers that warn, log and print."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


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
