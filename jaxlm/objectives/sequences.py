"""Predict a class, several classes, a number, or relevance for each text or pair of packed rows."""

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
from jaxlm.model.task_model import SEGMENT_HEADS, SegmentModel, default_pooling, family_style
from jaxlm.objectives.inheritance import inherited
from jaxlm.objectives.objective import Column, Params, Prepared, Sums, draws_dropout, example_columns
from jaxlm.objectives.predictions import cross_entropy


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceObjective:
    """The mean loss of the examples, weighted by class.

    It is the cross entropy of the label in nats ("classification"), the binary cross entropy in nats, averaged over
    classes ("multi_label") or of one logit ("reranking"), or the squared error ("regression").
    """

    model: SegmentModel
    target: str
    smoothing: float = 0.0  # probability that is spread evenly over all classes (arXiv 1512.00567)

    predicts_tokens: ClassVar[bool] = False
    additive: ClassVar[bool] = True
    counted: ClassVar[frozenset[str]] = frozenset()
    evaluation_note: ClassVar[str] = ""

    @classmethod
    def from_config(
        cls, config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
    ) -> "SequenceObjective":
        """Returns the objective of a phase; `facts.labels` names the classes."""
        encoder, task = dataclasses.replace(encoder, rotary_base=phase.rotary_base), config.task
        outputs = 1 if phase.objective in ("regression", "reranking") else len(facts.labels)
        rate = encoder.dropout if task.dropout is None else task.dropout
        name = family_style(encoder) if task.head == "auto" else task.head
        pooling = default_pooling(name) if task.pooling == "auto" else task.pooling
        model = SegmentModel(encoder, execution, outputs, SEGMENT_HEADS[name], rate, pooling)
        return cls(model, phase.objective, task.label_smoothing)

    @property
    def dropout(self) -> bool:
        return draws_dropout(self.model.config) or self.model.rate > 0

    def describe(self) -> str:
        return self.target.replace("_", "-")

    def columns(self, length: int) -> dict[str, Column]:
        slots = length // SHORTEST_SEGMENT
        labels = {
            "classification": Column(np.int32, (slots,), 0, self.model.outputs),
            "multi_label": Column(np.float32, (slots, self.model.outputs), 0, 2),
            "regression": Column(np.float32, (slots,), 0, 6),
            "reranking": Column(np.float32, (slots,), 0, 2),
        }
        return {
            **example_columns(self.model.config, length),
            "examples": Column(np.int32, (slots,)),
            "labels": labels[self.target],
            "weights": Column(np.float32, (slots,), 1, 2),
        }

    def init(self, seed: int) -> Params:
        length = 2 * SHORTEST_SEGMENT
        tokens = jnp.zeros((1, length), jnp.int32)
        return self.model.init(jax.random.key(seed), tokens, tokens, tokens, 2)["params"]

    def inherit(self, params: Params) -> Params:
        return inherited(params, self.model.style)

    def knobs(self, progress: float) -> dict[str, float]:
        return {}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        return Prepared(dict(batch), batch["weights"].sum(), {})

    def outputs(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None = None) -> Array:
        """Returns float32 [B, S, C]: for each row those of segments 1 to S, of any value where a row has fewer."""
        slots = rows["weights"].shape[1]
        return self.model.apply(
            {"params": params}, rows["tokens"], rows["segment_ids"], rows["token_types"], slots, dropout_seeds
        )  # type: ignore[return-value]

    def forward(
        self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns the outputs, and the pooled states that the head makes them of, float32 [B, S, D]."""
        slots = rows["weights"].shape[1]
        return self.model.apply(
            {"params": params}, rows["tokens"], rows["segment_ids"], rows["token_types"], slots, dropout_seeds,
            method="with_states",
        )  # type: ignore[return-value] # fmt: skip

    def sums(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None) -> Sums:
        return self.losses(self.outputs(params, rows, dropout_seeds), None, rows)

    def losses(self, outputs: Array, states: Array | None, rows: Mapping[str, Array]) -> Sums:
        """Returns the sums over rows of outputs; what is put around the objective may use the states of `forward`."""
        outputs = outputs.reshape(-1, outputs.shape[-1])
        labels, weights = (rows[name].reshape(len(outputs), *rows[name].shape[2:]) for name in ("labels", "weights"))
        if self.target == "regression":
            losses, correct = (outputs[:, 0] - labels) ** 2, jnp.zeros_like(weights)
        elif self.target == "reranking":
            losses = binary_cross_entropy(outputs[:, 0], labels)
            correct = (outputs[:, 0] > 0) == (labels > 0.5)
        elif self.target == "multi_label":
            losses = binary_cross_entropy(outputs, labels).mean(-1)
            correct = ((outputs > 0) == (labels > 0.5)).mean(-1)
        else:
            losses, correct = cross_entropy(outputs, labels)
            if self.smoothing:
                uniform = -jax.nn.log_softmax(outputs).mean(-1)
                losses = (1 - self.smoothing) * losses + self.smoothing * uniform
        known = (weights > 0).astype(jnp.float32)
        return {
            "loss": (losses * weights).sum(), "weight": weights.sum(),
            "correct": (correct * known).sum(), "examples": known.sum(),
        }  # fmt: skip

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        metrics = {"loss": totals["loss"] / jnp.maximum(totals["weight"], 1e-9)}
        if self.target != "regression":
            metrics["accuracy"] = totals["correct"] / jnp.maximum(totals["examples"], 1)
        return metrics

    def logits_memory(self, rows: int, length: int) -> int:
        return rows * (length // SHORTEST_SEGMENT) * self.model.outputs * 4

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return training_flops(self.model.config, batch_size, length, 0)


def binary_cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns nats of the same shape; labels are 0 or 1."""
    return jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
