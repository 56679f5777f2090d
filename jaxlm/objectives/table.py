"""The objectives by name. A new one is a file in this folder and a row here."""

from collections.abc import Callable
from typing import Any

from jaxlm.config import Phase
from jaxlm.data.facts import DataFacts
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.objectives.causal_lm import CausalLanguageModel
from jaxlm.objectives.classify import Classify
from jaxlm.objectives.masked_lm import MaskedLanguageModel
from jaxlm.objectives.objective import Objective

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "masked": MaskedLanguageModel.from_config,
    "causal": CausalLanguageModel.from_config,
    "classify": Classify.from_config,
}


def make_objective(
    config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
) -> Objective:
    """Returns the objective of a phase."""
    return OBJECTIVES[phase.objective](config, phase, encoder, execution, facts)
