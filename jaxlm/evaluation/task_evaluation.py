"""The interface of an evaluation of labelled examples: what a kind of task predicts, and how that is measured."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax import Array

from jaxlm.data.examples import Examples
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.objectives.objective import Params

Outputs = Mapping[str, list[np.ndarray]]  # by name, one array for each segment of the examples


class Metric(NamedTuple):
    """A metric that may select the best checkpoint."""

    higher_is_better: bool


class TaskEvaluation(Protocol):
    """How examples of one kind are evaluated.

    `labels` are the names of the outputs, `task` is that section of the config.
    """

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Those of `measure` that may select; the first does, unless task.metric names another."""
        ...

    @property
    def of_tokens(self) -> bool:
        """Whether outputs are [B, L, ...], one for each token, and not [B, S, ...], one for each segment."""
        ...

    def outputs(self, objective: Any, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Returns what is kept of a batch; pure, to be jitted."""
        ...

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        """Returns the metrics over all examples with labels, and their number n."""
        ...

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        """Yields a JSON object for each example, in the order of the file."""
        ...

    def describe(self, name: str, metrics: Metrics) -> str:
        """Returns the metrics of a set as a line."""
        ...

    def remark(self, name: str, metrics: Metrics) -> str:
        """Returns a warning about metrics that mean little; or ""."""
        ...


@runtime_checkable
class Calibrated(TaskEvaluation, Protocol):
    """An evaluation with values that are fitted at the end of a run, on the set that selects the best checkpoint."""

    def fit(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> dict[str, Any]:
        """Returns the values, and what is worth saving with them, as JSON."""
        ...

    def fitted(self, values: Mapping[str, Any]) -> TaskEvaluation:
        """Returns this evaluation with the values that `fit` returned."""
        ...
