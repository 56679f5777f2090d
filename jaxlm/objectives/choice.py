"""Choose the right one of several texts, each scored by one logit."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Phase
from jaxlm.data.example_rows import SHORTEST_SEGMENT
from jaxlm.data.facts import DataFacts
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.objectives.objective import Column, Params, Prepared, Sums
from jaxlm.objectives.predictions import cross_entropy
from jaxlm.objectives.segments import by_example, encode_in_chunks
from jaxlm.objectives.sequences import SequenceObjective

INPUTS = ("tokens", "segment_ids", "token_types", "weights")


@dataclasses.dataclass(frozen=True, eq=False)
class ChoiceObjective:
    """The mean cross entropy of the right choice among those of its example, in nats.

    The choices of an example may be in different rows.
    """

    scorer: SequenceObjective  # gives each pair of context and choice a logit, as a reranker does
    examples: int  # of a batch
    choices: int  # of an example, at most
    chunks: int  # parts in which a batch is encoded

    predicts_tokens: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    counted: ClassVar[frozenset[str]] = frozenset()
    evaluation_note: ClassVar[str] = ""

    @classmethod
    def from_config(
        cls, config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
    ) -> "ChoiceObjective":
        """Returns the objective of a phase."""
        scorer = dataclasses.replace(phase, objective="reranking")
        choices = max(len(config.task.choices), 2)  # bench and plan know no columns
        return cls(
            SequenceObjective.from_config(config, scorer, encoder, execution, facts), phase.batch_size, choices,
            phase.accumulate,
        )  # fmt: skip

    @property
    def dropout(self) -> bool:
        return self.scorer.dropout

    def describe(self) -> str:
        return "choice"

    def columns(self, length: int) -> dict[str, Column]:
        slots = length // SHORTEST_SEGMENT
        return self.scorer.columns(length) | {
            "examples": Column(np.int32, (slots,), 0, self.examples),
            "role": Column(np.int32, (slots,), 0, self.choices),
            "labels": Column(np.int32, (slots,), 0, self.choices),
        }

    def init(self, seed: int) -> Params:
        return self.scorer.init(seed)

    def inherit(self, params: Params) -> Params:
        return self.scorer.inherit(params)

    def knobs(self, progress: float) -> dict[str, float]:
        return {}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        return Prepared(dict(batch), self._labels(batch)[1].sum(), {})

    def outputs(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None = None) -> Array:
        """Returns float32 [B, S, 1]: for each row those of segments 1 to S, of any value where a row has fewer."""
        return self.scorer.outputs(params, rows, dropout_seeds)

    def sums(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None) -> Sums:
        inputs = {name: rows[name] for name in INPUTS}
        outputs = encode_in_chunks(functools.partial(self.outputs, params), inputs, dropout_seeds, self.chunks)
        logits, exists = self._by_example(outputs[..., 0], rows)
        labels, known = self._labels(rows)
        losses, correct = cross_entropy(jnp.where(exists, logits, -jnp.inf), labels)
        return {
            "loss": jnp.where(known > 0, losses, 0).sum(), "weight": known.sum(),
            "correct": jnp.where(known > 0, correct, 0).sum(),
        }  # fmt: skip

    def _by_example(self, values: Array, rows: Mapping[str, Array]) -> tuple[Array, Array]:
        return by_example(values, rows["examples"], rows["role"], self.examples, self.choices)

    def _labels(self, rows: Mapping[str, Array]) -> tuple[Array, Array]:
        """Returns the number of the right choice of each example, int32 [U], and 1 where it is known, else 0."""
        labels, exists = self._by_example(rows["labels"], rows)
        labels = labels.max(1)  # all segments of an example have the same, and 0 is where there is none
        weights = self._by_example(rows["weights"], rows)[0].max(1)
        there = jnp.take_along_axis(exists, labels[:, None], axis=1)[:, 0]
        return labels, ((weights > 0) & there).astype(jnp.float32)

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        weight = jnp.maximum(totals["weight"], 1)
        return {"loss": totals["loss"] / weight, "accuracy": totals["correct"] / weight}

    def logits_memory(self, rows: int, length: int) -> int:
        return self.scorer.logits_memory(rows, length)

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return self.scorer.flops(batch_size, length, tokens, knobs)
