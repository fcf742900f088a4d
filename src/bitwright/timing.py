"""Timing callables side by side, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
NOISY = 0.20  # quartile spread above which a time is not worth quoting


@dataclass(frozen=True)
class Timing:
    """Seconds per call: one mean per slice, their median, quartiles and 95th percentile, and how many calls went into them."""

    median: float
    q1: float
    q3: float
    p95: float
    runs: int

    @property
    def spread(self) -> float:
        """Distance of the quartiles as a share of the median."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0


def summarize(samples: list[float], runs: int) -> Timing:
    """Median, quartiles and 95th percentile of per-call times, linear between neighbors.

    >>> summarize([3.0, 1.0, 2.0, 5.0, 4.0], 50)
    Timing(median=3.0, q1=2.0, q3=4.0, p95=4.8, runs=50)
    """
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], samples[0], runs)
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, q1, q3, statistics.quantiles(samples, n=20, method="inclusive")[-1], runs)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """mean, p50, p95 and the slowest.

    >>> percentiles([1.0, 2.0, 3.0])
    {'mean': 2.0, 'p50': 2.0, 'p95': 2.9, 'most': 3.0}
    """
    all_of = summarize(list(seconds), len(seconds))
    return {
        "mean": sum(seconds) / len(seconds),
        "p50": all_of.median,
        "p95": round(all_of.p95, 12),
        "most": max(seconds),
    }


def quality(spread: float) -> str:
    """Whether times of this quartile spread are worth quoting.

    >>> quality(0.05), quality(0.3)
    ('quartile spread 5 %', 'NOISY, repeat when idle (quartile spread 30 %)')
    """
    text = f"quartile spread {spread * 100:.0f} %"
    return f"NOISY, repeat when idle ({text})" if spread > NOISY else text


def clock_for(threads: int) -> tuple[Clock, str]:
    """One thread: CPU time of the process, which does not count being preempted by other jobs and agrees with wall
    time on a quiet machine. Several threads: wall time, because CPU time adds the threads up.
    """
    return (time.process_time, "cpu") if threads == 1 else (time.perf_counter, "wall")


SPINNING = 0.005  # seconds; the threads of torch and OpenVINO go on spinning for 1 to 4 ms after a call


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    slice_seconds: float = 0.006,
    pause: float = 0.0,
    clock: Clock = time.perf_counter,
    wall: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Round-robin: in each round every candidate runs for one slice; the sample is the slice's mean per call.

    Slices, not single calls, because one call may be shorter than the clock is fine. The first call of each slice is
    not timed: it brings the candidate's data back into the caches.

    pause   seconds before each slice, so that threads spinning after a candidate's last call are asleep
    """
    repeats = {name: _repeats(call, slice_seconds, wall) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if pause:
                time.sleep(pause)
            call()
            times = repeats[name]
            start = clock()
            for _ in range(times):
                call()
            samples[name].append((clock() - start) / times)
    return {name: summarize(values, repeats[name] * rounds) for name, values in samples.items()}


def _repeats(call: Callable[[], object], slice_seconds: float, wall: Clock) -> int:
    """Warm-up, and how many calls fill one slice."""
    for _ in range(3):
        call()
    start, elapsed, times = wall(), 0.0, 0
    while times == 0 or (elapsed < slice_seconds and times < 10_000):
        call()
        times += 1
        elapsed = wall() - start
    return max(1, round(slice_seconds * times / max(elapsed, 1e-9)))
