"""The call of a net that is one native run. Between two calls of a net the caches hold other things, so that each line of Python that a call
goes through costs more than it seems: what has been found out about an input is not found out again for one that lies alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.engine.fuse import LIMIT
from bitwright.engine.native_library import check_code, library
from bitwright.engine.native_run import Program


def kind_of(x: Any) -> Any:
    """What decides how an input is read; None: no plain tensor in the CPU's memory."""
    if type(x) is Tensor and x.is_cpu and x.layout is torch.strided:
        return x.dtype, x.shape, x.stride()
    return None


class OneRun:
    """The answer of a net of one input and one answer, for inputs of the kind that `program` was made for.

    threads  of the kernels; None: torch's number
    """

    def __init__(self, program: Program, x: Tensor, threads: int | None) -> None:
        ((_, self.size, self.stride, self.dtype),) = program.made
        self.program, self.threads = program, threads
        self.count = x.numel() if x.is_floating_point() else 0  # of numbers that may be too large
        self.check, self.run = library().bw_check_range, library().bw_run

    def __call__(self, x: Tensor) -> Tensor | None:
        """None: a number is NaN or beyond `LIMIT`."""
        at, p = x.data_ptr(), self.program
        if self.count and self.check(at, self.count, LIMIT):
            return None
        y = torch.empty_strided(self.size, self.stride, dtype=self.dtype)
        if code := self.run(
            p.address, p.count, p.pointers(at, y.data_ptr()), p.scratch, self.threads or torch.get_num_threads()
        ):
            check_code(code)
        return y
