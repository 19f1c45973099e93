"""Time candidate settings on copies of a model, which itself stays as it is."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable

import keras

from fmkit._generators import undisturbed
from fmkit.data import Batches
from fmkit.performance._copy import copy_of

__all__ = ["Candidate", "Measurement", "measure_candidates"]

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings to try."""

    jit_compile: bool
    steps_per_execution: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a run with these settings costs.

    Attributes:
        jit_compile: As in `compile`.
        steps_per_execution: As in `compile`.
        start: Seconds before the first step: tracing and compilation, also of the
            last, smaller batch of an epoch.
        step: Seconds per optimizer step after that.

    Examples:
        >>> Measurement(True, 50, start=2.0, step=0.001).total(steps=1000)
        3.0
    """

    jit_compile: bool
    steps_per_execution: int
    start: float
    step: float

    def total(self, steps: int) -> float:
        """Return the estimated seconds of a run of so many steps."""
        return self.start + steps * self.step

    def describe(self, steps: int) -> str:
        """Return the settings and the estimate, in words."""
        return (
            f"{'XLA' if self.jit_compile else 'no XLA'} with "
            f"{self.steps_per_execution} steps per execution {self.total(steps):.3g} s "
            f"({self.start:.2g} s to start, {1e3 * self.step:.2g} ms per step)"
        )


def measure_candidates(
    model: keras.Model,
    batches: Batches,
    candidates: list[Candidate],
    seconds: float,
    clock: Clock = time.perf_counter,
) -> tuple[Measurement, ...]:
    """Time every candidate on a copy of `model`."""
    with undisturbed():
        return tuple(
            _measure(
                copy_of(model, "`measure=True`", **dataclasses.asdict(candidate)),
                batches,
                candidate,
                seconds,
                clock,
            )
            for candidate in candidates
        )


def _measure(
    model: keras.Model,
    batches: Batches,
    candidate: Candidate,
    seconds: float,
    clock: Clock,
) -> Measurement:
    # A shallow copy has a position of its own and shares the arrays.
    batches = copy.copy(batches)
    count = min(candidate.steps_per_execution, len(batches))

    def end_of_epoch() -> float:
        """Train on the last `count` batches of an epoch, the smaller one too."""
        batches.seek(0, len(batches) - count)
        start = clock()
        model.fit(batches, epochs=1, verbose=0)
        return clock() - start

    first = end_of_epoch()
    times = [end_of_epoch()]
    # Short fits are mostly their own beginning and end: make them longer.
    count = min(len(batches), max(count, int(count * seconds / (4 * times[0])) + 1))
    times = [end_of_epoch()]
    while sum(times) < seconds and len(times) < 20:
        times.append(end_of_epoch())
    step = min(times) / count
    steps = min(candidate.steps_per_execution, len(batches))
    return Measurement(
        candidate.jit_compile,
        candidate.steps_per_execution,
        start=max(0.0, first - steps * step),
        step=step,
    )
