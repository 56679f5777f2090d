"""Progress of a long computation: a bar on a terminal or plain lines elsewhere, and an estimate of the time left.

`StepProgress` follows training, `Progress` the preparation of data. Both describe their state as a `Status`, which the
bar reads twice a second and plain lines print every few seconds.
"""

import contextlib
import errno
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

STEP_LINE_SECONDS = 10.0  # between plain lines during training
LINE_SECONDS = 5.0  # between plain lines during preparation
SAMPLE_SECONDS = 1.0  # least time between two samples of the pace, so that fast updates do not shorten the window
SAMPLES = 64  # the time left is estimated from these, so that it follows a change of pace


class Status(NamedTuple):
    """What a display shows."""

    heading: str
    fraction: float | None  # of the work that is done; None if unknown
    seconds_left: float | None
    seconds: float  # since the beginning
    figures: list[str]
    more: list[list[str]]  # further lines of figures, shown by the bar only


class Progress:
    """Shows, on standard error, how many documents and bytes each phase of the preparation has read."""

    def __init__(self) -> None:
        self.bytes = 0
        self._title, self._total, self._documents = "", 0, 0
        self._pace = _Pace()
        self._display: _Bar | _Lines
        if _is_terminal(sys.stderr):
            self._display = _Bar(self._status, transient=True)
        else:
            self._display = _Lines(self._status, sys.stderr, LINE_SECONDS)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._display.close()

    def begin(self, title: str, total: int = 0) -> None:
        """Begins a phase of `total` bytes, 0 if unknown; the counts start again from 0."""
        self._title, self._total, self._documents, self.bytes = title, total, 0, 0
        self._pace = _Pace()
        self._display.begin()

    def advance(self, documents: int, size: int) -> None:
        """Adds documents of `size` bytes in all to what is done."""
        self._documents += documents
        self.bytes += size
        if self._total:
            self._pace.add(self._fraction())
        self._display.update()

    def _fraction(self) -> float:
        return min(self.bytes / self._total, 1.0)

    def _status(self) -> Status:
        done = f"{self.bytes / 1e6:,.0f}" + (f" of {self._total / 1e6:,.0f}" if self._total else "")
        figures = [f"{self._documents:,} documents", f"{done} MB"] if self._documents else []
        fraction = self._fraction() if self._total else None
        return Status(self._title, fraction, self._pace.seconds_left(), self._pace.seconds(), figures, [])


class StepProgress:
    """Shows steps and metrics during training: a bar on standard error, or lines on standard output.

    `total_steps` is None for a run with a time budget, which passes the fraction that is done to `train`. If the
    terminal or the reader of a pipe is gone, nothing more is shown and no error is raised, so that the run goes on, or
    saves after the SIGHUP of the terminal.
    """

    def __init__(self, step: int, total_steps: int | None) -> None:
        self._step, self._total_steps = step, total_steps
        self._fraction: float | None = None
        self._figures: list[str] = []
        self._evaluations: dict[str, list[str]] = {}
        self._pace = _Pace()
        self._display: _Bar | _Lines
        if _is_terminal(sys.stdout) and _is_terminal(sys.stderr):
            self._display = _Bar(self._status)
        else:
            self._display = _Lines(self._status, sys.stdout, STEP_LINE_SECONDS)

    def train(self, step: int, figures: list[str], fraction: float | None = None) -> None:
        """Shows the figures of a training step."""
        if self._total_steps is not None:
            fraction = step / max(self._total_steps, 1)
        self._step, self._figures = step, figures
        self._fraction = None if fraction is None else min(max(fraction, 0.0), 1.0)
        if self._fraction is not None:
            self._pace.add(self._fraction)
        with _shown_if_possible():
            self._display.update()

    def evaluation(self, step: int, name: str, figures: list[str]) -> None:
        """Shows the figures of an evaluation set, of which the bar keeps the latest."""
        self._evaluations = {**self._evaluations, name: figures}  # replaced, since the bar's thread reads it
        self.print("  ".join([f"step {step:,}", *figures]))

    def print(self, text: str) -> None:
        """Prints a text above the bar, or after a line about the latest step."""
        with _shown_if_possible():
            self._display.flush()
            self._display.print(text)

    def close(self) -> None:
        """Shows the last step, and ends the display."""
        with _shown_if_possible():
            self._display.flush()
            self._display.close()

    def _status(self) -> Status:
        heading = f"step {self._step:,}" + (f"/{self._total_steps:,}" if self._total_steps is not None else "")
        left, seconds = self._pace.seconds_left(), self._pace.seconds()
        return Status(heading, self._fraction, left, seconds, self._figures, list(self._evaluations.values()))


class _Pace:
    """How fast a computation proceeds, and so when it will end."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # of (seconds, fraction done)
        self._latest = (self._begin, 0.0)

    def add(self, fraction: float) -> None:
        self._latest = (time.monotonic(), fraction)
        if not self._samples or self._latest[0] >= self._samples[-1][0] + SAMPLE_SECONDS:
            self._samples.append(self._latest)

    def seconds(self) -> float:
        """Returns the seconds since the beginning."""
        return time.monotonic() - self._begin

    def seconds_left(self) -> float | None:
        """Returns the estimated seconds until the end; None if too little is done to estimate them."""
        if not self._samples:
            return None
        (start, from_fraction), (now, to_fraction) = self._samples[0], self._latest
        if to_fraction <= from_fraction:
            return None
        left = (now - start) * (1 - to_fraction) / (to_fraction - from_fraction)
        return max(left - (time.monotonic() - now), 0.0)


class _Lines:
    """Plain lines on a stream, at most one every `interval` seconds, for files and pipes."""

    def __init__(self, status: Callable[[], Status], stream: TextIO, interval: float) -> None:
        self._status, self._stream, self._interval = status, stream, interval
        self._next = 0.0
        self._pending = False

    def begin(self) -> None:
        """Prints the heading of a new phase."""
        _print(self._status().heading, self._stream)
        self._next, self._pending = time.monotonic() + self._interval, False

    def update(self) -> None:
        self._pending = True
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Prints the status, unless it was printed since the last update."""
        if not self._pending:
            return
        status = self._status()
        line = [status.heading, *status.figures]
        if status.seconds_left:
            line.append(f"{duration(status.seconds_left)} left")
        _print("  ".join(line), self._stream)
        self._next, self._pending = time.monotonic() + self._interval, False

    def print(self, text: str) -> None:
        _print(text, self._stream)

    def close(self) -> None:
        pass


class _Bar:
    """A bar at the bottom of a terminal, on standard error; it appears with the first update."""

    def __init__(self, status: Callable[[], Status], transient: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self._status = status
        self._console = Console(stderr=True)
        self._live = Live(
            get_renderable=self._render, console=self._console, refresh_per_second=2, vertical_overflow="ellipsis",
            transient=transient,
        )  # fmt: skip

    def begin(self) -> None:
        self.update()

    def update(self) -> None:
        if not self._live.is_started:
            self._live.start()

    def flush(self) -> None:
        pass

    def print(self, text: str) -> None:
        if self._live.is_started:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _print(text, sys.stdout)

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        status = self._status()
        right = [f"{duration(status.seconds)} elapsed" if status.fraction is None else f"{status.fraction:4.0%}"]
        if status.seconds_left:
            right.append(f"{duration(status.seconds_left)} left")
        top = Table.grid(padding=(0, 2, 0, 0), expand=True)
        top.add_column(no_wrap=True)
        top.add_column(ratio=1)
        top.add_column(justify="right", no_wrap=True)
        top.add_row(
            Text(status.heading, style="bold"),
            ProgressBar(total=1.0, completed=status.fraction or 0.0, pulse=status.fraction is None),
            "  ".join(right),
        )
        lines = [line for line in (status.figures, *status.more) if line]
        return Group(top, *(Text("   ".join(line), no_wrap=True, overflow="ellipsis") for line in lines))


def duration(seconds: float) -> str:
    """Returns seconds as minutes and seconds (1:15), with hours (1:01:40), or as days and hours (2 d 7 h)."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


@contextlib.contextmanager
def _shown_if_possible() -> Iterator[None]:
    """Discards all further output if the body cannot write because the terminal or the reader of a pipe is gone."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise
        for stream in (sys.stdout, sys.stderr):
            descriptor = select.poll()
            descriptor.register(stream.fileno(), 0)
            if descriptor.poll(0):  # always reported: an error, or that the other end has hung up
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def show(text: str) -> None:
    """Prints a text to standard output, unless that is closed, or its terminal or the reader of its pipe is gone.

    A long computation does not end with the program that reads its output, as in `jaxlm train ... | head`: its results
    are on the disk.
    """
    if sys.stdout:
        with _shown_if_possible():
            _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"  # a file name may contain characters that the terminal's encoding lacks
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
