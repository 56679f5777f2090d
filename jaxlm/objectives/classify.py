"""Sequence classification: predict one of C labels for each example of a packed row."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Phase
from jaxlm.data.examples import SHORTEST_EXAMPLE
from jaxlm.data.facts import DataFacts
from jaxlm.model.classifier import Classifier
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.objectives.objective import Column, Params, Prepared, Sums
from jaxlm.objectives.predictions import weighted_sums


@dataclasses.dataclass(frozen=True, eq=False)
class Classify:
    """The mean cross entropy of the examples' labels, in nats. Several examples share a row, each its own segment."""

    model: Classifier

    predicts_tokens: ClassVar[bool] = False
    additive: ClassVar[bool] = True
    counted: ClassVar[frozenset[str]] = frozenset()
    evaluation_note: ClassVar[str] = ""

    @classmethod
    def from_config(
        cls, config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
    ) -> "Classify":
        """Returns the objective of a phase; `facts.labels` names the classes."""
        encoder = dataclasses.replace(encoder, rotary_base=phase.rotary_base)
        return cls(Classifier(encoder, execution, len(facts.labels), config.task.pooling))

    @property
    def dropout(self) -> bool:
        return self.model.config.dropout > 0 or self.model.config.attention_dropout > 0

    def describe(self) -> str:
        return "classify"

    def columns(self, length: int) -> dict[str, Column]:
        return {
            "tokens": Column(np.int32, (length,), 5, self.model.config.vocab_size),
            "segment_ids": Column(np.int32, (length,)),
            "token_types": Column(np.int32, (length,), 0, 1),
            "labels": Column(np.int32, (length // SHORTEST_EXAMPLE,), 0, self.model.classes),
        }

    def init(self, seed: int) -> Params:
        length = 2 * SHORTEST_EXAMPLE
        tokens = jnp.zeros((1, length), jnp.int32)
        return self.model.init(jax.random.key(seed), tokens, tokens, tokens, 2)["params"]

    def inherit(self, params: Params) -> Params:
        return {"encoder": params["encoder"]}  # the head of another task is of no use here

    def knobs(self, progress: float) -> dict[str, float]:
        return {}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        return Prepared(dict(batch), (batch["labels"] >= 0).sum().astype(jnp.float32), {})

    def logits(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None = None) -> Array:
        """Returns float32 [B, S, C]: for each row those of segments 1 to S, of any value where a row has fewer."""
        slots = rows["labels"].shape[1]
        return self.model.apply(
            {"params": params}, rows["tokens"], rows["segment_ids"], rows["token_types"], slots, dropout_seeds
        )  # type: ignore[return-value]

    def sums(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None) -> Sums:
        logits = self.logits(params, rows, dropout_seeds)
        labels = rows["labels"].reshape(-1)
        weights = (labels >= 0).astype(jnp.float32)
        return weighted_sums(logits.reshape(-1, logits.shape[-1]), jnp.maximum(labels, 0), weights)

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        examples = jnp.maximum(totals["predictions"], 1)
        return {"loss": totals["loss"] / examples, "accuracy": totals["correct"] / examples}

    def logits_memory(self, rows: int, length: int) -> int:
        return rows * (length // SHORTEST_EXAMPLE) * self.model.classes * 4

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return training_flops(self.model.config, batch_size, length, 0)
