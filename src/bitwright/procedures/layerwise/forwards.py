"""Forward passes that stop in front of a layer and go on when that layer is done, so that all layers cost one pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.transforms.forward import eagerly, run_model

Reading = tuple[nn.Module, Tensor]  # a layer that is about to run, and what it reads


class _Left(BaseException):
    """Unwinds a forward that is abandoned; no `except Exception` in a model can catch it."""


class Forward:
    """One forward pass in a thread of its own; only one of all threads ever runs.

    A pass holds only what its own code still needs: what the model releases is freed.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self._model, self._inputs = model, inputs
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._leave = False
        self.at: Reading | None = None
        self.output: Any = None
        self.done = False

    def advance(self) -> Reading | None:
        """Runs to the next stop; None at the end."""
        if self.done:
            return None
        self.at = None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error
        return self.at

    def pause(self, module: nn.Module, x: Tensor) -> None:
        """Called by the hook, in the thread of this pass."""
        self.at = (module, x)
        self._back.release()
        self._go.acquire()
        if self._leave:
            raise _Left

    def close(self) -> None:
        """Unwinds a pass that has not come to its end."""
        if self._thread is not None and not self.done:
            self._leave = True
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        _CURRENT[threading.get_ident()] = self
        try:
            with torch.no_grad(), eagerly():
                self.output = run_model(self._model, self._inputs)
        except _Left:
            pass
        except BaseException as error:  # handed to the thread that waits for this one
            self._error = error
        finally:
            del _CURRENT[threading.get_ident()]
            self._inputs, self.at, self.done = None, None, True
            self._back.release()


_CURRENT: dict[int, Forward] = {}


@contextmanager
def stops(layers: Collection[nn.Module], wanted: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Inside, a `Forward` stops in front of each of these layers that is wanted at that moment."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current = _CURRENT.get(threading.get_ident())
        if current is not None and wanted(module):
            current.pause(module, args[0] if args else next(iter(kwargs.values())))

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
