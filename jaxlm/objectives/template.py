"""Predict the class of each text by the word that fills the mask of its template, with the masked-LM head.

The logit of a class is the log of the summed probabilities of its words, up to a constant that all classes share. The
loss is the cross entropy among the classes (PET, arXiv 2001.07676), or among the whole vocabulary, at the mask alone
(answer token prediction, arXiv 2502.03793).
"""

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
from jaxlm.errors import UserError
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.model.heads import MaskedLM, encode, gather_positions, init_params, predict
from jaxlm.objectives.objective import Column, Params, Prepared, Sums
from jaxlm.objectives.predictions import cross_entropy, sum_predictions
from jaxlm.runtime.hardware import logits_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class TemplateObjective:
    """The mean cross entropy of the examples in nats, weighted by class."""

    model: MaskedLM
    mask_id: int
    words: tuple[tuple[int, ...], ...]  # the tokens of each class
    whole_vocabulary: bool
    smoothing: float  # probability that is spread evenly over all classes (arXiv 1512.00567)
    logits_bytes: int

    predicts_tokens: ClassVar[bool] = True
    additive: ClassVar[bool] = True
    counted: ClassVar[frozenset[str]] = frozenset()
    evaluation_note: ClassVar[str] = ""

    @classmethod
    def from_config(
        cls, config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
    ) -> "TemplateObjective":
        """Returns the objective of a phase; `facts.label_tokens` are the words of the classes."""
        encoder, task = dataclasses.replace(encoder, rotary_base=phase.rotary_base), config.task
        whole = task.softmax == "vocabulary"
        if whole and task.label_smoothing:
            raise UserError(
                "task.label_smoothing spreads probability over the labels, which task.softmax=vocabulary does not"
                " compare; remove one of them"
            )
        model, limit = MaskedLM(encoder, execution), logits_bytes(config.train.logits_megabytes)
        return cls(model, facts.mask_id, facts.label_tokens, whole, task.label_smoothing, limit)

    @property
    def dropout(self) -> bool:
        return self.model.config.dropout > 0 or self.model.config.attention_dropout > 0

    def describe(self) -> str:
        return "template"

    def columns(self, length: int) -> dict[str, Column]:
        slots = length // SHORTEST_SEGMENT
        return {
            "tokens": Column(np.int32, (length,), 5, self.model.config.vocab_size),
            "segment_ids": Column(np.int32, (length,)),
            "token_types": Column(np.int32, (length,), 0, 1),
            "examples": Column(np.int32, (slots,)),
            "labels": Column(np.int32, (slots,), 0, max(len(self.words), 2)),
            "weights": Column(np.float32, (slots,), 1, 2),
        }

    def init(self, seed: int) -> Params:
        return init_params(self.model.config, seed)

    def inherit(self, params: Params) -> Params:
        return {part: params[part] for part in ("encoder", "head") if part in params}

    def knobs(self, progress: float) -> dict[str, float]:
        return {}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        return Prepared(dict(batch), batch["weights"].sum(), {})

    def outputs(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None = None) -> Array:
        """Returns float32 [B, S, C]: for each row those of segments 1 to S, of any value where a row has fewer."""
        states = encode(self.model, params, rows["tokens"], rows["segment_ids"], dropout_seeds=dropout_seeds)
        states = gather_positions(states, self._masked_positions(rows))
        tokens = np.concatenate([np.array(words, np.int32) for words in self.words])
        return self._by_class(predict(self.model, params, states, tokens))

    def sums(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None) -> Sums:
        columns = rows["labels"], rows["weights"]
        if not self.whole_vocabulary:
            outputs = self.outputs(params, rows, dropout_seeds)
            flat = (outputs.reshape(-1, outputs.shape[-1]), *(column.reshape(-1) for column in columns))
            return self._class_sums(*flat)
        return sum_predictions(
            self.model, params, rows["tokens"], rows["segment_ids"], self._masked_positions(rows), columns,
            self._vocabulary_sums, self.logits_bytes, dropout_seeds=dropout_seeds,
        )  # fmt: skip

    def _masked_positions(self, rows: Mapping[str, Array]) -> Array:
        """Returns where the mask of each segment is, int32 [B, S]; 0 where a row has fewer segments."""
        slots = jnp.arange(1, rows["weights"].shape[1] + 1)
        belongs = rows["segment_ids"][:, None] == slots[:, None]  # [B, S, L]
        return (belongs & (rows["tokens"] == self.mask_id)[:, None]).argmax(-1).astype(jnp.int32)

    def _by_class(self, logits: Array) -> Array:
        """Returns [..., C] of the logits [..., K] of all words, class after class."""
        ends = np.cumsum([len(words) for words in self.words])
        return jnp.stack([jax.nn.logsumexp(part, -1) for part in jnp.split(logits, ends[:-1], axis=-1)], -1)

    def _vocabulary_sums(self, logits: Array, labels: Array, weights: Array) -> Sums:
        """Returns the sums over examples with logits float32 [M, V]: the words of no class are one more class."""
        tokens = np.concatenate([np.array(words, np.int32) for words in self.words])
        others = jax.nn.logsumexp(logits.at[:, tokens].set(-jnp.inf), -1, keepdims=True)
        classes = self._by_class(logits[:, tokens])
        return self._class_sums(jnp.concatenate([classes, others], -1), labels, weights)

    def _class_sums(self, logits: Array, labels: Array, weights: Array) -> Sums:
        losses, _ = cross_entropy(logits, labels)
        if self.smoothing:
            losses = (1 - self.smoothing) * losses - self.smoothing * jax.nn.log_softmax(logits).mean(-1)
        classes, known = logits[:, : len(self.words)], (weights > 0).astype(jnp.float32)
        correct = jnp.take_along_axis(classes, labels[:, None], -1)[:, 0] >= classes.max(-1)
        return {
            "loss": (losses * weights).sum(), "weight": weights.sum(), "correct": (correct * known).sum(),
            "examples": known.sum(),
        }  # fmt: skip

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return {
            "loss": totals["loss"] / jnp.maximum(totals["weight"], 1e-9),
            "accuracy": totals["correct"] / jnp.maximum(totals["examples"], 1),
        }

    def logits_memory(self, rows: int, length: int) -> int:
        outputs = self.model.config.vocab_size if self.whole_vocabulary else len(self.words)
        return min(rows * (length // SHORTEST_SEGMENT) * outputs * 4, self.logits_bytes)

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return training_flops(self.model.config, batch_size, length, 0)
