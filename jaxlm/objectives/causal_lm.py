"""Causal language modelling: predict each token from those before it in its document."""

from collections.abc import Mapping
from typing import ClassVar

from jax import Array

from jaxlm.model.flops import training_flops
from jaxlm.objectives.masked_lm import MaskedLanguageModel
from jaxlm.objectives.masking import next_tokens
from jaxlm.objectives.objective import Prepared

EXPORT_NOTE = (
    "in Transformers this model attends to both sides of a token, but it was trained to predict each token from those "
    "before it: train it with train.objective=masked before its predictions are used"
)


class CausalLanguageModel(MaskedLanguageModel):
    """The mean cross entropy of each token given those before it, in nats; masked modelling can go on from it.

    The parameters are those of a masked language model (arXiv 2507.00994).
    """

    causal: ClassVar[bool] = True
    evaluation_note: ClassVar[str] = "evaluations mask tokens, which the model does not learn to predict"

    def describe(self) -> str:
        return "causal"

    def slots(self, length: int) -> int:
        return length

    def knobs(self, progress: float) -> dict[str, float]:
        return {}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        return self._prepared(next_tokens(batch["tokens"], batch["segment_ids"], self.masking), batch)

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return training_flops(self.model.config, batch_size, length, tokens)
