"""The log of a run: metrics.jsonl, log.txt, TensorBoard events, progress, and the curve drawn at the end."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxlm.errors import UserError
from jaxlm.runtime.curve import draw_curve
from jaxlm.runtime.json_output import as_json
from jaxlm.runtime.progress import StepProgress
from jaxlm.runtime.trackers import Tracker
from jaxlm.storage import parse_json, read_bytes, reason
from jaxlm.typed import is_kind

# How metrics are shown. Training shows these alone, in this order; an evaluation shows every scalar that it logs.
# Tokens per second do not count padding; metrics.jsonl has both numbers.
FIGURES: dict[str, str] = {
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.1%}",
    "accuracy_top5": "top-5 accuracy {:.1%}",
    "tokens_per_second_without_padding": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
}
# Further metrics of an evaluation, which is shown in the order that its evaluator gives.
EVALUATION_FIGURES: dict[str, str] = FIGURES | {
    "perplexity": "perplexity {:,.1f}",
    "nats_per_byte": "{:.3f} nats per byte",
    "majority_accuracy": "majority accuracy {:.1%}",
    "unigram_loss": "unigram loss {:.3f}",
    "unigram_top5": "unigram top-5 {:.1%}",
    "n": "n = {:,}",
}
FLUSH_SECONDS = 30.0  # between writes of TensorBoard's events to the disk


class RunLog:
    """The log of one run in a work directory, as a context manager.

    `first_step` is the number of updates done when this process takes over; what an interrupted run logged beyond it is
    superseded. `total_steps` is None for a run with a time budget: `train` then needs `progress`, from 0 to 1, in its
    metrics. Only the `primary` process writes or shows anything. Every number is also sent to `trackers`.
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
        trackers: Mapping[str, Tracker] = MappingProxyType({}),
    ) -> None:
        self._workdir = Path(workdir)
        self._curve = curve
        self._open = primary
        self._writer: Any = None
        self._trackers = dict(trackers)
        if not primary:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        resumed = _repair_last_line(self._workdir / "metrics.jsonl")
        # Unbuffered: a line that was logged survives any kill of the process.
        self._metrics = (self._workdir / "metrics.jsonl").open("ab", buffering=0)
        self._log = (self._workdir / "log.txt").open("ab", buffering=0)
        self._progress = StepProgress(first_step, total_steps)
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
        """Shows a text to the user and appends it, with the time, to log.txt. Raises UserError."""
        if not self._open:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        line = f"{stamp}  " + text.replace("\n", "\n" + " " * (len(stamp) + 2)) + "\n"
        _append(self._log, line.encode("utf-8", "backslashreplace"))
        self._progress.print(text)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one JSON object to metrics.jsonl and flushes it; numbers that are not finite become null.

        Raises UserError if the file cannot be written.
        """
        if not self._open:
            return
        content = as_json({"kind": kind, **fields, "time": round(time.time(), 3)})
        _append(self._metrics, json.dumps(content, allow_nan=False).encode() + b"\n")

    def train(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs the metrics of a training step and shows those of FIGURES. Raises UserError."""
        if not self._open:
            return
        self._measured = True
        self.event("train", step=step, **metrics)
        self._write_scalars("train", step, metrics)
        scalars = _scalars(metrics)
        self._progress.train(
            step, [_figure(key, scalars[key]) for key in FIGURES if key in scalars], scalars.get("progress")
        )

    def evaluation(self, step: int, name: str, metrics: Mapping[str, Any]) -> None:
        """Logs the metrics of the evaluation set `name` and shows its scalars. Raises UserError."""
        if not self._open:
            return
        self._measured = True
        self.event("evaluation", step=step, name=name, **metrics)
        label = _evaluation_label(name)
        self._write_scalars(label.replace(" ", "/"), step, metrics)
        figures = [_figure(key, value) for key, value in _scalars(metrics).items()]
        self._progress.evaluation(step, name, [" ".join([label, *figures[:1]]), *figures[1:]])

    def close(self) -> None:
        """Ends the display, draws curve.png, and closes the files; may be called again."""
        if not self._open:
            return
        self._progress.close()
        if self._writer is not None:
            self._write_events(self._writer.close)
        self._tell_trackers(lambda tracker: tracker.close())
        if self._curve and self._measured:
            try:
                draw_curve(read_metrics(self._workdir), self._workdir / "curve.png", _evaluation_label)
            except (UserError, OSError) as error:  # a missing picture must not fail a finished run
                with contextlib.suppress(UserError):  # nor must a log that cannot be written
                    self.note(f"curve.png was not drawn: {error}")
        self._log.close()
        self._metrics.close()
        self._open = False

    def _write_scalars(self, prefix: str, step: int, metrics: Mapping[str, Any]) -> None:
        if self._writer is None and not self._trackers:
            return
        numbers = {f"{prefix}/{name}": value for name, value in _scalars(metrics).items() if math.isfinite(value)}
        if self._writer is not None:
            self._write_events(lambda: self._writer.add(step, numbers))
        self._tell_trackers(lambda tracker: tracker.add(step, numbers))

    def _tell_trackers(self, tell: Callable[[Tracker], None]) -> None:
        """Calls tell with each tracker; one that fails gets no more, which must not end a run."""
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:
                del self._trackers[name]
                self.note(f"{name} gets no more events: {reason(error)}; metrics.jsonl is complete")

    def _write_events(self, write: Callable[[], Any]) -> None:
        """Calls write(), whose result, if any, is the new writer; an OSError ends the events but not the run."""
        try:
            self._writer = write() or self._writer
        except OSError as error:
            self._writer = None
            self.note(f"TensorBoard gets no more events: {reason(error)}; metrics.jsonl is complete")


class _Events:
    """TensorBoard's event file, written synchronously: the writer thread of tensorboardX hangs a run on a full disk."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        if purge_step is not None:  # TensorBoard hides what an interrupted run wrote from this step on
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))
        self._file.flush()
        self._flushed = time.monotonic()

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Writes one event for each number; it reaches the disk within FLUSH_SECONDS. Raises OSError."""
        for name, number in numbers.items():
            summary = self._summary(value=[self._summary.Value(tag=name, simple_value=number)])
            self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file. Raises OSError."""
        self._file.close()


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that are numbers, those of NumPy and JAX as Python's."""
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in metrics.items()}
    return {key: value for key, value in plain.items() if isinstance(value, int | float)}


def _figure(key: str, value: float) -> str:
    """Returns a metric as it is shown, such as "loss 3.210"."""
    if key in EVALUATION_FIGURES:
        return EVALUATION_FIGURES[key].format(value)
    return f"{key.replace('_', ' ')} " + (f"{value:,}" if isinstance(value, int) else f"{value:.4g}")


def _evaluation_label(name: str) -> str:
    return "held-out" if name.replace("_", "-") == "held-out" else f"held-out {name}"


def _append(file: FileIO, line: bytes) -> None:
    try:
        while line:
            line = line[file.write(line) :]
    except OSError as error:
        raise UserError(
            f"cannot write {file.name!s}: {reason(error)}; fix that and run the same command again"
        ) from error


def _repair_last_line(path: Path) -> bool:
    """Removes a last line that a kill left unfinished; returns whether the file has any lines."""
    if not path.exists():
        return False
    content = read_bytes(path)
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


_FIELDS = {"loss": float, "accuracy": float, "devices": int, "processor": str, "versions": dict}  # read by model cards


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the event in a line of metrics.jsonl; None if the line is not a valid event."""
    try:
        event = parse_json(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return None
    stepless = 0 if event["kind"] not in ("train", "evaluation", "resume") else None
    typed = all(event.get(name) is None or is_kind(event[name], kind) for name, kind in _FIELDS.items())
    return event if typed and isinstance(event.get("step", stepless), int) else None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the events of a run in order; of several with the same kind, step and evaluation set, the last one.

    Events that an interrupted run logged beyond the step from which it was resumed are left out, and so is a last line
    that a kill left unfinished. Raises UserError if metrics.jsonl cannot be read, or with the number of any other
    broken line.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        content = read_bytes(path)
    except UserError as error:
        raise UserError(f"{error}; give the work directory of a run") from error
    *lines, last = content.split(b"\n")
    events: dict[tuple, dict[str, Any]] = {}
    for number, line in enumerate([*lines, last], 1):
        event = _parse(line)
        if event is None:
            if number > len(lines) or not line.strip():
                continue
            raise UserError(f"{path}, line {number}: not a JSON object with a kind and a step; fix or remove the line")
        kind, step = event["kind"], event.get("step")
        if kind == "resume":
            superseded = [key for key in events if key[0] in ("train", "evaluation") and key[1] > step]
            for key in superseded:
                del events[key]
        key = (kind, number) if step is None else (kind, step, event.get("name"))
        events.pop(key, None)
        events[key] = event
    return list(events.values())
