"""Predict the tag of each word of packed sentences, at the first piece of the word."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Phase
from jaxlm.data.example_rows import SHORTEST_SEGMENT
from jaxlm.data.facts import DataFacts
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.model.task_model import TOKEN_HEADS, TokenModel, family_style
from jaxlm.objectives.inheritance import inherited
from jaxlm.objectives.objective import Column, Params, Prepared, Sums, draws_dropout, example_columns
from jaxlm.objectives.predictions import cross_entropy


@dataclasses.dataclass(frozen=True, eq=False)
class TaggingObjective:
    """The mean cross entropy of the tags of words in nats, weighted by tag."""

    model: TokenModel
    smoothing: float = 0.0  # probability that is spread evenly over all tags (arXiv 1512.00567)

    predicts_tokens: ClassVar[bool] = False
    additive: ClassVar[bool] = True
    counted: ClassVar[frozenset[str]] = frozenset()
    evaluation_note: ClassVar[str] = ""

    @classmethod
    def from_config(
        cls, config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
    ) -> "TaggingObjective":
        """Returns the objective of a phase; `facts.labels` names the tags."""
        encoder, task = dataclasses.replace(encoder, rotary_base=phase.rotary_base), config.task
        rate = encoder.dropout if task.dropout is None else task.dropout
        style = TOKEN_HEADS[family_style(encoder) if task.head == "auto" else task.head]
        return cls(TokenModel(encoder, execution, len(facts.labels), style, rate), task.label_smoothing)

    @property
    def dropout(self) -> bool:
        return draws_dropout(self.model.config) or self.model.rate > 0

    def describe(self) -> str:
        return "tagging"

    def columns(self, length: int) -> dict[str, Column]:
        return {
            **example_columns(self.model.config, length),
            "examples": Column(np.int32, (length // SHORTEST_SEGMENT,)),
            "words": Column(np.int32, (length,), 1, length),
            "labels": Column(np.int32, (length,), 0, self.model.outputs),
            "weights": Column(np.float32, (length,), 1, 2),
        }

    def init(self, seed: int) -> Params:
        tokens = jnp.zeros((1, SHORTEST_SEGMENT), jnp.int32)
        return self.model.init(jax.random.key(seed), tokens, tokens, tokens)["params"]

    def inherit(self, params: Params) -> Params:
        return inherited(params, self.model.style)

    def knobs(self, progress: float) -> dict[str, float]:
        return {}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        return Prepared(dict(batch), batch["weights"].sum(), {})

    def outputs(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None = None) -> Array:
        """Returns the logits of each token, float32 [B, L, C]."""
        return self.model.apply(
            {"params": params}, rows["tokens"], rows["segment_ids"], rows["token_types"], dropout_seeds
        )  # type: ignore[return-value]

    def sums(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None) -> Sums:
        logits = self.outputs(params, rows, dropout_seeds).reshape(-1, self.model.outputs)
        labels, weights = rows["labels"].reshape(-1), rows["weights"].reshape(-1)
        losses, correct = cross_entropy(logits, labels)
        if self.smoothing:
            losses = (1 - self.smoothing) * losses - self.smoothing * jax.nn.log_softmax(logits).mean(-1)
        known = (weights > 0).astype(jnp.float32)
        return {
            "loss": (losses * weights).sum(), "weight": weights.sum(),
            "correct": (correct * known).sum(), "words": known.sum(),
        }  # fmt: skip

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return {
            "loss": totals["loss"] / jnp.maximum(totals["weight"], 1e-9),
            "accuracy": totals["correct"] / jnp.maximum(totals["words"], 1),
        }

    def logits_memory(self, rows: int, length: int) -> int:
        return rows * length * self.model.outputs * 4

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return training_flops(self.model.config, batch_size, length, 0)
