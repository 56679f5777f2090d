"""What a run leaves behind and shows: metrics.jsonl, log.txt, TensorBoard events, progress, and the curve."""

import contextlib
import itertools
import json
import math
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError

FLUSH_SECONDS = 30.0  # between writes of TensorBoard's events to the disk
LINE_SECONDS = 10.0  # between plain progress lines
RATE_WINDOW = 64  # calls of `train` that the time left is reckoned from, so that it follows a change of pace


class RunLog:
    """The log of one run in a work directory, as a context manager.

    `first_step` is the number of updates done when this process takes over; what an interrupted run logged beyond it is
    superseded. `total_steps` is None where the clock ends the run: `train` then needs `progress`, from 0 to 1, in its
    metrics. Only the `primary` process writes or shows anything.
    """

    def __init__(
        self,
        workdir: Path,
        total_steps: int | None,
        *,
        tensorboard: bool,
        curve: bool,
        first_step: int = 0,
        primary: bool = True,
    ) -> None:
        self._workdir = Path(workdir)
        self._curve = curve
        self._open = primary
        self._writer: Any = None
        if not primary:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        resumed = _mend_last_line(self._workdir / "metrics.jsonl")
        # Unbuffered: a line that was logged survives any kill of the process.
        self._metrics = (self._workdir / "metrics.jsonl").open("ab", buffering=0)
        self._log = (self._workdir / "log.txt").open("ab", buffering=0)
        self._progress = _Progress(first_step, total_steps)
        self._display: _Bar | _Lines = _Bar(self._progress) if _on_terminal() else _Lines(self._progress)
        if tensorboard:
            self._write_events(lambda: _Events(self._workdir / "tensorboard", first_step + 1 if resumed else None))
        if resumed:
            self.event("resume", step=first_step)
        self._measured = False

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Shows a line to the user and keeps it, with the time, in log.txt."""
        if not self._open:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        line = f"{stamp}  " + text.replace("\n", "\n" + " " * (len(stamp) + 2)) + "\n"
        _append(self._log, line.encode("utf-8", "backslashreplace"))
        self._display.say(text)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one JSON object to metrics.jsonl and flushes it; numbers that are not finite become null.

        Raises UserError where the file cannot be written.
        """
        if not self._open:
            return
        content = _plain({"kind": kind, **fields, "time": round(time.time(), 3)})
        _append(self._metrics, json.dumps(content, allow_nan=False).encode() + b"\n")

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of a training step and shows loss, tokens_per_second and mfu (a share) if they are there."""
        if not self._open:
            return
        self._measured = True
        self.event("train", step=step, **metrics)
        self._write_scalars("train", step, metrics)
        self._progress.advance(step, metrics)
        self._display.train()

    def evaluation(self, step: int, name: str, metrics: dict[str, float]) -> None:
        """Logs the metrics of the held-out set `name` and shows its loss (nats) and accuracy (a share)."""
        if not self._open:
            return
        self._measured = True
        self.event("evaluation", step=step, name=name, **metrics)
        self._write_scalars(_held_out_label(name).replace(" ", "/"), step, metrics)
        self._progress.held_out = {**self._progress.held_out, name: metrics}  # a new one: the bar's thread reads it
        self._display.say("  ".join([f"step {step:,}", *_held_out_figures(name, metrics)]))

    def close(self) -> None:
        """Ends the display, draws curve.png, and closes the files; may be called again."""
        if not self._open:
            return
        self._display.close()
        if self._writer is not None:
            self._write_events(self._writer.close)
        if self._curve and self._measured:
            try:
                draw_curve(self._workdir)
            except (UserError, OSError) as error:  # a picture must not cost a finished run its result
                with contextlib.suppress(UserError):  # nor may a log that cannot be written either
                    self.note(f"curve.png was not drawn: {error}")
        self._log.close()
        self._metrics.close()
        self._open = False

    def _write_scalars(self, prefix: str, step: int, metrics: dict[str, float]) -> None:
        if self._writer is None:
            return
        numbers = {f"{prefix}/{name}": _plain(value) for name, value in metrics.items()}
        numbers = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
        self._write_events(lambda: self._writer.add(step, numbers))

    def _write_events(self, write: Callable[[], Any]) -> None:
        """Calls write(), whose result, where it has one, is the writer; a disk that refuses ends the events alone."""
        try:
            self._writer = write() or self._writer
        except OSError as error:
            self._writer = None
            self.note(f"TensorBoard gets no more events: {error.strerror}; metrics.jsonl has them all")


class _Events:
    """TensorBoard's event file, written here and now: the thread of tensorboardX hangs a run whose disk is full."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        if purge_step is not None:  # what an interrupted run wrote from there on is hidden
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))
        self._file.flush()
        self._flushed = time.monotonic()

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Writes numbers, one event each; they are on disk after half a minute at most. Raises OSError."""
        for name, number in numbers.items():
            summary = self._summary(value=[self._summary.Value(tag=name, simple_value=number)])
            self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left. Raises OSError."""
        self._file.close()


class _Progress:
    """How far the run is, its last metrics, and when it will end."""

    def __init__(self, step: int, total_steps: int | None) -> None:
        self.step = step
        self.total_steps = total_steps
        self.metrics: dict[str, float] = {}
        self.held_out: dict[str, dict[str, float]] = {}
        self._history: deque[tuple[float, float]] = deque(maxlen=RATE_WINDOW)  # of (seconds, share done)

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        self.step, self.metrics = step, metrics
        share = self.share()
        if share is not None:
            self._history.append((time.monotonic(), share))

    def share(self) -> float | None:
        """Returns the share of the run that is done; None where nothing tells."""
        if self.total_steps is None:
            progress = self.metrics.get("progress")
            return None if progress is None else min(max(float(progress), 0.0), 1.0)
        return min(self.step / max(self.total_steps, 1), 1.0)

    def seconds_left(self) -> float | None:
        if len(self._history) < 2:
            return None
        (start, from_share), (now, to_share) = self._history[0], self._history[-1]
        if to_share <= from_share:
            return None
        left = (now - start) * (1 - to_share) / (to_share - from_share)
        return max(left - (time.monotonic() - now), 0.0)

    def count(self) -> str:
        return f"{self.step:,}" + (f"/{self.total_steps:,}" if self.total_steps is not None else "")


class _Lines:
    """Progress as plain lines on standard output, for files and pipes."""

    def __init__(self, progress: _Progress) -> None:
        self._progress = progress
        self._next = 0.0
        self._pending = False

    def train(self) -> None:
        self._pending = True
        if time.monotonic() >= self._next:
            self._print_step()

    def say(self, text: str) -> None:
        self.close()  # what is said belongs to the steps before it
        _print(text)

    def close(self) -> None:
        if self._pending:
            self._print_step()

    def _print_step(self) -> None:
        figures = [f"step {self._progress.count()}", *_train_figures(self._progress.metrics)]
        left = self._progress.seconds_left()
        if left:
            figures.append(f"{_duration(left)} left")
        _print("  ".join(figures))
        self._next, self._pending = time.monotonic() + LINE_SECONDS, False


class _Bar:
    """Progress as a bar at the bottom of a terminal, on standard error; it appears with the first training step."""

    def __init__(self, progress: _Progress) -> None:
        from rich.console import Console
        from rich.live import Live

        self._progress = progress
        self._console = Console(stderr=True)
        self._live = Live(
            get_renderable=self._render, console=self._console, refresh_per_second=2, vertical_overflow="ellipsis"
        )

    def train(self) -> None:
        if not self._live.is_started:
            self._live.start()

    def say(self, text: str) -> None:
        if self._live.is_started:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _print(text)

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        share, left = self._progress.share(), self._progress.seconds_left()
        right = [] if share is None else [f"{share:4.0%}"]
        if left:
            right.append(f"{_duration(left)} left")
        top = Table.grid(padding=(0, 2, 0, 0), expand=True)
        top.add_column(no_wrap=True)
        top.add_column(ratio=1)
        top.add_column(justify="right", no_wrap=True)
        top.add_row(
            Text(f"step {self._progress.count()}", style="bold"),
            ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None),
            "  ".join(right),
        )
        lines = [_train_figures(self._progress.metrics)]
        lines += [_held_out_figures(name, metrics) for name, metrics in self._progress.held_out.items()]
        return Group(top, *(Text("   ".join(line), no_wrap=True, overflow="ellipsis") for line in lines if line))


def _train_figures(metrics: dict[str, float]) -> list[str]:
    figures = []
    if metrics.get("loss") is not None:
        figures.append(f"loss {float(metrics['loss']):.3f}")
    if metrics.get("tokens_per_second") is not None:
        figures.append(f"{float(metrics['tokens_per_second']):,.0f} tokens/s")
    if metrics.get("mfu") is not None:
        figures.append(f"MFU {float(metrics['mfu']):.1%}")
    return figures


def _held_out_figures(name: str, metrics: dict[str, float]) -> list[str]:
    figures = []
    label = _held_out_label(name)
    if metrics.get("loss") is not None:
        figures.append(f"{label} loss {float(metrics['loss']):.3f}")
    if metrics.get("accuracy") is not None:
        figures.append(("" if figures else f"{label} ") + f"accuracy {float(metrics['accuracy']):.1%}")
    return figures or [label]


def _held_out_label(name: str) -> str:
    return "held-out" if name.replace("_", "-") == "held-out" else f"held-out {name}"


def _duration(seconds: float) -> str:
    """Returns 75 as 1:15, 3,700 as 1:01:40, and days apart."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _append(file: FileIO, line: bytes) -> None:
    try:
        while line:
            line = line[file.write(line) :]
    except OSError as error:
        raise UserError(f"cannot write {file.name!s}: {error.strerror}; mend that and start the run again") from error


def _on_terminal() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # a file name may hold what the terminal's encoding does not
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _plain(value: Any) -> Any:
    """Returns `value` as JSON has it: NumPy and JAX numbers and arrays as Python's, what is not finite as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _plain(value.tolist())


def _mend_last_line(path: Path) -> bool:
    """Cuts a last line that a kill left unfinished, and returns whether the file holds any."""
    if not path.exists():
        return False
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            if _parse(content[end:]) is None:
                file.truncate(end)
            else:
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
                end = len(content)
    return end > 0


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the event of a line of metrics.jsonl, or None where it is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return None
    stepless = 0 if event["kind"] not in ("train", "evaluation", "resume") else None
    return event if isinstance(event.get("step", stepless), int) else None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the events of a run in order, each (kind, step, held-out set) once, as written last.

    What an interrupted run logged beyond the step that it was resumed from is left out, and so is a last line cut by a
    kill. Raises UserError where there is no metrics.jsonl, or with the number of any other broken line.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give the work directory of a run that was started"
        ) from error
    *lines, last = content.split(b"\n")
    events: dict[tuple, dict[str, Any]] = {}
    for number, line in enumerate([*lines, last], 1):
        event = _parse(line)
        if event is None:
            if number > len(lines) or not line.strip():
                continue
            raise UserError(f"{path}, line {number}, is no JSON object with a kind and a step: mend or remove the line")
        kind, step = event["kind"], event.get("step")
        if kind == "resume":
            superseded = [key for key in events if key[0] in ("train", "evaluation") and key[1] > step]
            for key in superseded:
                del events[key]
        key = (kind, number) if step is None else (kind, step, event.get("name"))
        events.pop(key, None)
        events[key] = event
    return list(events.values())


def draw_curve(workdir: Path) -> Path:
    """Draws curve.png from metrics.jsonl: losses in nats over steps; returns its path.

    Raises UserError where the run has logged no loss.
    """
    train: list[tuple[int, float]] = []
    held_out: dict[str, list[tuple[int, float]]] = {}
    unigram: dict[str, float] = {}
    for event in read_metrics(workdir):
        loss = event.get("loss")
        if loss is not None and event["kind"] == "train":
            train.append((event["step"], loss))
        if event["kind"] == "evaluation":
            name = event.get("name", "")
            if loss is not None:
                held_out.setdefault(name, []).append((event["step"], loss))
            if event.get("unigram_loss") is not None:
                unigram[name] = event["unigram_loss"]
    if not train and not held_out:
        raise UserError(f"{Path(workdir) / 'metrics.jsonl'} holds no loss yet: there is nothing to draw")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown: list[float] = []
    if train:
        steps, losses = zip(*sorted(train), strict=True)
        smoothed = _smooth(losses)
        label = "training"
        if smoothed != [*losses]:
            axes.plot(steps, losses, color="#9ec5e8", linewidth=0.8, label=label)
            label = "training, smoothed"
        axes.plot(steps, smoothed, color="#1f6fb2", linewidth=1.8, label=f"{label}: {smoothed[-1]:.3f}")
        shown += smoothed
    colors = dict(zip(held_out, itertools.cycle(("#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#3b3b3b"))))
    for name, points in held_out.items():
        steps, losses = zip(*sorted(points), strict=True)
        axes.plot(steps, losses, color=colors[name], linewidth=1.4, marker="o", markersize=3.5,
                  label=f"{_held_out_label(name)}: {losses[-1]:.3f}")  # fmt: skip
        shown += losses
    for name, loss in unigram.items():
        several = len(unigram) > 1
        axes.axhline(loss, color=colors.get(name) if several else "#777777", linewidth=1.2, linestyle=(0, (5, 4)),
                     label=f"unigram baseline{f' of {name}' if several else ''}: {loss:.3f}")  # fmt: skip
        shown.append(loss)
    # A single wild step may leave the picture: it would flatten all the rest.
    margin = 0.05 * (max(shown) - min(shown)) or 0.5
    axes.set_ylim(min(shown) - 2 * margin, max(shown) + margin)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per prediction)")
    axes.set_title(Path(workdir).resolve().name, loc="left", fontweight="bold", parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.9)
    path = Path(workdir) / "curve.png"
    temporary = path.with_name("curve.png.tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a title in an alphabet that the font lacks
        figure.savefig(temporary, format="png")
    temporary.replace(path)
    return path


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Returns the mean of the neighbours on both sides, fewer at the start, where the loss falls fast."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    half = len(values) // 40
    if not half:
        return list(values)
    smoothed = []
    for i in range(len(values)):
        before = min(i, half)
        first, last = i - before, min(i + before, len(values) - 1)
        smoothed.append((sums[last + 1] - sums[first]) / (last + 1 - first))
    return smoothed
