"""The evaluators of each objective."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.evaluation.evaluator import Evaluator
from jaxlm.evaluation.held_out import held_out_evaluators
from jaxlm.evaluation.task_sets import TASKS, task_evaluators
from jaxlm.step import Assembly

# Called with the assembly and the data of a run, and its work directory.
EVALUATORS: dict[str, Callable[[Assembly, Any, Path], list[Evaluator]]] = {
    "masked": held_out_evaluators,
    "causal": held_out_evaluators,
    **dict.fromkeys(TASKS, task_evaluators),
}
