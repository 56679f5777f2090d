"""How far a run is: by its updates, or under a time budget by the seconds that it has trained."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax import Array

TIME_UNITS = 1000.0  # the length of a schedule that follows the clock: thousandths of the time budget


class Clock:
    """The seconds that a run has trained, those before a resume included, and the fraction of the run that is done.

    With `count_compilation` it runs from the beginning; otherwise it starts when the first step has finished, and
    stands still in `compiling`. `minutes` is the time budget, or None for a run of `total_steps` updates.
    """

    def __init__(
        self, minutes: float | None, total_steps: int | None, elapsed: float = 0.0, count_compilation: bool = False
    ) -> None:
        self.budget, self.total_steps = (minutes or 0) * 60, total_steps
        self.last_step = 2**40 if total_steps is None else total_steps
        self._count_compilation = count_compilation
        self._counted = elapsed  # seconds before the clock was last started
        self._started = time.monotonic() if count_compilation else None  # None while it stands still
        self._agreed = elapsed if jax.process_count() > 1 else None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self._counted + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def agreed_elapsed(self) -> float:
        """Seconds of training by the clock that all processes use: that of the first one, if there are several."""
        return self.elapsed if self._agreed is None else self._agreed

    @contextmanager
    def compiling(self, does_compile: bool = True) -> Iterator[None]:
        """Surrounds the compilation of a program and its first execution; starts the clock if it has not started."""
        if self._count_compilation or not does_compile:
            yield
            return
        self.stop()
        yield
        self._started = time.monotonic()

    def stop(self) -> None:
        self._counted, self._started = self.elapsed, None

    def agree(self, agreed: Array | None) -> bool:
        """Takes over the first process's time from the votes of a step; returns whether a process has to stop."""
        if agreed is None:
            return False
        self._agreed, stop = (float(value) for value in np.asarray(agreed))
        return bool(stop)

    def is_over(self, step: int) -> bool:
        return self.agreed_elapsed >= self.budget if self.budget else step >= self.last_step

    def read(self, step: int) -> tuple[float, float]:
        """Returns the schedule's count and the completed fraction of the run, when `step` updates have been done."""
        if self.budget:
            fraction = min(self.agreed_elapsed / self.budget, 1.0)
            return fraction * TIME_UNITS, fraction
        return float(step), min(step / self.last_step, 1.0)
