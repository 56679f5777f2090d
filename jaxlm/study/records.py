"""What a run has left in its work directory: its settings, machine, curves and results."""

import bisect
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import config_from_dict, phases_of
from jaxlm.errors import UserError
from jaxlm.runtime.run_log import read_metrics
from jaxlm.storage import parse_json, read_bytes, read_json
from jaxlm.typed import listed

NOT_METRICS = ("kind", "step", "name", "time")


class Point(NamedTuple):
    """One value of a curve, and when it was measured."""

    step: int
    seconds: float  # of training, since the start of the run
    value: float


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The log of one run. `events` are those of metrics.jsonl, in order; `config` is config.json."""

    directory: Path
    config: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def start(self) -> dict[str, Any]:
        """Returns the first record: the machine, versions and data."""
        return next((event for event in self.events if event["kind"] == "start"), {})

    @property
    def done(self) -> bool:
        kinds = [event["kind"] for event in self.events if event["kind"] in ("start", "end")]
        return bool(kinds) and kinds[-1] == "end"

    @property
    def steps(self) -> int:
        """Returns the number of updates that are logged."""
        return max((event.get("step", 0) for event in self.events), default=0)

    @property
    def seed(self) -> int:
        return self.config["train"]["seed"]

    @property
    def seconds(self) -> float:
        """Returns the seconds from the start to the last record, without the time between interruptions."""
        return self._elapsed(len(self.events) - 1) if self.events else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Returns the median of the logged speeds, without padding."""
        speeds = sorted(
            event["tokens_per_second_without_padding"] for event in self.events
            if event["kind"] == "train" and event.get("tokens_per_second_without_padding")
        )  # fmt: skip
        return speeds[len(speeds) // 2] if speeds else None

    @property
    def sets(self) -> list[str]:
        """Returns the names of the evaluation sets in the order in which they were first measured."""
        return list(dict.fromkeys(event.get("name", "") for event in self.events if event["kind"] == "evaluation"))

    @property
    def selecting_metric(self) -> list[str]:
        """Returns the metric that chose the checkpoint of a run on labelled examples; nothing for other runs."""
        file = self.directory / "results.json"
        try:
            metric = read_json(file)["protocol"]["selection"]["metric"] if file.exists() else None
        except (UserError, KeyError, TypeError):
            return []
        return [metric] if isinstance(metric, str) else []

    def metrics(self, evaluation: str) -> list[str]:
        """Returns the numbers that are known of an evaluation set."""
        found = [event for event in self.events if event["kind"] == "evaluation" and event.get("name") == evaluation]
        return [
            key for key, value in (found[-1] if found else {}).items() if key not in NOT_METRICS and is_number(value)
        ]

    def curve(self, metric: str, evaluation: str | None) -> list[Point]:
        """Returns the values of a metric over the run, of training or of an evaluation set."""
        points = []
        for index, event in enumerate(self.events):
            fits = event["kind"] == "train" if evaluation is None else (
                event["kind"] == "evaluation" and event.get("name") == evaluation
            )  # fmt: skip
            if fits and is_number(event.get(metric)):
                points.append(Point(event["step"], self._elapsed(index), float(event[metric])))
        return sorted(points)

    def value(self, metric: str, evaluation: str, at: int | None = None) -> Point:
        """Returns the metric of an evaluation set after update `at`, or the last one that the run measured.

        Raises UserError that names what the run has.
        """
        points = self.curve(metric, evaluation)
        if not points:
            if evaluation not in self.sets:
                raise UserError(
                    f"{self.directory} has no evaluation set {evaluation}"
                    + (f"; it has {listed(self.sets)}" if self.sets else ": it has not been evaluated")
                )
            raise UserError(
                f"{self.directory} has no metric {metric} of {evaluation}; it has {listed(self.metrics(evaluation))}"
            )
        if at is None:
            last = [e for e in self.events if e["kind"] == "evaluation" and e.get("name") == evaluation][-1]["step"]
            return next((point for point in points if point.step == last), points[-1])
        if found := [point for point in points if point.step == at]:
            return found[-1]
        raise UserError(
            f"{self.directory} was not evaluated at update {at:,}; it was at {listed(f'{p.step:,}' for p in points)}"
        )

    def tokens(self, step: int) -> int | None:
        """Returns how many tokens, with padding, `step` updates read; None for labelled examples, whose rows vary."""
        if self.config.get("task", {}).get("train"):
            return None
        total, first = 0, 0
        for phase in phases_of(config_from_dict(self.config, str(self.directory))):
            last = step if phase.steps is None else min(step, first + phase.steps)
            total += max(0, last - first) * phase.batch_size * phase.sequence_length
            first = last
        return total

    def _elapsed(self, index: int) -> float:
        """Returns the seconds of training before the event with this index, without those between interruptions."""
        starts = [i for i, event in enumerate(self.events[: index + 1]) if event["kind"] == "start"]
        if not starts:
            return 0.0
        start = self.events[starts[-1]]
        before = start.get("elapsed_seconds") if len(starts) > 1 else 0.0
        return float(before or 0.0) + max(0.0, self.events[index]["time"] - start["time"])


def correct_examples(record: RunRecord, evaluation: str) -> np.ndarray | None:
    """Returns whether a classifier's answer to each labelled example is right, float64 [examples]; None if unknown."""
    try:
        lines = read_bytes(record.directory / "predictions" / f"{evaluation}.jsonl").splitlines()
        rows = [parse_json(line) for line in lines if line.strip()]
    except (UserError, ValueError):
        return None
    known = [row for row in rows if isinstance(row, dict) and "gold" in row and "label" in row]
    return np.array([row["label"] == row["gold"] for row in known], np.float64) if known else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_run(directory: Path) -> RunRecord:
    """Returns the record of a run. Raises UserError if the directory is none, or nothing has been logged."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}")
    if not (directory / "config.json").is_file() or not (directory / "metrics.jsonl").is_file():
        raise UserError(f"{directory} is no work directory: it lacks config.json or metrics.jsonl, which a run writes")
    events = read_metrics(directory)
    if not events:
        raise UserError(f"{directory} has no records yet; wait until the run has logged its first updates")
    return RunRecord(directory, read_json(directory / "config.json"), events)


def config_differences(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Returns the settings, as `section.name`, in which configs differ, with the value of each config."""
    keys = dict.fromkeys(
        (section, name) for config in configs for section, settings in config.items() for name in settings
    )
    values = {f"{section}.{name}": [config.get(section, {}).get(name) for config in configs] for section, name in keys}
    return {
        key: found for key, found in values.items() if len({json.dumps(value, sort_keys=True) for value in found}) > 1
    }


def at_steps(points: list[Point], steps: list[int]) -> list[float | None]:
    """Returns a curve's values at these steps, linear between its points; None outside of them."""
    own = [point.step for point in points]
    values: list[float | None] = []
    for step in steps:
        index = bisect.bisect_left(own, step)
        if index < len(own) and own[index] == step:
            values.append(points[index].value)
        elif 0 < index < len(own):
            left, right = points[index - 1], points[index]
            share = (step - left.step) / (right.step - left.step)
            values.append(left.value + share * (right.value - left.value))
        else:
            values.append(None)
    return values


def common_grid(curves: list[list[Point]], most: int = 200) -> list[int]:
    """Returns at most `most` steps, spread over those that the curves share in time."""
    if not all(curves) or not curves:
        return []
    first, last = max(curve[0].step for curve in curves), min(curve[-1].step for curve in curves)
    steps = sorted({p.step for p in itertools.chain(*curves) if first <= p.step <= last})
    return steps if len(steps) <= most else [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
