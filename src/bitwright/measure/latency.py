"""How long each image takes: for nets whose work depends on the image, a mean says little."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.timing import Clock, clock_for, summarize

PASSES = 7


def latencies(
    call: Callable[[Tensor], object],
    images: Tensor,
    *,
    threads: int = 1,
    passes: int = PASSES,
    clock: Clock | None = None,
) -> list[float]:
    """Seconds for each image alone, in their order: the median over several passes through all of them.

    Passes, not repetitions, so that what else the machine does hits different images; the first pass is not counted.
    images   [N, ...], as the net takes them;   threads   of the call: several are timed by wall time
    Errors: `InputError` without images

    >>> ticks = iter(range(1000))
    >>> latencies(lambda x: None, torch.zeros(3, 1), clock=lambda: float(next(ticks)))
    [1.0, 1.0, 1.0]
    """
    if not len(images):
        raise InputError("latencies: no images to time", code="batches-none")
    clock = clock or clock_for(threads)[0]
    found: list[list[float]] = [[] for _ in images]
    with torch.inference_mode():
        for number in range(passes + 1):
            for times, image in zip(found, images.split(1), strict=True):
                start = clock()
                call(image)
                if number:
                    times.append(clock() - start)
    return [summarize(times, len(times)).median for times in found]
