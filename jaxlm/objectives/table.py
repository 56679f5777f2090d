"""The objectives by name. A new one is a file in this folder and a row here."""

from collections.abc import Callable
from typing import Any, cast

import jax

from jaxlm.config import Phase, phases_of
from jaxlm.data.facts import SYNTHETIC_FACTS, DataFacts
from jaxlm.errors import UserError
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.objectives.causal_lm import CausalLanguageModel
from jaxlm.objectives.choice import ChoiceObjective
from jaxlm.objectives.distillation import Distillation
from jaxlm.objectives.embedding import EmbeddingObjective
from jaxlm.objectives.masked_lm import MaskedLanguageModel
from jaxlm.objectives.objective import Objective, Params
from jaxlm.objectives.r_drop import RDrop
from jaxlm.objectives.sequences import SequenceObjective
from jaxlm.objectives.spans import SpanObjective
from jaxlm.objectives.tagging import TaggingObjective
from jaxlm.objectives.template import TemplateObjective
from jaxlm.objectives.wrapped import Wrapped

OBJECTIVES: dict[str, type[Any]] = {
    "masked": MaskedLanguageModel,
    "causal": CausalLanguageModel,
    "classification": SequenceObjective,
    "multi_label": SequenceObjective,
    "regression": SequenceObjective,
    "span": SpanObjective,
    "tagging": TaggingObjective,
    "embedding": EmbeddingObjective,
    "reranking": SequenceObjective,
    "choice": ChoiceObjective,
    "template": TemplateObjective,
}

# The objectives that are put around that of the task, by the setting of section `task` that asks for them.
WRAPPERS: dict[str, Callable[[Any, Any], Wrapped]] = {
    "teacher": Distillation.from_task,
    "r_drop": RDrop.from_task,
}


def make_objective(
    config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
) -> Objective:
    """Returns the objective of a phase, inside of those that section `task` puts around it. Raises UserError."""
    objective: Objective = OBJECTIVES[phase.objective].from_config(config, phase, encoder, execution, facts)
    for setting, wrap in WRAPPERS.items():
        if config.task[setting]:
            if not isinstance(objective, SequenceObjective | Wrapped):
                raise UserError(f"task.{setting} does not apply to train.objective={phase.objective}; remove it")
            objective = cast(Objective, wrap(objective, config.task))
    return objective


def abstract_params(config: Any, encoder: EncoderConfig) -> Params:
    """Returns the shapes and dtypes of a run's parameters, without making them."""
    labels = tuple(config.task.labels) or SYNTHETIC_FACTS.labels
    facts = SYNTHETIC_FACTS._replace(labels=labels)
    objective = make_objective(config, phases_of(config)[-1], encoder, Execution(), facts)
    return jax.eval_shape(lambda: objective.init(0))
