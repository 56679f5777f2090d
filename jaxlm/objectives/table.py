"""The objectives by name. A new one is a file in this folder and a row here."""

from typing import Any

import jax

from jaxlm.config import Phase, phases_of
from jaxlm.data.facts import SYNTHETIC_FACTS, DataFacts
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.objectives.causal_lm import CausalLanguageModel
from jaxlm.objectives.masked_lm import MaskedLanguageModel
from jaxlm.objectives.objective import Objective, Params
from jaxlm.objectives.sequences import SequenceObjective
from jaxlm.objectives.spans import SpanObjective

OBJECTIVES: dict[str, type[Any]] = {
    "masked": MaskedLanguageModel,
    "causal": CausalLanguageModel,
    "classification": SequenceObjective,
    "multi_label": SequenceObjective,
    "regression": SequenceObjective,
    "span": SpanObjective,
}


def make_objective(
    config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
) -> Objective:
    """Returns the objective of a phase."""
    return OBJECTIVES[phase.objective].from_config(config, phase, encoder, execution, facts)


def abstract_params(config: Any, encoder: EncoderConfig) -> Params:
    """Returns the shapes and dtypes of a run's parameters, without making them."""
    labels = tuple(config.task.labels) or SYNTHETIC_FACTS.labels
    facts = SYNTHETIC_FACTS._replace(labels=labels)
    objective = make_objective(config, phases_of(config)[-1], encoder, Execution(), facts)
    return jax.eval_shape(lambda: objective.init(0))
