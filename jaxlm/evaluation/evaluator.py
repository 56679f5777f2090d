"""The interface of an evaluator: one evaluation set, how often it runs, and whether it chooses the best checkpoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.errors import NotFinite

Metrics = dict[str, Any]  # numbers, and texts that say how they were computed


class Evaluator(NamedTuple):
    """What the training loop runs on one evaluation set."""

    name: str  # of the set: under it the metrics are logged
    every: int  # updates between evaluations; 0: only at the end
    run: Callable[[dict[str, Any], int], Metrics]  # parameters on the mesh, and the number of the phase of training
    describe: Callable[[str, Metrics], str]  # the set's name and its metrics as a line of text
    selects: str = ""  # the metric that chooses the best checkpoint; empty: this set chooses none
    higher_is_better: bool = False
    protocol: str = ""  # what the metrics depend on beside the set: the masks, the rows
    fit: Callable[[dict[str, Any], int], dict[str, Any]] | None = None  # at the end, on the best checkpoint: values
    report: Callable[[dict[str, Any], int, Mapping[str, Any]], Metrics] | None = None  # then, with the fitted values
    remark: Callable[[Metrics], str] = lambda metrics: ""  # a warning about the metrics at the end of a run, or ""

    @property
    def criterion(self) -> str:
        """The metric that chooses the best checkpoint, with its set and protocol, in words."""
        return f"{self.selects} on {self.name}" + (f" ({self.protocol})" if self.protocol else "")

    def evaluate(self, params: dict[str, Any], phase: int) -> Metrics:
        """Returns what `run` returns. Raises UserError if the loss of what is predicted is NaN or infinite.

        Other metrics of such a model look excellent: no logit exceeds NaN, so every label is among the top five.
        """
        return _finite(self.name, self.run(params, phase))

    def evaluate_report(self, fitted: Mapping[str, Any], params: dict[str, Any], phase: int) -> Metrics:
        """Returns what `report` returns; raises as `evaluate` does."""
        assert self.report
        return _finite(self.name, self.report(params, phase, fitted))


def _finite(name: str, metrics: Metrics) -> Metrics:
    if metrics["n"] and not math.isfinite(metrics["loss"]):
        raise NotFinite(f"the loss on {name}")
    return metrics


def selector(evaluators: Sequence[Evaluator]) -> Evaluator | None:
    """Returns the evaluator that chooses the best checkpoint: the first that selects by a metric."""
    return next((evaluator for evaluator in evaluators if evaluator.selects), None)


def before_and_after(first: Mapping[str, Mapping[str, Any]], last: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of each set's loss and accuracy before the first update and at the end of training.

    Sets that are not measured by accuracy have the first of their other metrics, named in the heading, or behind the
    figures if the sets have different ones.
    """
    measured = {name: after for name, after in last.items() if after.get("n", 1)}
    metrics = {name: _metric_shown(after) for name, after in measured.items()}
    heading = next(iter(metrics.values()), "accuracy") if len({*metrics.values()}) < 2 else "metric"
    lines = [f"{'evaluation set':<16}{'loss before':>14}{'after':>9}{f'{heading} before':>18}{'after':>9}"]
    for name, after in measured.items():
        metric = metrics[name]
        (loss, value), (last_loss, last_value) = (
            [math.nan if known.get(key) is None else known[key] for key in ("loss", metric)]
            for known in (first.get(name, {}), after)
        )
        form, named = ".1%" if metric == "accuracy" else ".3f", "" if metric == heading else f"  {metric}"
        lines.append(f"{name:<16}{loss:>14.3f}{last_loss:>9.3f}{value:>18{form}}{last_value:>9{form}}{named}")
    return "\n".join(lines)


def _metric_shown(metrics: Mapping[str, Any]) -> str:
    others = [key for key, value in metrics.items() if key != "loss" and isinstance(value, float)]
    return "accuracy" if "accuracy" in metrics or not others else others[0]
