"""The evaluators of each objective."""

from collections.abc import Callable
from typing import Any

from jaxlm.evaluation.classification import classification_evaluators
from jaxlm.evaluation.evaluator import Evaluator
from jaxlm.evaluation.held_out import held_out_evaluators
from jaxlm.step import Assembly

EVALUATORS: dict[str, Callable[[Assembly, Any], list[Evaluator]]] = {
    "masked": held_out_evaluators,
    "causal": held_out_evaluators,
    "classify": classification_evaluators,
}
