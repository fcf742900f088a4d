"""Lightning's tips, hardware lines and warnings are silenced while it runs; the host program's logging is put back."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = (
    "lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero", "lightning.fabric.utilities.seed", "lightning_utilities.core.rank_zero",
    "torch.distributed", "tensorboard",
)  # fmt: skip


@contextmanager
def lightning_quiet() -> Iterator[None]:
    """Errors still come through. Our own warnings, and those of the user's model, are not touched."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    hook = threading.excepthook

    def without_writer(args: threading.ExceptHookArgs) -> None:
        # TensorBoard writes in a thread and raises its error once more where it is flushed: there it becomes one line
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            hook(args)

    threading.excepthook = without_writer
    try:
        with warnings.catch_warnings():
            for theirs in (r"lightning(\.|$)", r"tensorboard(\.|$)", r"torchmetrics(\.|$)", r"torch\.utils\._pytree"):
                warnings.filterwarnings("ignore", module=theirs)
            import lightning.pytorch  # noqa: F401  sets levels of its own when it is first imported
            from lightning.fabric.utilities.warnings import PossibleUserWarning

            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            levels = [logger.level for logger in loggers]
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
